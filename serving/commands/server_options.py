"""Flags that say which server, which model and which version of it are asked, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from serving.client import AsyncClient, Client, Tls

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class Server:
    """Where to ask, and for what: the flags of `server_flags`.

    Attributes: those of `serving.client.Client`, under the flags' names.
    """

    server: str | None = None
    model_name: str | None = None
    model_version: int | None = None
    label: str | None = None
    timeout: float = 10.0
    header: tuple[str, ...] = ()
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @classmethod
    def taken_from(cls, flags: dict[str, Any]) -> Server:
        """Take the flags that it is made of out of a command's own; those that it has not are None."""
        return cls(**{field.name: flags.pop(field.name, None) for field in fields(cls)})

    def client(self, **settings: Any) -> Client:
        """A blocking client.

        Raises:
            click.UsageError: flags that do not go together.
        """
        from serving.client import Client

        return Client(self._target(), **self._settings(), **settings)

    def async_client(self, **settings: Any) -> AsyncClient:
        """A client for asyncio."""
        from serving.client import AsyncClient

        return AsyncClient(self._target(), **self._settings(), **settings)

    def _target(self) -> str:
        if self.server is None:
            raise click.UsageError("Give --server HOST:PORT.")
        if not self.model_name:
            raise click.UsageError("--server needs --model_name NAME (or HUBHEAD_MODEL in the environment).")
        return self.server

    def _settings(self) -> dict[str, Any]:
        if self.model_version is not None and self.label is not None:
            raise click.UsageError("--model_version and --label both name a version: give one of them.")
        headers = {}
        for header in self.header:
            name, equals, value = header.partition("=")
            if not equals:
                raise click.UsageError(f"--header {header!r} is not NAME=VALUE.")
            headers[name] = value
        return {
            "model": self.model_name,
            "version": self.model_version,
            "label": self.label,
            "timeout": self.timeout,
            "headers": headers,
            "tls": self._tls(),
        }

    def _tls(self) -> Tls | None:
        from serving.client import Tls

        if not (self.tls or self.tls_ca or self.tls_cert or self.tls_key):
            return None
        if (self.tls_cert is None) != (self.tls_key is None):
            raise click.UsageError("--tls_cert and --tls_key go together.")
        return Tls(self.tls_ca, self.tls_cert, self.tls_key)


_CONNECTION = (
    click.option(
        "--server",
        metavar="HOST:PORT",
        help="The model server's gRPC port. dns:///NAME:PORT reaches all pods of a headless service.",
    ),
    click.option(
        "--model_name",
        envvar="HUBHEAD_MODEL",
        show_envvar=True,
        help="With --server: the model's name there.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        show_default=True,
        help="With --server: seconds that each request may take, its retries included.",
    ),
    click.option(
        "--header", multiple=True, metavar="NAME=VALUE", help="With --server: metadata of every call; repeat."
    ),
    click.option("--tls", is_flag=True, help="With --server: an encrypted connection."),
    click.option("--tls_ca", type=_FILE, help="Certificates to check the server's with; implies --tls."),
    click.option("--tls_cert", type=_FILE, help="This client's certificate, where the server wants one."),
    click.option("--tls_key", type=_FILE, help="Its private key."),
)

_VERSION = (
    click.option(
        "--model_version",
        type=click.IntRange(min=0),
        help="With --server: this version, not the one it chooses.",
    ),
    click.option("--label", help="With --server: the version with this label, such as stable or canary."),
)

FLAGS = tuple(field.name for field in fields(Server))


def server_flags(command: F) -> F:
    """Add the flags of `Server` to a command."""
    for flag in reversed((*_CONNECTION[:2], *_VERSION, *_CONNECTION[2:])):
        command = flag(command)
    return command


def connection_flags(command: F) -> F:
    """Add those of them that say how a server is reached, and no version."""
    for flag in reversed(_CONNECTION):
        command = flag(command)
    return command


def refuse_without_server(context: click.Context, *others: str) -> None:
    """Make sure that no flag of `Server` stands on the command line, nor one of the others.

    Raises:
        click.UsageError: one does.
    """
    for flag in (*FLAGS, *others):
        if context.get_parameter_source(flag) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{flag} goes with --server.", context)

"""Flags that say which server, which model and which version of it are asked, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from serving.client import ClientConfig, Tls

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


FLAGS = (
    "server",
    "model_name",
    "model_version",
    "label",
    "timeout",
    "header",
    "tls",
    "tls_ca",
    "tls_cert",
    "tls_key",
)
"""The flags of `server_flags`."""


def pop_client_config(flags: dict[str, Any]) -> ClientConfig | None:
    """Take the flags of `server_flags` out of a command's own; None without --server.

    The model is "" where no --model_name was given.

    Raises:
        click.UsageError: flags that exclude each other, or that need each other.
    """
    from serving.client import ClientConfig

    given = {name: flags.pop(name, None) for name in FLAGS}
    if given["model_version"] is not None and given["label"] is not None:
        raise click.UsageError("--model_version and --label both name a version: give one of them.")
    headers = dict(map(_parse_header, given["header"] or ()))
    tls = _tls(given)
    if given["server"] is None:
        return None
    return ClientConfig(
        given["server"],
        model=given["model_name"] or "",
        version=given["model_version"],
        label=given["label"],
        timeout=given["timeout"],
        headers=headers,
        tls=tls,
    )


def pop_required_client_config(flags: dict[str, Any]) -> ClientConfig:
    """Take the flags of `server_flags` out of a command's own; the server and the model are required.

    Raises:
        click.UsageError: one of the two is missing, or see `pop_client_config`.
    """
    return require_model_name(pop_client_config(flags))


def require_model_name(config: ClientConfig | None) -> ClientConfig:
    """Return the configuration as it is.

    Raises:
        click.UsageError: there is no server, or it names no model.
    """
    if config is None:
        raise click.UsageError("Give --server HOST:PORT.")
    if not config.model:
        raise click.UsageError("--server needs --model_name NAME (or HUBHEAD_MODEL in the environment).")
    return config


def _parse_header(header: str) -> tuple[str, str]:
    name, equals, value = header.partition("=")
    if not equals:
        raise click.UsageError(f"--header {header!r} is not NAME=VALUE.")
    return name, value


def _tls(given: Mapping[str, Any]) -> Tls | None:
    from serving.client import Tls

    ca, certificate, key = given["tls_ca"], given["tls_cert"], given["tls_key"]
    if (certificate is None) != (key is None):
        raise click.UsageError("--tls_cert and --tls_key go together.")
    return Tls(ca, certificate, key) if given["tls"] or ca or certificate else None


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


def server_flags(command: F) -> F:
    """Add the flags that name a server, a model and a version of it."""
    for flag in reversed((*_CONNECTION[:2], *_VERSION, *_CONNECTION[2:])):
        command = flag(command)
    return command


def connection_flags(command: F) -> F:
    """Add those of them that say how a server is reached, and no version."""
    for flag in reversed(_CONNECTION):
        command = flag(command)
    return command


def forbid_server_flags(context: click.Context, *others: str) -> None:
    """Make sure that no flag of `server_flags` is on the command line, nor one of the others.

    Raises:
        click.UsageError: one does.
    """
    for flag in (*FLAGS, *others):
        if context.get_parameter_source(flag) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{flag} goes with --server.", context)

"""Flags that name a model server, a model and a version on it, and the connection settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from serving.commands.common.completers import complete_label
from serving.commands.common.config_file import get_configuration
from serving.errors import InputError
from serving.process import Variable
from serving.storage.text_lines import decode_text

if TYPE_CHECKING:
    from serving.client import ClientConfig
    from serving.client.channel import Headers

Decorator: TypeAlias = Callable[[Any], Any]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

HEADERS_VARIABLE = Variable.HEADERS
"""Environment variable with headers, one NAME=VALUE per line."""

_FROM_FILE = "@"


def read_secret(_context: click.Context, option: click.Parameter, value: str) -> str:
    """Return the value of an option, or the content of FILE if it is @FILE: a callback of click.

    Raises:
        click.BadParameter: the file cannot be read.
    """
    if not value.startswith(_FROM_FILE):
        return value
    try:
        return decode_text(Path(value.removeprefix(_FROM_FILE)).read_bytes(), value).strip()
    except (OSError, InputError) as error:
        raise click.BadParameter(f"The file {value[1:]} cannot be read: {error}.", param=option) from error


def pop_client_config(flags: dict[str, Any]) -> ClientConfig | None:
    """Return the client configuration that the flags give, or None without --server.

    The model is "" if no --model_name was given.

    Args:
        flags: parsed flags of the command; those of `server_flags` are removed.

    Raises:
        click.UsageError: flags exclude or require each other.
    """
    from serving.client import ClientConfig, Tls

    given = SimpleNamespace(**{name: flags.pop(name, None) for name in FLAGS})
    if given.model_version is not None and given.label is not None:
        raise click.UsageError("--model_version and --label exclude each other: give one of them.")
    headers = _read_headers(given.header or ()) if given.server is not None else {}
    if (given.tls_cert is None) != (given.tls_key is None):
        raise click.UsageError("--tls_cert and --tls_key go together: give both or neither.")
    encrypted = given.tls or given.tls_ca or given.tls_cert
    if given.server is None:
        return None
    return ClientConfig(
        given.server,
        model=given.model_name or "",
        version=given.model_version,
        label=given.label,
        timeout=given.timeout,
        headers=headers,
        tls=Tls(given.tls_ca, given.tls_cert, given.tls_key) if encrypted else None,
    )


def pop_required_client_config(flags: dict[str, Any]) -> ClientConfig:
    """Return the client configuration like `pop_client_config`; server and model are required.

    Args:
        flags: parsed flags of the command; those of `server_flags` are removed.

    Raises:
        click.UsageError: --server or --model_name is missing, or flags exclude or require each other.
    """
    return require_model_name(pop_client_config(flags))


def require_model_name(config: ClientConfig | None) -> ClientConfig:
    """Return the configuration unchanged, after checking that it names a server and a model.

    Raises:
        click.UsageError: --server or --model_name is missing.
    """
    if config is None:
        raise click.UsageError("--server HOST:PORT is required.")
    if not config.model:
        raise click.UsageError(
            f"--server requires --model_name NAME (or the environment variable {Variable.MODEL})."
        )
    return config


def _read_headers(given: Sequence[str]) -> Headers:
    """Return the headers of --header and of the environment, whose values stay where they are."""
    from serving.client.channel import SecretHeaders, encode_headers

    literal = [header.partition("=") for header in given if not header.startswith(_FROM_FILE)]
    if not all(equals for _, equals, _ in literal):  # without the value, which may be a secret
        raise click.UsageError("A --header is neither NAME=VALUE nor @FILE.")
    paths = [header.removeprefix(_FROM_FILE) for header in given if header.startswith(_FROM_FILE)]
    headers = SecretHeaders(
        tuple(str(Path(path).absolute()) for path in paths),
        HEADERS_VARIABLE if os.environ.get(HEADERS_VARIABLE) else "",
        {name: value for name, _, value in literal},
    )
    encode_headers(headers)  # reported here, not at the first call
    return headers if headers.files or headers.variable else headers.given


_OPTIONS = {
    "server": click.option(
        "--server",
        metavar="HOST:PORT",
        help="Address of the model server's gRPC port. dns:///NAME:PORT spreads requests over all pods of a "
        "headless service.",
    ),
    "model_name": click.option(
        "--model_name",
        envvar=Variable.MODEL,
        show_envvar=True,
        help="With --server: name of the model on the server.",
    ),
    "model_version": click.option(
        "--model_version",
        type=click.IntRange(min=0),
        help="With --server: version number to use.  [default: the server's choice, its newest version]",
    ),
    "label": click.option(
        "--label",
        shell_complete=complete_label,
        help="With --server: version label to use, such as stable or canary.",
    ),
    "timeout": click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        help="With --server: deadline of each request in seconds, retries included.",
    ),
    "header": click.option(
        "--header",
        multiple=True,
        metavar="NAME=VALUE|@FILE",
        help="With --server: header (gRPC metadata) to send with every call. Can be repeated. Other users "
        "of the machine see command lines: give secrets in a FILE, or in the environment variable "
        f"{HEADERS_VARIABLE}, one per line; workers read both where they run.",
    ),
    "tls": click.option("--tls", is_flag=True, help="With --server: encrypt the connection (TLS)."),
    "tls_ca": click.option(
        "--tls_ca",
        type=_FILE,
        help="PEM file of the CA certificates to verify the server with. Implies --tls.",
    ),
    "tls_cert": click.option(
        "--tls_cert",
        type=_FILE,
        help="PEM file of the client certificate, for servers that require one (mTLS).",
    ),
    "tls_key": click.option("--tls_key", type=_FILE, help="PEM file of the private key of --tls_cert."),
}

FLAGS = tuple(_OPTIONS)
"""Names of the flags of `server_flags`."""


def option_group(*options: Decorator) -> Decorator:
    """Return a decorator that adds several options, which --help shows in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


server_flags = option_group(*_OPTIONS.values())
"""Add the flags that name a server, a model and a version, and the connection flags."""

connection_flags = option_group(
    *(option for name, option in _OPTIONS.items() if name not in ("model_version", "label"))
)
"""Add the flags of `server_flags` except those that name a version."""


def forbid_server_flags(context: click.Context, *others: str) -> None:
    """Check that the command line has no flag that is of use only with --server.

    Args:
        context: context of the command.
        others: names of further flags to reject, besides those of `server_flags`.

    Raises:
        click.UsageError: one of them was given.
    """
    refuse(context, (*FLAGS, *others), "requires --server")


def refuse(context: click.Context, names: Iterable[str], why: str) -> None:
    """Raise UsageError if one of the options was given.

    Args:
        context: context of the command.
        names: names of the options, without dashes.
        why: rest of the sentence that starts with the option.
    """
    for name in names:
        if is_given(context, name):
            in_file = context.get_parameter_source(name) is click.core.ParameterSource.DEFAULT_MAP
            where = " It is set in the configuration file." if in_file else ""
            raise click.UsageError(f"--{name} {why}.{where}", context)


def is_given(context: click.Context, name: str) -> bool:
    """Return whether an option was given on the command line, or differs from its default in a file."""
    source = context.get_parameter_source(name)
    if source is click.core.ParameterSource.DEFAULT_MAP:
        return name in get_configuration(context).changed
    return source is click.core.ParameterSource.COMMANDLINE

"""Flags that say where a model's versions are, what configures their server, and how it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from serving.commands.server_options import connection_flags, pop_client_config
from serving.errors import InputError

if TYPE_CHECKING:
    from serving.registry.target import DeploymentTarget

F = TypeVar("F", bound=Callable[..., Any])

_BASE = click.option(
    "--model_base_path",
    required=True,
    metavar="DIR",
    help="The directory that the server reads: its numbered children are the versions. Or s3://..., gs://...",
)
_CONFIG = click.option(
    "--model_config_file",
    metavar="FILE",
    help="The server's model.config, as this machine sees it. Without it the newest version is live.",
)
_RELOAD = click.option(
    "--reload",
    is_flag=True,
    help="With --server: send it the configuration (HandleReloadConfigRequest). Needed where it does not "
    "read the file again by itself.",
)
_WAIT = click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="With --server: how long each step may take until the server follows.",
)


def target_flags(command: F) -> F:
    """Add the flags of a place that is looked at."""
    return _BASE(_CONFIG(connection_flags(command)))


def target_change_flags(command: F) -> F:
    """Add the flags of a place that is changed."""
    return _BASE(_CONFIG(_RELOAD(_WAIT(connection_flags(command)))))


@contextmanager
def open_target(flags: dict[str, Any]) -> Iterator[DeploymentTarget]:
    """The place that the flags name; they are taken out of a command's own.

    Raises:
        click.UsageError: flags that do not go together.
        InputError: an address that cannot be used, or no such configuration.
    """
    from serving.registry.stores.download import open_store
    from serving.registry.target import DeploymentTarget
    from serving.storage import text
    from serving.storage.address import parse_address

    base = parse_address(flags.pop("model_base_path"))
    given = flags.pop("model_config_file")
    config = parse_address(given) if given else None
    if config and not text.exists(config):
        raise InputError(
            f"{config} does not exist.",
            remedy="Give the file that the server was started with (--model_config_file).",
        )
    reload, wait = flags.pop("reload", False), flags.pop("wait", 300.0)
    server = pop_client_config(flags)
    if reload and not (server and config):
        raise click.UsageError("--reload needs --server and --model_config_file.")
    name = (server.model if server else "") or open_store(base).name
    place = DeploymentTarget(base, name, config, reload=reload, timeout=wait, say=_say)
    if server is None:
        yield place
        return
    server = replace(server, model=place.model)
    with server.client() as client:
        yield replace(place, client=client, label_client=lambda label: replace(server, label=label).client())


def _say(line: str) -> None:
    click.echo(line, err=True)

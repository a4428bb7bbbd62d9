"""Flags of a deployment target: base path, model configuration file, and optionally its server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from serving.commands.output import say
from serving.commands.server_options import connection_flags, option_group, pop_client_config
from serving.errors import InputError

if TYPE_CHECKING:
    from serving.registry.target import DeploymentTarget

_BASE = click.option(
    "--model_base_path",
    required=True,
    metavar="DIR",
    help="Base path of the model: a directory, s3://... or gs://..., whose numbered subdirectories are the "
    "versions. Give the one that the server was started with.",
)
_CONFIG = click.option(
    "--model_config_file",
    metavar="FILE",
    help="Model configuration file of the server (model.config): a path, s3://... or gs://... Needed for "
    "version labels; without it the newest version is live.",
)
_RELOAD = click.option(
    "--reload",
    is_flag=True,
    help="With --server: send the changed configuration to the server (HandleReloadConfigRequest). Use it "
    "if the server does not poll its configuration file.",
)
_WAIT = click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    metavar="SECONDS",
    help="With --server: seconds to wait, at each step, until the server has applied the change.",
)


target_flags = option_group(_BASE, _CONFIG, connection_flags)
"""Add the flags of a command that reads a deployment target."""

target_change_flags = option_group(_BASE, _CONFIG, _RELOAD, _WAIT, connection_flags)
"""Add the flags of a command that changes a deployment target."""


@contextmanager
def open_target(flags: dict[str, Any], label: str | None = None) -> Iterator[DeploymentTarget]:
    """Open the deployment target that the flags name, with a client if they name a server.

    Args:
        flags: parsed flags of the command; those of `target_flags` or `target_change_flags` are removed.
        label: version label that the command moves; None for none.

    Raises:
        click.UsageError: flags exclude each other.
        InputError: an address is not valid, or the configuration file does not exist.
    """
    from serving.client import Client
    from serving.registry.target import DeploymentTarget
    from serving.storage import files
    from serving.storage.address import base_name, parse_address, resolve

    if label and not flags["model_config_file"]:
        raise click.UsageError("--label requires --model_config_file, which holds the labels.")
    base = parse_address(flags.pop("model_base_path"))
    given = flags.pop("model_config_file")
    config = parse_address(given) if given else None
    if config and not files.exists(str(config)):
        raise InputError(
            f"{config} does not exist.",
            remedy="Give the --model_config_file that the server was started with.",
        )
    reload, wait = flags.pop("reload", False), flags.pop("wait", 300.0)
    server = pop_client_config(flags)
    if reload and not (server and config):
        raise click.UsageError("--reload requires --server and --model_config_file.")
    name = (server.model if server else "") or base_name(resolve(base))
    target = DeploymentTarget(base, name, config, reload=reload, timeout=wait, say=say)
    if server is None:
        yield target
        return
    server = replace(server, model=target.model)
    with Client(server) as client:
        yield replace(target, client=client, label_client=lambda label: Client(replace(server, label=label)))

"""`hubhead models`: list the versions of a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from serving.commands.common.command import Command
from serving.commands.output import Cell, echo, print_table
from serving.commands.target_options import open_target, target_flags

if TYPE_CHECKING:
    from serving.registry.inventory import Version


@click.command(
    cls=Command,
    short_help="List the versions of a model: labels, state, verdict, accuracy.",
    epilog="\b\nExamples:\n"
    "  hubhead models --model_base_path models/food\n"
    "  hubhead models --model_base_path /srv/models/food --model_config_file /srv/models/model.config\n"
    "  hubhead models --model_base_path /srv/models/food --server localhost:8500 --json",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@target_flags
def models(as_json: bool, **flags: Any) -> None:
    """List the versions of a model, newest first.

    The live version answers requests that name neither version nor label: the newest version that is
    served. With --server, states are those of the server. Otherwise they follow from
    --model_config_file; without it, from the default of a server: the newest version is served.
    """
    from serving.registry import inventory

    with open_target(flags) as target:
        versions = inventory.list_versions(target)
        unfinished = target.store.list_unfinished()
    if as_json:
        record = {
            "model": target.model,
            "base_path": str(target.base),
            "live": next((version.version for version in versions if version.live), None),
            "versions": [version.to_dict() for version in versions],
            "unfinished": unfinished,
        }
        echo(json.dumps(record, ensure_ascii=False))
        return
    for number, reason in unfinished.items():
        echo(f"{target.base}/{number} is not a complete version: {reason}.", err=True)
    if not versions:
        echo(f"{target.base} has no versions.")
        return
    columns = ("version", "labels", "state", "verdict", "accuracy", "created", "size")
    print_table(columns, map(_format_row, versions))


def _format_row(version: Version) -> list[Cell]:
    accuracy = version.accuracy
    state = version.state or ("served" if version.serves else "")
    row = (
        str(version.version),
        ", ".join(version.labels),
        f"live ({state})" if version.live else state,
        _format_verdict(version),
        f"{accuracy['value']:.1%} (N={accuracy['n']})" if accuracy else "",
        version.created or "",
        f"{version.size / 1e6:.1f} MB",
    )
    return [(text, "bold" if version.live else "") for text in row]


def _format_verdict(version: Version) -> str:
    if version.problem:
        return version.problem
    return f"{version.verdict}: {', '.join(version.failed)}" if version.failed else version.verdict

"""`hubhead models`: the versions of a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from serving.commands.target_options import open_target, target_flags

if TYPE_CHECKING:
    from rich.table import Table

    from serving.registry.inventory import Version


@click.command(
    short_help="List the versions of a model: labels, verdict, accuracy, what is live.",
    epilog="\b\nExamples:\n"
    "  hubhead models --model_base_path models/food\n"
    "  hubhead models --model_base_path /srv/models/food --model_config_file /srv/models/model.config\n"
    "  hubhead models --model_base_path /srv/models/food --server localhost:8500 --json",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@target_flags
def models(as_json: bool, **flags: Any) -> None:
    """List the versions of a model, newest first.

    "live" is what callers get who name neither version nor label: the newest of the versions that serve.
    With --server the states are the server's own; else they follow from the configuration, or, without
    one, from the rule of a server that is given the directory alone: the newest version serves.
    """
    from serving.registry import inventory

    with open_target(flags) as place:
        found = inventory.list_versions(place)
        unfinished = place.store.list_unfinished()
    if as_json:
        record = {
            "model": place.model,
            "base_path": str(place.base),
            "live": next((version.version for version in found if version.live), None),
            "versions": [version.to_dict() for version in found],
            "unfinished": unfinished,
        }
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    for number, why in unfinished.items():
        click.echo(f"{place.base}/{number} is no version here: {why}.", err=True)
    if not found:
        click.echo(f"{place.base} holds no version.")
        return
    from rich.console import Console

    Console().print(_table(found))


def _table(versions: list[Version]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("version", "labels", "serving", "verdict", "accuracy", "created", "size")
    for version in versions:
        state = version.state or ("serves" if version.serves else "")
        row = (
            str(version.version),
            ", ".join(version.labels),
            f"live ({state})" if version.live else state,
            _verdict(version),
            _accuracy(version),
            version.created or "",
            f"{version.size / 1e6:.1f} MB",
        )
        table.add_row(*map(Text, row), style="bold" if version.live else None)
    return table


def _verdict(version: Version) -> str:
    if version.problem:
        return version.problem
    return f"{version.verdict}: {', '.join(version.failed)}" if version.failed else version.verdict


def _accuracy(version: Version) -> str:
    if not version.accuracy:
        return ""
    return f"{version.accuracy['value']:.1%} (N={version.accuracy['n']})"

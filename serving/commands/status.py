"""`hubhead status`: what a model server has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from serving.commands.server_options import pop_required_client_config, server_flags
from serving.errors import ServerError

if TYPE_CHECKING:
    from serving.client import Metadata, TensorInfo, VersionStatus

_NOTHING_AVAILABLE = 1


@click.command(
    short_help="Show a server's versions of a model, and its signatures.",
    epilog="\b\nExamples:\n"
    "  hubhead status --server localhost:8500 --model_name food\n"
    "  hubhead status --server localhost:8500 --model_name food --wait 60",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Wait so long at most until the server answers and the model is available.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@server_flags
def status(wait: float | None, as_json: bool, **flags: Any) -> int:
    """Show the versions of a model on a server, their states, and the signatures of the one that answers.

    Ends with 0 where a version is available, else with 1.
    """
    with pop_required_client_config(flags).client() as client:
        if wait is not None:
            client.wait_until_ready(wait)
        versions = client.status()
        try:
            metadata, refusal = client.metadata(), ""
        except ServerError as error:  # nothing is loaded: the states above say why
            metadata, refusal = None, str(error)
    if as_json:
        record = {
            "model": client.model,
            "server": client.target,
            "versions": [{"version": v.version, "state": v.state.value, "error": v.error} for v in versions],
            "answering": metadata.version if metadata else None,
            "signatures": _signatures(metadata) if metadata else None,
        }
        click.echo(json.dumps(record, ensure_ascii=False))
    else:
        _show(versions, metadata, refusal)
    return 0 if any(version.state == "AVAILABLE" for version in versions) else _NOTHING_AVAILABLE


def _signatures(metadata: Metadata) -> dict[str, Any]:
    def named(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
        return {name: {"dtype": info.dtype, "shape": info.shape} for name, info in tensors.items()}

    return {
        name: {"inputs": named(signature.inputs), "outputs": named(signature.outputs)}
        for name, signature in metadata.signatures.items()
    }


def _show(versions: list[VersionStatus], metadata: Metadata | None, refusal: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table("version", "state", "error")
    for version in versions:
        colour = "green" if version.state == "AVAILABLE" else "yellow"
        table.add_row(str(version.version), Text(version.state.value, style=colour), Text(version.error))
    console.print(table)
    if metadata is None:
        console.print(Text(f"No version answers: {refusal}"))
        return
    console.print(f"Version {metadata.version} answers:")
    signatures = Table("signature", "inputs", "outputs")
    for name, signature in metadata.signatures.items():
        signatures.add_row(Text(name), _listed(signature.inputs), _listed(signature.outputs))
    console.print(signatures)


def _listed(tensors: Mapping[str, TensorInfo]) -> str:
    from rich.markup import escape

    return escape("\n".join(f"{name} {info}" for name, info in tensors.items()))

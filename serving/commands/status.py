"""`hubhead status`: versions and signatures of a model on a server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from serving.commands.common.command import Command
from serving.commands.output import echo, print_table
from serving.commands.server_options import pop_required_client_config, server_flags
from serving.errors import ExitCode, ServerError

if TYPE_CHECKING:
    from serving.client import Metadata, TensorInfo, VersionStatus


@click.command(
    cls=Command,
    short_help="Show the versions and signatures of a model on a server.",
    epilog="\b\nExamples:\n"
    "  hubhead status --server localhost:8500 --model_name food\n"
    "  hubhead status --server localhost:8500 --model_name food --wait 60",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Wait up to this many seconds until the server responds and the model is available.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@server_flags
def status(wait: float | None, as_json: bool, **flags: Any) -> int:
    """Show the versions of a model on a server and their states, and the signatures of the one that answers.

    hubhead serve also names the engine that runs the backbone, and its CPU.

    Exits with 0 if a version is available, otherwise with 1.
    """
    from serving.client import Client

    with Client(pop_required_client_config(flags)) as client:
        if wait is not None:
            client.wait_until_ready(wait)
        versions = client.status()
        try:
            metadata, error_text = client.metadata(), ""
        except ServerError as error:  # no version is loaded; the states have the reason
            metadata, error_text = None, str(error)
    if as_json:
        record = {
            "model": client.model,
            "server": client.target,
            "versions": [asdict(version) for version in versions],
            "answering": metadata.version if metadata else None,
            "engine": (metadata.engine or None) if metadata else None,
            "cpu": (metadata.cpu or None) if metadata else None,
            "signatures": asdict(metadata)["signatures"] if metadata else None,
        }
        echo(json.dumps(record, ensure_ascii=False))
    else:
        _print_tables(versions, metadata, error_text)
    return 0 if any(version.state == "AVAILABLE" for version in versions) else ExitCode.FAILED


def _print_tables(versions: list[VersionStatus], metadata: Metadata | None, error_text: str) -> None:
    colours = {"AVAILABLE": "green"}
    print_table(
        ("version", "state", "error"),
        (
            (str(version.version), (version.state.value, colours.get(version.state, "yellow")), version.error)
            for version in versions
        ),
    )
    if metadata is None:
        echo(f"No version answers: {error_text}")
        return
    if metadata.engine:
        echo(f"Engine of version {metadata.version}: {metadata.engine} on {metadata.cpu}")
    echo(f"Signatures of version {metadata.version}:")
    print_table(
        ("signature", "inputs", "outputs"),
        (
            (name, _format_tensors(signature.inputs), _format_tensors(signature.outputs))
            for name, signature in metadata.signatures.items()
        ),
    )


def _format_tensors(tensors: Mapping[str, TensorInfo]) -> str:
    return "\n".join(f"{name} {info}" for name, info in tensors.items())

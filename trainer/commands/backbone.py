"""The commands `hubhead backbone list`, `build` and `show`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from serving.commands.common.command import Group
from serving.commands.common.completers import select
from serving.commands.output import echo
from serving.commands.server_options import option_group
from serving.storage import files
from trainer.backbones.aliases import NAMES, SHORT, Alias
from trainer.commands.options import say

PIPE_WIDTH = 240
"""Width of the table, in characters, if the output is not a terminal."""

WITH_HANDLES = 200
"""Width, in characters, from which the table shows the handles without wrapping."""


_cache_option = click.option(
    "--cache_dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=files.cache_directory,
    show_default="$HUBHEAD_CACHE_DIR, else hubhead in the user's cache directory",
    help="Directory for downloads and the backbones built from them.",
)


def _parse_range(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = map(float, value.split(","))
    except ValueError as error:
        raise click.BadParameter("Give two numbers, as in 0,255.", context, parameter) from error
    return low, high


def complete_backbone(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the alias of a backbone, or a path if no alias begins so."""
    return select((*NAMES, *SHORT), incomplete) or [CompletionItem(incomplete, type="file")]


input_options = option_group(
    click.option(
        "--image_size",
        type=click.IntRange(min=1),
        help="Height and width of the input in pixels, for a backbone that accepts any size.  "
        "[default: the size it was trained with, else 224]",
    ),
    click.option(
        "--value_range",
        metavar="LOW,HIGH",
        callback=_parse_range,
        help="Range of pixel values that the backbone expects, from black to white. TensorFlow Hub "
        "modules take 0,1; models of keras.applications take -1,1 or 0,255.  [default: 0,1]",
    ),
)
"""Add --image_size and --value_range, for backbones that do not declare their input."""


@click.group(cls=Group, short_help="List, build and inspect pretrained backbones.")
def backbone() -> None:
    """List, build and inspect pretrained backbones.

    A backbone maps a photo to a feature vector. Name it by an alias, by the directory of a SavedModel,
    or by a TensorFlow Hub handle such as
    https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5.
    """


@backbone.command("list", epilog="\b\nExample:\n  hubhead backbone list efficientnet v2")
@click.argument("words", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_(words: tuple[str, ...], as_json: bool) -> None:
    """List the aliases whose name contains all WORDS; without WORDS, list all.

    Parameters are in millions, as published, including the ImageNet classifier. Handles are shown if
    the terminal is wide enough, in a pipe, and with --json.
    """
    chosen = {name: alias for name, alias in NAMES.items() if all(word in name for word in words)}
    if as_json:
        records = [{"alias": name, **asdict(alias)} for name, alias in chosen.items()]
        echo(json.dumps(records, ensure_ascii=False))
    else:
        _print_table(chosen)


def _print_table(chosen: dict[str, Alias]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    # In a pipe the width is free, and unwrapped handles can be found by grep.
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    wide = console.width >= WITH_HANDLES
    figures = [Column(name, no_wrap=True, justify="right") for name in ("input", "dimension", "parameters")]
    texts = [Column(name, overflow="fold") for name in ("origin", "handle")[: 1 + wide]]
    table = Table(Column("alias", no_wrap=True), *figures, *texts, box=box.SIMPLE)
    for name, alias in chosen.items():
        height, width = alias.image_size
        table.add_row(
            name,
            f"{height} x {width}",
            "" if alias.dimension is None else str(alias.dimension),
            "" if alias.parameters is None else f"{alias.parameters:g} M",
            *(alias.origin, alias.handle)[: 1 + wide],
        )
    console.print(table)
    for short, name in SHORT.items():
        if name in chosen:
            echo(f"  {short} is short for {name}")


@backbone.command()
@_cache_option
def build(cache_dir: Path) -> None:
    """Download and build the default backbone, and print its directory.

    Training does this on demand. Run it to prepare a machine for work without a network.
    """
    from trainer.backbones.hub import build as build_default

    echo(build_default(cache_dir, progress=say))


@backbone.command(
    epilog="\b\nExamples:\n"
    "  hubhead backbone show efficientnet_lite0\n"
    "  hubhead backbone show my_keras_model --value_range=-1,1"
)
@click.argument("handle", shell_complete=complete_backbone)
@input_options
@_cache_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def show(
    handle: str,
    image_size: int | None,
    value_range: tuple[float, float] | None,
    cache_dir: Path,
    as_json: bool,
) -> None:
    """Load the backbone HANDLE and show its input, output and fingerprint.

    The fingerprint is a hash of the weights and the graph: equal fingerprints mean equal features.
    """
    from trainer.backbones.hub import load
    from trainer.backbones.interface import InputOptions

    options = InputOptions((image_size, image_size) if image_size else None, value_range)
    loaded = load(handle, cache_dir, options=options, progress=say)
    height, width = loaded.image_size
    interface = loaded.interface
    if as_json:
        record = {
            "handle": handle,
            "image_size": [height, width],
            "value_range": list(interface.value_range),
            "dtype": interface.dtype.name,
            "dimension": loaded.dimension,
            "fingerprint": loaded.fingerprint,
            "path": loaded.path,
        }
        echo(json.dumps(record, ensure_ascii=False))
        return
    low, high = interface.value_range
    for name, value in (
        ("input", f"{interface.dtype.name} [N,{height},{width},3] in [{low:g},{high:g}]"),
        ("output", f"float32 [N,{loaded.dimension}]"),
        ("fingerprint", loaded.fingerprint),
        ("path", loaded.path),
    ):
        echo(f"{name:<12}{value}")

"""The commands `hubhead backbone list`, `build` and `show`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from serving.commands.common.command import Group
from serving.commands.common.completers import select
from serving.commands.output import echo
from serving.commands.server_options import option_group
from serving.storage import files
from trainer.backbones.aliases import BUILT, DEFAULT, NAMES, SHORT, Alias, find_alias
from trainer.backbones.interface import InputOptions
from trainer.backbones.keras_files.applications import APPLICATIONS
from trainer.backbones.pixel_values import MODES
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


def _complete_application(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return select(APPLICATIONS, incomplete)


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
        "modules take 0,1; for models of keras.applications see --preprocessing.  [default: 0,1]",
    ),
    click.option(
        "--preprocessing",
        type=click.Choice(list(MODES)),
        help="Pixel values that the backbone expects, by the modes of keras.applications: caffe (BGR less "
        "the means), tf (-1 to 1), torch (normalised channels), raw (0 to 255). Known for Keras files of its "
        "networks; excludes --value_range.",
    ),
    click.option(
        "--input_tensor",
        metavar="NAME",
        help="Tensor of the photos in a frozen graph (.pb), such as ResizeBilinear:0.",
    ),
    click.option(
        "--output_tensor",
        metavar="NAME",
        help="Tensor of the features in a frozen graph (.pb), such as pool_3:0.",
    ),
    click.option(
        "--keras_application",
        metavar="NAME",
        shell_complete=_complete_application,
        help="Network of keras.applications, such as resnet50, that a Keras file has the weights of, or that "
        "its model was built from. It also determines --preprocessing.",
    ),
)
"""Add the options for backbones that do not declare their input."""

INPUT_OPTIONS = (
    "image_size",
    "value_range",
    "preprocessing",
    "input_tensor",
    "output_tensor",
    "keras_application",
)
"""Names of `input_options`."""


def take_input_options(flags: dict[str, Any]) -> InputOptions:
    """Remove the values of `input_options` from parsed flags, and return them."""
    size, *others = (flags.pop(name) for name in INPUT_OPTIONS)
    return InputOptions((size, size) if size else None, *others)


@click.group(cls=Group, short_help="List, build and inspect pretrained backbones.")
def backbone() -> None:
    """List, build and inspect pretrained backbones.

    A backbone maps a photo to a feature vector. Name it by an alias, by the directory of a SavedModel,
    by a frozen graph or a Keras file, or by a TensorFlow Hub handle such as
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


@backbone.command(epilog="\b\nExample:\n  hubhead backbone build efficientnet_lite2")
@click.argument("name", type=click.Choice(list(BUILT)), default=DEFAULT)
@_cache_option
def build(name: str, cache_dir: Path) -> None:
    """Download and build the backbone NAME, by default efficientnet_lite0, and print its directory.

    Training does this on demand. Run it to prepare a machine for work without a network.
    """
    from trainer.backbones.hub import build as build_backbone

    echo(build_backbone(cache_dir, name, progress=say))


@backbone.command(
    epilog="\b\nExamples:\n"
    "  hubhead backbone show efficientnet_lite0\n"
    "  hubhead backbone show my_resnet50 --preprocessing caffe\n"
    "  hubhead backbone show my_saved_model --value_range=-1,1"
)
@click.argument("handle", shell_complete=complete_backbone)
@input_options
@_cache_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def show(handle: str, cache_dir: Path, as_json: bool, **given: Any) -> None:
    """Load the backbone HANDLE and show its input, output and fingerprint.

    The fingerprint is a hash of the weights and the graph: equal fingerprints mean equal features.
    """
    from trainer.backbones.hub import load

    loaded = load(handle, cache_dir, options=take_input_options(given), progress=say)
    height, width = loaded.image_size
    interface = loaded.interface
    alias = find_alias(handle)
    licence = alias.licence if alias else ""
    if as_json:
        record = {
            "handle": handle,
            "image_size": [height, width],
            "value_range": list(interface.value_range),
            "preprocessing": interface.channels or None,
            "dtype": interface.dtype.name,
            "dimension": loaded.dimension,
            "fingerprint": loaded.fingerprint,
            "path": loaded.path,
            "licence": licence,
        }
        echo(json.dumps(record, ensure_ascii=False))
        return
    low, high = interface.value_range
    normalised = f", channels normalised as {interface.channels}" if interface.channels else ""
    for name, value in (
        ("input", f"{interface.dtype.name} [N,{height},{width},3] in [{low:g},{high:g}]{normalised}"),
        ("output", f"float32 [N,{loaded.dimension}]"),
        ("fingerprint", loaded.fingerprint),
        ("path", loaded.path),
        *([("licence", licence)] if licence else []),
    ):
        echo(f"{name:<12}{value}")

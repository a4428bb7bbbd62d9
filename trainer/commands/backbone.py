"""The commands `backbone list`, `build` and `show`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from trainer.backbones import Alias

PIPE_WIDTH = 240
"""Characters a line when the output is no terminal."""

WITH_HANDLES = 200
"""Characters a line from which the handles fit in one piece."""


def _cache_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--cache_dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where downloads and what is made of them stay.  "
        "[default: $HUBHEAD_CACHE_DIR, else hubhead in the user's cache directory]",
    )(command)


def _two_numbers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = map(float, value.split(","))
    except ValueError as error:
        raise click.BadParameter("Give two numbers, as in 0,255.", context, parameter) from error
    return low, high


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--image_size and --value_range: what the user states of a backbone that does not say it."""
    for option in (
        click.option(
            "--value_range",
            metavar="LOW,HIGH",
            callback=_two_numbers,
            help="What a black and a white pixel are for the backbone: 0,1 for modules of TensorFlow Hub; "
            "models of keras.applications take -1,1 or 0,255.  [default: 0,1]",
        ),
        click.option(
            "--image_size",
            type=click.IntRange(min=1),
            help="Height and width of the photos, for a backbone that takes any.  "
            "[default: what it was trained for, else 224]",
        ),
    ):
        command = option(command)
    return command


@click.group(short_help="Look at the pretrained networks under a head.")
def backbone() -> None:
    """Look at the pretrained networks that a head is put on.

    A backbone turns a photo into a feature vector. It is named by an alias, by the directory of a
    SavedModel, or by a TensorFlow Hub handle such as
    https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5.
    """


@backbone.command("list", epilog="\b\nExample:\n  hubhead backbone list efficientnet v2")
@click.argument("words", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def list_(words: tuple[str, ...], as_json: bool) -> None:
    """List the aliases, or those that have all WORDS in their name.

    Parameters are millions and count the ImageNet classifier, as they are published. The handles
    are shown where a line is long enough for them, in a pipe, and by --json.
    """
    from trainer.backbones.aliases import NAMES

    chosen = {name: alias for name, alias in NAMES.items() if all(word in name for word in words)}
    if as_json:
        records = [{"alias": name, **asdict(alias)} for name, alias in chosen.items()]
        click.echo(json.dumps(records, ensure_ascii=False))
    else:
        _print_table(chosen)


def _print_table(chosen: dict[str, Alias]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from trainer.backbones.aliases import SHORT

    # In a pipe nothing has to fit a terminal, and a handle in one piece can be searched for.
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    wide = console.width >= WITH_HANDLES
    table = Table(box=box.SIMPLE)
    table.add_column("alias", no_wrap=True)
    for column in ("input", "dimension", "parameters"):
        table.add_column(column, no_wrap=True, justify="right")
    for column in ("where it comes from", "handle")[: 1 + wide]:
        table.add_column(column, overflow="fold")
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
            click.echo(f"  {short} is {name}")


@backbone.command()
@_cache_option
def build(cache_dir: Path | None) -> None:
    """Fetch and build the default backbone, and print its directory.

    Needed only to prepare a machine that will have no network: training does it on demand.
    """
    from trainer.backbones.hub import build as build_default

    click.echo(build_default(cache_dir or _default_cache(), progress=_progress))


@backbone.command(
    epilog="\b\nExamples:\n"
    "  hubhead backbone show efficientnet_lite0\n"
    "  hubhead backbone show my_keras_model --value_range=-1,1"
)
@click.argument("handle")
@input_options
@_cache_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(
    handle: str,
    image_size: int | None,
    value_range: tuple[float, float] | None,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Load the backbone HANDLE, and say what it takes and gives.

    The fingerprint stands for its weights and its graph: equal fingerprints give equal features.
    """
    from trainer.backbones.hub import load
    from trainer.backbones.interface import InputOptions

    options = InputOptions((image_size, image_size) if image_size else None, value_range)
    loaded = load(handle, cache_dir or _default_cache(), options=options, progress=_progress)
    height, width = loaded.image_size
    taken = loaded.interface
    if as_json:
        record = {
            "handle": handle,
            "image_size": [height, width],
            "value_range": list(taken.value_range),
            "dtype": taken.dtype.name,
            "dimension": loaded.dimension,
            "fingerprint": loaded.fingerprint,
            "path": loaded.path,
        }
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    low, high = taken.value_range
    for name, value in (
        ("input", f"{taken.dtype.name} [N,{height},{width},3] in [{low:g},{high:g}]"),
        ("output", f"float32 [N,{loaded.dimension}]"),
        ("fingerprint", loaded.fingerprint),
        ("path", loaded.path),
    ):
        click.echo(f"{name:<12}{value}")


def _default_cache() -> Path:
    from trainer.dataset.download import cache_directory

    return cache_directory()


def _progress(line: str) -> None:
    click.echo(line, err=True)

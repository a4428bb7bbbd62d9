"""The commands `backbone list`, `build` and `show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PIPE_WIDTH = 200
"""Characters a line when the output is no terminal."""


def _cache_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--cache_dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where downloads and what is made of them stay.  "
        "[default: $HUBHEAD_CACHE_DIR, else hubhead in the user's cache directory]",
    )(command)


@click.group(short_help="Look at the pretrained networks under a head.")
def backbone() -> None:
    """Look at the pretrained networks that a head is put on.

    A backbone turns a photo into a feature vector. It is named by an alias, by the directory of a
    SavedModel, or by a TensorFlow Hub handle such as
    https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5.
    """


@backbone.command("list")
def list_() -> None:
    """List the aliases."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from trainer.backbone.hub import ALIASES

    table = Table(box=box.SIMPLE)
    for column in ("alias", "input", "dimension"):
        table.add_column(column, no_wrap=True)
    for column in ("where it comes from", "handle"):
        table.add_column(column, overflow="fold")
    for name, alias in ALIASES.items():
        height, width = alias.image_size
        table.add_row(name, f"{height} x {width}", str(alias.dimension), alias.origin, alias.handle)
    # In a pipe nothing has to fit a terminal, and a handle in one piece can be searched for.
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


@backbone.command()
@_cache_option
def build(cache_dir: Path | None) -> None:
    """Fetch and build the default backbone, and print its directory.

    Needed only to prepare a machine that will have no network: training does it on demand.
    """
    from trainer.backbone.hub import build as build_default

    click.echo(build_default(cache_dir or _default_cache(), progress=_progress))


@backbone.command()
@click.argument("handle")
@_cache_option
def show(handle: str, cache_dir: Path | None) -> None:
    r"""Load the backbone HANDLE, and say what it takes and gives.

    The fingerprint stands for its weights and its graph: equal fingerprints give equal features.

    \b
    Example:
      hubhead backbone show efficientnet_lite0
    """
    from trainer.backbone.hub import load

    loaded = load(handle, cache_dir or _default_cache(), progress=_progress)
    height, width = loaded.image_size
    for name, value in (
        ("input", f"float32 [N,{height},{width},3] in [0,1]"),
        ("output", f"float32 [N,{loaded.dimension}]"),
        ("fingerprint", loaded.fingerprint),
        ("path", loaded.path),
    ):
        click.echo(f"{name:<12}{value}")


def _default_cache() -> Path:
    from trainer.fetch import cache_directory

    return cache_directory()


def _progress(line: str) -> None:
    click.echo(line, err=True)

"""What `hubhead train` and `hubhead export` have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

SETTINGS = {"show_default": True, "max_content_width": 100}


def preprocessing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The settings of the graph that people change; trainer.preprocessing.Preprocessing has them all."""
    for option in (
        click.option(
            "--max_bytes",
            type=click.IntRange(min=1),
            default=64 << 20,
            help="Photos of more bytes get the status too_large; part of the bundle.",
        ),
        click.option(
            "--max_pixels",
            type=click.IntRange(min=1),
            default=120_000_000,
            help="Photos of more pixels get the status too_large, from their header; part of the bundle. "
            "PNG, BMP, WebP and progressive JPEG stop at 50, GIF at 16 million all the same.",
        ),
        click.option(
            "--aspect",
            type=click.Choice(["stretch", "crop", "pad"]),
            default="stretch",
            help="What becomes of photos that are not square: scale each side by itself, as in retrain.py, "
            "take the middle, or add grey bars. Part of the bundle.",
        ),
    ):
        command = option(command)
    return command


tflite_quantize = click.option(
    "--tflite_quantize",
    type=click.Choice(["none", "float16", "dynamic"]),
    default="none",
    help="Of the TensorFlow Lite file: weights as they are, of half the size (float16), or of a quarter "
    "(dynamic: int8 weights, float32 between the layers). Arithmetic in int8 throughout is left out.",
)


def require_extra(extra: str, *modules: str) -> None:
    """Say which extra is missing before anything is done.

    Raises:
        HubheadError: one of the modules is not installed.
    """
    import importlib.util

    from serving.errors import HubheadError

    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise HubheadError(
            f"This needs {', '.join(missing)}, not installed.",
            remedy=f"Install it with: pip install 'hubhead[{extra}]'",
        )


def refuse(context: click.Context, names: list[str], why: str) -> None:
    """Say of which option given why it is wrong."""
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} {why}.")


def say(line: str) -> None:
    """Progress, on stderr."""
    click.echo(line, err=True)

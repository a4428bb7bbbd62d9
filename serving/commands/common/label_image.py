"""Support for the command lines of label_image.py, TensorFlow's example, in `hubhead predict`.

Flags that have an equivalent are applied; each of the others is accepted with one sentence that says why it
has no effect. None of them can be in a configuration file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from serving.commands.common.command import Command
from serving.commands.common.config_file import add_value, get_configuration
from serving.commands.output import echo
from serving.text import escape_controls

_GIVEN = "hubhead.label_image"
"""Key of the given flags in the context's metadata."""


@dataclass(frozen=True, slots=True)
class LabelImageFlag:
    """One flag of label_image.py.

    Attributes:
        name: flag name without dashes.
        why: why the flag has no effect; empty if it has one.
        to: what its value is taken as; empty if it has no effect.
    """

    name: str
    why: str = ""
    to: str = ""

    def describe(self) -> str:
        """Return how `hubhead predict` treats the flag, in a few words."""
        return f"taken as {self.to}" if self.to else f"no effect: {self.why}"

    def format_notice(self, value: str) -> str:
        """Return the sentence that is printed when the flag is given."""
        shown = f"--{self.name} {value} is" if self.to else f"--{self.name} has"
        return escape_controls(f"{shown} {self.describe()}.", newlines=True)


_SIZE = "the model resizes photos to its own input size"
_SCALE = "the model scales the pixels as its backbone needs it"
_SIGNATURE = "inputs and outputs are found by the signature serving_default"

FLAGS = (
    LabelImageFlag("image", to="a photo"),
    LabelImageFlag("graph", to="--model"),
    LabelImageFlag("labels", "the model contains its labels"),
    LabelImageFlag("input_height", _SIZE),
    LabelImageFlag("input_width", _SIZE),
    LabelImageFlag("input_mean", _SCALE),
    LabelImageFlag("input_std", _SCALE),
    LabelImageFlag("input_layer", _SIGNATURE),
    LabelImageFlag("output_layer", _SIGNATURE),
)
"""All flags of label_image.py, of tensorflow/tensorflow and of tensorflow-for-poets-2."""


def _remember(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Keep the value of a flag for `invoke`: a callback of click."""
    if value is not None and not context.resilient_parsing:
        context.meta.setdefault(_GIVEN, {})[option.name] = value


class LabelImageCommand(Command):
    """Command with an argument `photos` and an option `--model` that also accepts label_image.py's flags."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params += [
            click.Option([f"--{flag.name}"], hidden=True, expose_value=False, callback=_remember)
            for flag in FLAGS
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Explain the given flags, translate them, and call the function."""
        given: dict[str, str] = ctx.meta.get(_GIVEN, {})
        if "image" in given:
            ctx.params["photos"] = (given["image"], *ctx.params["photos"])
        if "graph" in given:
            _use_graph(ctx, given["graph"])
        for flag in FLAGS:
            if flag.name in given:
                echo(flag.format_notice(given[flag.name]), err=True)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of the command, then the paragraph of the accepted flags."""
        super().format_options(ctx, formatter)
        with formatter.section("Flags of label_image.py"):
            shown = ", ".join(f"--{flag.name}" for flag in FLAGS)
            formatter.write_text(f"Also accepted, with a sentence about each: {shown}.")


def _use_graph(context: click.Context, graph: str) -> None:
    """Take the value of --graph as that of --model.

    Raises:
        click.UsageError: it is a file, such as a frozen graph, or --model is given too.
    """
    if context.params["model"] is not None:
        raise click.UsageError(
            "--graph is taken as --model, which is given too: remove one of them.", context
        )
    if Path(graph).is_file():
        raise click.UsageError(
            f"--graph {graph} is a file, such as a frozen graph; hubhead predict loads SavedModels. "
            "Give the directory that hubhead train printed, such as models/food: --model models/food.",
            context,
        )
    context.params["model"] = Path(graph)
    add_value(get_configuration(context), "model", context.params["model"])

"""Support for the command lines of retrain.py and make_image_classifier in `hubhead train`.

Their command lines keep working: flags that hubhead has are used, and every other flag is accepted with one
sentence that says what happens instead, so that nothing is ignored silently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import click

from serving.errors import InputError
from trainer.backbones.aliases import resolve_architecture
from trainer.commands.retrain_flag_table import ABSENT, LEGACY_FLAGS, LegacyFlag, Support


def explain_flags(given: Mapping[str, object]) -> list[str]:
    """Return one sentence for each given flag that is not unchanged, in the order of the table.

    Args:
        given: values of the flags on the command line by name. Names that the table does not contain and
            switches that are turned off are skipped.

    Raises:
        InputError: a value is invalid.
    """
    sentences = []
    for flag in LEGACY_FLAGS.values():
        if flag.support is not Support.UNCHANGED and given.get(flag.name) not in (None, False):
            sentences.append(flag.format_notice(given[flag.name]))
            if flag.name == "architecture":
                note = resolve_architecture(str(given[flag.name])).note
                sentences += [note] if note else []
    return sentences


def translate_flags(given: Mapping[str, object]) -> dict[str, object]:
    """Translate the given aliases to the flags of `hubhead train`; return their values by name.

    Raises:
        InputError: a value is invalid.
    """
    return {
        flag.to: flag.convert(given[flag.name])
        for flag in LEGACY_FLAGS.values()
        if flag.convert and given.get(flag.name) is not None
    }


class LegacyFlagOption(click.Option):
    """Hidden option for a flag of the table."""


def retrain_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command accept all flags of the table, in addition to the options that it declares itself.

    Must be the first decorator below @click.command. The command's function does not receive these flags:
    aliases are translated to its own options, and a sentence for each flag goes to stderr.
    """
    declared = {parameter.name for parameter in getattr(command, "__click_params__", ())}
    added = [
        flag
        for flag in LEGACY_FLAGS.values()
        if flag.name not in declared and flag.support is not Support.UNCHANGED
    ]

    @functools.wraps(command)
    def wrapped(*arguments: Any, **values: Any) -> Any:
        context = click.get_current_context()
        given = {}
        for flag in added:
            value, negated = values.pop(flag.name), values.pop(f"no{flag.name}", None)
            if negated:
                given[flag.name] = False
            elif _is_given(context, flag.name):
                given[flag.name] = value
        try:
            sentences, translated = explain_flags(given), translate_flags(given)
        except InputError as error:
            raise click.UsageError(str(error)) from error
        for name, value in translated.items():
            if _is_given(context, name):
                alias = next(flag.name for flag in added if flag.name in given and flag.to == name)
                raise click.UsageError(
                    f"--{alias} is taken as --{name}, which is given too: remove one of them."
                )
            values[name] = value
        for sentence in sentences:
            click.echo(sentence, err=True)
        return command(*arguments, **values)

    for flag in added:
        for option in _build_options(flag):
            option(wrapped)
    return click.option(
        "--help-retrain",
        "--help_retrain",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_table,
        help="Show how the flags of retrain.py and make_image_classifier are treated, and exit.",
    )(wrapped)


class RetrainCommand(click.Command):
    """Command with `retrain_options`, whose --help names all accepted flags in one paragraph."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of the command, then the paragraph of the accepted flags."""
        super().format_options(ctx, formatter)
        added = {option.name for option in self.params if isinstance(option, LegacyFlagOption)}
        shown = ", ".join(f"--{name}" for name in LEGACY_FLAGS if name in added)
        with formatter.section("Flags of retrain.py and make_image_classifier"):
            formatter.write_text(f"Also accepted; --help-retrain explains each: {shown}.")


def _build_options(flag: LegacyFlag) -> list[Callable[..., Any]]:
    """Return the click options of a flag; absl's switches take a value and have a --no form."""
    attributes: dict[str, Any] = {"cls": LegacyFlagOption, "hidden": True, "default": None}
    if flag.kind is bool and flag.classifier is ABSENT:
        return [click.option(f"--{flag.name}", is_flag=True, **attributes)]
    if flag.kind is bool:
        switch: dict[str, Any] = {"type": bool, "is_flag": False, "flag_value": "true"}
        return [
            click.option(f"--{flag.name}", **switch, **attributes),
            click.option(f"--no{flag.name}", is_flag=True, **attributes),
        ]
    kind = click.Choice(flag.choices) if flag.choices else flag.kind
    return [click.option(f"--{flag.name}", type=kind, **attributes)]


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _print_table(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("flag", no_wrap=True)
    for column in ("default in retrain.py", "in make_image_classifier", "hubhead train"):
        table.add_column(column, overflow="fold")
    for flag in LEGACY_FLAGS.values():
        table.add_row(
            f"--{flag.name}",
            _format_default(flag.retrain),
            _format_default(flag.classifier),
            flag.describe(),
        )
    Console().print(table)
    context.exit()


def _format_default(default: Any) -> str:
    return "none" if default in (None, "") else str(default)

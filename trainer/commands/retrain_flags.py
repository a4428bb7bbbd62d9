"""Support for the command lines of retrain.py and make_image_classifier in `hubhead train`.

Their command lines keep working: flags that hubhead has are used, and every other flag is accepted with one
sentence that says what happens instead, so that nothing is ignored silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from serving.commands.common.command import Command
from serving.commands.common.config_file import add_value, get_configuration
from serving.commands.output import echo
from serving.commands.server_options import is_given
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


class RetrainCommand(Command):
    """Command that also accepts all flags of the table, in addition to the options that it declares itself.

    Its function does not receive them: aliases are translated to its own options, and a sentence for each
    flag goes to stderr. Its --help names all accepted flags in one paragraph.
    """

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        declared = {parameter.name for parameter in self.params}
        self._accepted = [
            flag
            for flag in LEGACY_FLAGS.values()
            if flag.name not in declared and flag.support is not Support.UNCHANGED
        ]
        explain = click.Option(
            ["--help-retrain", "--help_retrain"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_table,
            help="Show how the flags of retrain.py and make_image_classifier are treated, and exit.",
        )
        hidden = [option for flag in self._accepted for option in _build_options(flag)]
        self.params = [explain, *self.params, *hidden]

    def invoke(self, ctx: click.Context) -> Any:
        """Explain the given flags of the table, translate the aliases, and call the function."""
        given = {}
        for flag in self._accepted:
            value, negated = ctx.params.pop(flag.name), ctx.params.pop(f"no{flag.name}", None)
            if negated:
                given[flag.name] = False
            elif is_given(ctx, flag.name):
                given[flag.name] = value
        try:
            sentences, translated = explain_flags(given), translate_flags(given)
        except InputError as error:
            raise click.UsageError(str(error)) from error
        for name, value in translated.items():
            if is_given(ctx, name):
                alias = next(flag.name for flag in self._accepted if flag.name in given and flag.to == name)
                raise click.UsageError(
                    f"--{alias} is taken as --{name}, which is given too: remove one of them."
                )
            ctx.params[name] = value
            add_value(get_configuration(ctx), name, value)
        for sentence in sentences:
            echo(sentence, err=True)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of the command, then the paragraph of the accepted flags."""
        super().format_options(ctx, formatter)
        shown = ", ".join(f"--{flag.name}" for flag in self._accepted)
        with formatter.section("Flags of retrain.py and make_image_classifier"):
            formatter.write_text(f"Also accepted; --help-retrain explains each: {shown}.")


def _build_options(flag: LegacyFlag) -> list[click.Option]:
    """Return the hidden options of a flag; absl's switches take a value and have a --no form."""
    hidden: dict[str, Any] = {"hidden": True, "default": None}
    if flag.kind is not bool:
        kind = click.Choice(flag.choices) if flag.choices else flag.kind
        return [click.Option([f"--{flag.name}"], type=kind, **hidden)]
    if flag.classifier is ABSENT:
        return [click.Option([f"--{flag.name}"], is_flag=True, **hidden)]
    return [
        click.Option([f"--{flag.name}"], type=bool, is_flag=False, flag_value="true", **hidden),
        click.Option([f"--no{flag.name}"], is_flag=True, **hidden),
    ]


def _print_table(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    names = ("default in retrain.py", "in make_image_classifier", "hubhead train")
    columns = [Column(name, overflow="fold") for name in names]
    table = Table(Column("flag", no_wrap=True), *columns, box=box.SIMPLE)
    for flag in LEGACY_FLAGS.values():
        defaults = (
            "none" if value in (None, "") else str(value) for value in (flag.retrain, flag.classifier)
        )
        table.add_row(f"--{flag.name}", *defaults, flag.describe())
    Console().print(table)
    context.exit()

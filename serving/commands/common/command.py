"""Class of all commands: options that every command has, configuration files and their output."""

from __future__ import annotations

import copy
import logging
import math
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from serving.commands.common import config_file
from serving.commands.output import Verbosity, echo, use_verbosity
from serving.errors import HubheadError
from serving.text import redact_arguments

_log = logging.getLogger(__name__)

_PRINTS = "hubhead.prints_configuration"


def _use_config(context: click.Context, _option: click.Parameter, file: Path | None) -> None:
    """Take the values of a configuration file as defaults: a callback of click."""
    if file is None or context.resilient_parsing:
        return
    defaults = config_file.read_defaults(context, file)
    configuration = config_file.Configuration(config_file.name_command(context))
    for option in config_file.list_options(context.command).values():
        # A file made by --print_config has all options; those with their default count as not given.
        if option.name in defaults and defaults[option.name] != _get_default(option, context):
            configuration.changed.add(option.name)
    config_file.set_configuration(context, configuration)
    context.default_map = {**(context.default_map or {}), **defaults}


def _get_default(option: click.Option, context: click.Context) -> Any:
    """Return the default of an option as it is in a configuration file."""
    default = option.consume_value(context, {})[0]
    if option.is_flag and not default:
        return False
    return str(default) if isinstance(default, str | Path) else default


def build_common_options() -> list[click.Option]:
    """Return the options that every command has."""
    return [
        click.Option(
            ["--config"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=_use_config,
            help="TOML file with options of this command in the table that is named like it. Options on the"
            " command line take precedence.",
        ),
        click.Option(
            ["--print_config"],
            is_flag=True,
            help="Print the options of this command as TOML for --config, and exit.",
        ),
        click.Option(
            ["--quiet"],
            is_flag=True,
            help="Print results, warnings and errors alone, without progress.",
        ),
        click.Option(
            ["--verbose"],
            is_flag=True,
            help="Also print what is done and how long it takes, and the traceback of an error.",
        ),
    ]


COMMON = ("config", "print_config", "quiet", "verbose")
"""Names of the options that every command has."""


class _PathText(click.types.StringParamType):
    """Text that is a path or an address, which the shell completes as a path."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete paths."""
        del ctx, param
        return [CompletionItem(incomplete, type=self._kind)]


class Command(click.Command):
    """Command with the options that every command has."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params = [*self.params, *build_common_options()]
        for parameter in self.params:
            names = set((parameter.metavar or "").split("|"))
            if parameter.type is click.STRING and names & {"DIR", "DIRECTORY", "FILE", "BUNDLE"}:
                parameter.type = _PathText("file" if "FILE" in names else "dir")

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters; none of them is required where only the configuration is printed."""
        parameters = super().get_params(ctx)
        if not ctx.meta.get(_PRINTS):
            return parameters
        optional = [copy.copy(parameter) for parameter in parameters]
        for parameter in optional:
            parameter.required = False
        return optional

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and resolve the configuration."""
        given: dict[str, Any] = {}
        if not ctx.resilient_parsing and not (not args and self.no_args_is_help):
            given = self.make_parser(ctx).parse_args(list(args))[0]
            ctx.meta[_PRINTS] = "print_config" in given
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            self._reject_nan(ctx)
            config_file.set_configuration(ctx, config_file.resolve(ctx, given))
        return rest

    def _reject_nan(self, context: click.Context) -> None:
        """Raise BadParameter if a number is NaN, which is within every range and passes every comparison."""
        for parameter in self.params:
            value = context.params.get(parameter.name or "")
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and math.isnan(number) for number in numbers):
                raise click.BadParameter("nan is not a number.", context, parameter)

    def invoke(self, ctx: click.Context) -> Any:
        """Print the configuration, or call the function of the command."""
        prints = ctx.params.pop("print_config", False)
        verbosity = _choose_verbosity(ctx)
        if prints:
            echo(config_file.get_configuration(ctx).to_toml(), nl=False)
            return None
        with use_verbosity(verbosity):
            _log.debug("hubhead %s, Python %s", metadata.version("hubhead"), platform.python_version())
            _log.debug("arguments: %s", " ".join(redact_arguments(sys.argv[1:])))
            start = time.perf_counter()
            try:
                return super().invoke(ctx)
            except (HubheadError, OSError):
                _log.debug("Traceback of the error:", exc_info=True)
                raise
            finally:
                _log.debug("ended after %.1f s", time.perf_counter() - start)


def _choose_verbosity(context: click.Context) -> Verbosity:
    """Return the verbosity; of the two options, that of the command line takes precedence over the file's.

    Raises:
        click.UsageError: both were given there.
    """
    chosen = {name for name in ("quiet", "verbose") if context.params.pop(name, False)}
    on_command_line = {
        name
        for name in chosen
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    chosen = on_command_line or chosen
    if len(chosen) == 2:
        raise click.UsageError("--quiet and --verbose exclude each other: give one of them.", context)
    return Verbosity[chosen.pop().upper()] if chosen else Verbosity.NORMAL


class Group(click.Group):
    """Group whose commands have the options that every command has.

    The tables of a configuration file are checked against the names of its commands.
    """

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; an option of the commands before the command is an error that says so."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name.lstrip("-") not in COMMON:
                raise
            place = f"{ctx.command_path} COMMAND {error.option_name}"
            raise click.UsageError(f"{error.option_name} is an option of commands: {place}", ctx) from error

"""Configuration files: the options of commands as TOML tables, read, checked and written.

A table is named like its command (`[train]`, `[embeddings.check]`), a key like its option without dashes.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from serving.errors import InputError
from serving.storage.text_lines import decode_text
from serving.text import redact

SECRETS = frozenset({"header", "metrics_push"})
"""Options whose values may be secret. `@FILE` is not, since it only names the file."""

_NOT_CONFIGURABLE = frozenset({"config", "print_config", "version"})

_CONFIGURATION = "hubhead.configuration"


@dataclass
class Configuration:
    """Resolved options of a command.

    Attributes:
        command: words that name the command, such as `("embeddings", "check")`.
        values: value of each option that has one, as a TOML value by its name; without secrets.
        unset: names of the options without a value.
        secret: names of the options whose values were left out.
        changed: parameters that the configuration file sets to another value than their default.
    """

    command: tuple[str, ...]
    values: dict[str, Any] = field(default_factory=dict)
    unset: list[str] = field(default_factory=list)
    secret: list[str] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)

    def to_tables(self, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the values, or the given ones, in the tables of a configuration file."""
        tables: dict[str, Any] = dict(self.values if values is None else values)
        for name in reversed(self.command):
            tables = {name: tables}
        return tables

    def to_toml(self) -> str:
        """Return a configuration file that gives the command these options."""
        import tomli_w

        lines = [tomli_w.dumps(self.to_tables())]
        for names, what in ((self.unset, "Not set"), (self.secret, "Left out, since it may be secret")):
            lines += [f"# {what}: {', '.join(names)}\n"] if names else []
        return "".join(lines)


def get_configuration(context: click.Context) -> Configuration:
    """Return the configuration of the command that runs; an empty one if it is not a command of hubhead."""
    found = context.meta.get(_CONFIGURATION)
    return found if isinstance(found, Configuration) else Configuration(name_command(context))


def set_configuration(context: click.Context, configuration: Configuration) -> None:
    """Remember the configuration of the command that runs."""
    context.meta[_CONFIGURATION] = configuration


def describe_configuration(context: click.Context, *, omitted: Collection[str] = ()) -> dict[str, Any]:
    """Return the resolved options of the command as JSON values, for the records of what it makes.

    Secrets are left out.

    Args:
        context: context of the command.
        omitted: names of options to leave out, such as paths of this machine.
    """
    found = get_configuration(context)
    values = {name: value for name, value in found.values.items() if name not in omitted}
    tables: dict[str, Any] = redact(found.to_tables(values))
    return tables


def name_command(context: click.Context) -> tuple[str, ...]:
    """Return the words that name a command, without the program; the command alone if it is the program."""
    chain = _list_contexts(context)
    names = [one.info_name or one.command.name or "" for one in chain[1:]]
    return tuple(names) or (context.command.name or "",)


def key_of(option: click.Option) -> str:
    """Return the key of an option in a configuration file."""
    return option.opts[-1].lstrip("-").replace("-", "_")


def list_options(command: click.Command) -> dict[str, click.Option]:
    """Return the options of a command that a configuration file may set, by their key."""
    options = (one for one in command.params if isinstance(one, click.Option) and one.expose_value)
    return {key_of(one): one for one in options if one.name not in _NOT_CONFIGURABLE}


def read_defaults(context: click.Context, file: Path) -> dict[str, Any]:
    """Return the values that a configuration file has for the command, by the name of the parameter.

    Raises:
        click.UsageError: the file cannot be read, or has an unknown table or key, or a wrong value.
    """
    table = _find_table(context, file, _read(file))
    options = list_options(context.command)
    title = f"{file}: [{'.'.join(name_command(context))}]"
    arguments = {one.name for one in context.command.params if isinstance(one, click.Argument)}
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        if key in arguments:
            raise click.UsageError(f"{title} {key} is an argument: give it on the command line.", context)
        if key not in options:
            raise click.UsageError(f"{title} has the unknown key {key!r}.{_suggest(key, options)}", context)
        try:
            _check(options[key], value, context)
        except ValueError as error:
            shown = "***" if key in SECRETS else _show(value)
            raise click.UsageError(f"{title} {key} = {shown}: {error}", context) from error
        defaults[options[key].name or key] = value
    return defaults


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(decode_text(file.read_bytes(), str(file)))
    except OSError as error:
        raise click.UsageError(f"The configuration file {file} cannot be read: {error.strerror}.") from error
    except InputError as error:  # characters that are not in its encoding
        raise click.UsageError(str(error)) from error
    except ValueError as error:
        raise click.UsageError(f"The configuration file {file} is not TOML: {error}.") from error
    except RecursionError as error:
        raise click.UsageError(f"The configuration file {file} has too many lists in lists.") from error


def _find_table(context: click.Context, file: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Return the table of a command; tables of other commands are not read, but have to have known names."""
    chain, table = _list_contexts(context), document
    where = ""
    for parent, child in pairwise(chain):
        group = parent.command
        assert isinstance(group, click.Group)
        # A program such as python -m batch knows some of the commands only.
        known = group.list_commands(parent) if group.command_class else table.keys()
        for key, value in table.items():
            if not isinstance(value, dict):
                raise click.UsageError(
                    f"{file}: {where}{key} = {_show(value)} belongs in the table of a command, such as"
                    f" [{'.'.join(name_command(context))}].",
                    context,
                )
            if key not in known:
                raise click.UsageError(
                    f"{file}: [{where}{key}] is not a command.{_suggest(key, known)}", context
                )
        name = child.info_name or ""
        table = table.get(name, {})
        where += f"{name}."
    if len(chain) == 1:  # the command is the program, as in python -m batch
        table = document.get(context.command.name or "", {})
    if not isinstance(table, dict):
        raise click.UsageError(f"{file}: {context.command.name} is not a table.", context)
    return table


def _list_contexts(context: click.Context) -> list[click.Context]:
    chain = [context]
    while chain[0].parent is not None:
        chain.insert(0, chain[0].parent)
    return chain


def _check(option: click.Option, value: Any, context: click.Context) -> None:
    """Check that an option accepts a value.

    Raises:
        ValueError: it does not; the text says what it expects.
    """
    if option.multiple or option.nargs != 1:
        if not isinstance(value, list):
            raise ValueError("expected a list, since the option can be repeated.")
        for one in value:
            _check_scalar(option, one)
    else:
        _check_scalar(option, value)
    if isinstance(option.type, click.File):
        return  # a conversion would open it
    try:
        option.process_value(context, value)
    except click.BadParameter as error:
        raise ValueError(error.message) from error


def _check_scalar(option: click.Option, value: Any) -> None:
    kind = option.type
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(kind, type(click.BOOL)):
        accepted, expected = isinstance(value, bool), "true or false"
    elif isinstance(kind, type(click.INT)):
        accepted, expected = is_number and isinstance(value, int), "a whole number"
    elif isinstance(kind, type(click.FLOAT)):
        accepted, expected = is_number and not math.isnan(value), "a number"
    else:
        accepted, expected = isinstance(value, str), "a text in quotes"
    if not accepted:
        raise ValueError(f"expected {expected}.")


def _show(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str | int):  # in JSON as in TOML
        return str(redact(json.dumps(value, ensure_ascii=False)))
    return "a list" if isinstance(value, list) else "a table" if isinstance(value, dict) else "a date or time"


def _suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the known names that resemble a name; all of them if none does."""
    names = sorted(known)
    near = difflib.get_close_matches(name.replace("-", "_"), names, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else f" Known names: {', '.join(names)}."


def resolve(context: click.Context, given: Mapping[str, Any]) -> Configuration:
    """Return the resolved configuration of a command whose parameters were parsed.

    Args:
        context: context of the command.
        given: values of the command line by parameter, as the parser returned them.
    """
    found = get_configuration(context)
    for key, option in list_options(context.command).items():
        if option.hidden:
            continue
        value = context.params.get(option.name or "")
        if option.callback or isinstance(option.type, click.File):  # its value is not that of the file
            value = option.consume_value(context, given)[0]
        if value == option.default == "":
            value = None
        add_value(found, key, value)
    return found


def add_value(configuration: Configuration, key: str, value: Any) -> None:
    """Add the value of an option to a configuration, which has not been asked for it yet or has another."""
    for names in (configuration.unset, configuration.secret):
        if key in names:
            names.remove(key)
    shown = _to_toml(value)
    texts = shown if isinstance(shown, list) else [shown]
    if shown is None or shown == []:
        configuration.unset.append(key)
    elif any(_is_secret(key, text) for text in texts):
        configuration.secret.append(key)
    else:
        configuration.values[key] = shown


def _is_secret(key: str, value: Any) -> bool:
    if not isinstance(value, str) or value.startswith("@"):
        return False
    return (key in SECRETS and value != "") or redact(value) != value


def _to_toml(value: Any) -> Any:
    """Return a value of an option as a TOML value; None if it has none."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_to_toml(one) for one in value]
    if isinstance(value, str):
        return str(value)  # not an enumeration
    return value if isinstance(value, bool | int | float) else None

"""Tables of the keys of JSON records, from the types and docstrings of their classes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from tests.support.reference.tables import code, format_table

Links = Mapping[Any, str]

_JSON_TYPES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    NoneType: "null",
    dict: "object",
    list: "array",
    Any: "any",
}


def describe_record(
    record: type,
    links: Links | None = None,
    *,
    without: Sequence[str] = (),
    stored_as: Mapping[str, tuple[str, str]] | None = None,
) -> str:
    """Return a table of the keys of a record: name, JSON type, meaning.

    Args:
        record: TypedDict or dataclass whose docstring has the section Attributes.
        links: link to the table of a nested record, by its class or by its key.
        without: keys that are not stored.
        stored_as: type and meaning of keys that are stored in another form, or in addition.

    Raises:
        ValueError: a key has no meaning in the docstring.
    """
    hints = get_type_hints(record, include_extras=True)
    meanings = dict(_list_meanings(record))
    if missing := sorted(hints.keys() - meanings.keys() - set(without)):
        raise ValueError(f"{record.__name__} does not document {', '.join(missing)}")
    described = {
        name: (_format_type(hint, links or {}), meanings[name])
        for name, hint in hints.items()
        if name not in without
    } | dict(stored_as or {})
    rows = []
    for name, (kind, meaning) in described.items():
        if name in (links or {}):
            kind = f"[object]({(links or {})[name]})"
        rows.append((code(name), kind, _format_meaning(meaning)))
    return format_table(("key", "type", "meaning"), rows)


def _list_meanings(record: type) -> Iterator[tuple[str, str]]:
    """Yield the names and meanings in the section Attributes of a record."""
    text = inspect.cleandoc(record.__doc__ or "")
    section = re.search(r"^Attributes:\n((?: {4}.*\n?|\n)*)", text, re.MULTILINE)
    attribute = re.compile(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", re.MULTILINE)
    for match in attribute.finditer(section[1] if section else ""):
        for name in match[1].split(", "):
            yield name, " ".join(match[2].split())


def _format_type(hint: Any, links: Links) -> str:
    """Return the JSON type of an annotation."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in links:
        return f"[object]({links[hint]})"
    if origin in (Required, NotRequired):
        return _format_type(arguments[0], links) + (", optional" if origin is NotRequired else "")
    if origin in (Union, UnionType):
        return " or ".join(_format_type(argument, links) for argument in arguments)
    if origin is Literal:
        return " or ".join(code(str(argument)) for argument in arguments)
    if origin in (list, tuple):
        return f"array of {_plural(_format_type(arguments[0], links))}"
    if origin is dict and arguments[1] is not Any:
        return f"object of {_plural(_format_type(arguments[1], links))}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(code(str(member.value)) for member in hint)
    if is_typeddict(hint) or is_dataclass(hint):
        return "object"
    return _JSON_TYPES[origin or hint]


def _plural(name: str) -> str:
    if name.startswith("["):
        return name.replace("[object]", "[objects]")
    return name if name == "any" else f"{name}s"


def _format_meaning(text: str) -> str:
    """Return a meaning as a sentence, with JSON's word for missing values."""
    text = re.sub(r"\b(None|NaN)\b", "null", text)
    return text[:1].upper() + text[1:].rstrip(".") + "."

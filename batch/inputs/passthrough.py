"""The other columns of a manifest, which pass through to the rows of the scores.

On their way their values stand in lines of JSON, and their types are settled when the last
line is read: those of Parquet as they are, those of JSON lines by their values, and those of
CSV as whole numbers or numbers only where the text of every cell is the number's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["null", "bool", "int", "float", "text", "json"]

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")  # no leading zero: that is a code, not a number
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_INT64 = range(-(1 << 63), 1 << 63)


class PassThroughColumns:
    """The pass-through columns of a source, learnt line by line.

    Args:
        earlier: types, by name, that rows beside these have: where the values allow it these get the
            same, such as text for codes that happen to be numbers this time.

    Attributes:
        names: of the columns, in the order in which they came.
    """

    def __init__(self, earlier: Mapping[str, str] | None = None) -> None:
        self._earlier = earlier or {}
        self.names: list[str] = []
        self._at: dict[str, int] = {}
        self._kinds: list[Kind] = []
        self._texts: list[bool] = []  # whether all values are text, as in CSV
        self._types: dict[str, pa.DataType] = {}

    def __bool__(self) -> bool:
        return bool(self.names)

    def declare(self, name: str, kind: pa.DataType | None = None) -> None:
        """Have a column, of a known type or of one that its values tell.

        Raises:
            ValueError: it has another type already.
        """
        if name not in self._at:
            self._at[name] = len(self.names)
            self.names.append(name)
            self._kinds.append("null")
            self._texts.append(True)
        if kind is not None and self._types.setdefault(name, kind) != kind:
            raise ValueError(f"{name!r} is {kind}, and {self._types[name]} in an earlier file")

    def encode_row(self, cells: Mapping[str, Any], *, text: bool = False) -> list[Any]:
        """A line's cells as JSON values in the order of `names`; the last ones may be lacking.

        Args:
            cells: values by column, of columns that may be new.
            text: whether the values are text that may stand for numbers, as in CSV.

        Raises:
            ValueError: a value has another type than those before.
        """
        values: list[Any] = [None] * len(self.names)
        for name, value in cells.items():
            if name not in self._at:
                self.declare(name)
                values.append(None)
            at = self._at[name]
            if name not in self._types:
                value = self._learn(at, value, text=text)
            values[at] = value
        return values

    def _learn(self, at: int, value: Any, *, text: bool) -> Any:
        if value is None or (text and value == ""):
            return None
        kind, before = _text_kind(value) if text else _kind(value), self._kinds[at]
        if kind != before:
            self._kinds[at] = _common(before, kind, self.names[at], text=text)
        self._texts[at] &= text
        return json.dumps(value, ensure_ascii=False, sort_keys=True) if kind == "json" else value

    def describe(self) -> list[list[str]]:
        """Names and types as JSON values, once all lines are taken."""
        return [[field.name, str(field.type)] for field in self.schema()]

    def schema(self) -> pa.Schema:
        """Names and types, once all lines are taken."""
        import pyarrow as pa

        arrow = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
        return pa.schema(
            [
                pa.field(name, self._types.get(name) or arrow.get(self._settled(at), pa.string()))
                for at, name in enumerate(self.names)
            ]
        )

    def _settled(self, at: int) -> Kind:
        """The kind of a column, that of rows beside it where its values allow it."""
        kind, earlier = self._kinds[at], _KINDS.get(self._earlier.get(self.names[at], ""))
        text = self._texts[at] and earlier == "text"
        fits = text or kind == "null" or (kind, earlier) == ("int", "float")
        return earlier if earlier and fits else kind

    def to_table(self, rows: Sequence[Sequence[Any]]) -> pa.Table:
        """Lines that `take` gave, once all are taken, as a table of `schema`."""
        import pyarrow as pa

        schema = self.schema()
        arrays = []
        for at, field in enumerate(schema):
            values = [row[at] if at < len(row) else None for row in rows]
            known = field.name in self._types
            arrays.append(
                from_json_values(values, field.type)
                if known
                else pa.array([_READ[self._settled(at)](value) for value in values], field.type)
            )
        return pa.table(arrays, schema=schema) if arrays else pa.table({"": pa.nulls(len(rows))}).select([])


_KINDS: Mapping[str, Kind] = {"bool": "bool", "int64": "int", "double": "float", "string": "text"}


def _text_kind(text: str) -> Kind:
    if _WHOLE.fullmatch(text):
        return "int"
    if _NUMBER.fullmatch(text):
        return "float"
    return "bool" if text in ("true", "false") else "text"


def _kind(value: Any) -> Kind:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if value not in _INT64:
            raise ValueError(f"{value} has more than 64 bits")
        return "int"
    if isinstance(value, float):
        return "float"
    return "text" if isinstance(value, str) else "json"


def _common(before: Kind, kind: Kind, name: str, *, text: bool) -> Kind:
    """The kind that holds values of both."""
    if before == "null":
        return kind
    if {before, kind} == {"int", "float"}:
        return "float"
    if text:
        return "text"
    raise ValueError(f"{name!r} is {_SAID[kind]} here and {_SAID[before]} on a line before")


_SAID: Mapping[Kind, str] = {
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "text": "text",
    "json": "an object or a list",
}


def _bool(value: Any) -> Any:
    return value == "true" if isinstance(value, str) else value


def _or_null(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


_READ: Mapping[Kind, Callable[[Any], Any]] = {
    "null": _or_null(str),
    "bool": _or_null(_bool),
    "int": _or_null(int),
    "float": _or_null(float),
    "text": _or_null(str),
    "json": _or_null(str),
}


def passthrough_type(kind: pa.DataType) -> pa.DataType:
    """The type under which a column of Parquet passes through: dictionaries as what they hold.

    Raises:
        ValueError: its values cannot be carried.
    """
    import pyarrow.types as is_

    if is_.is_dictionary(kind):
        return passthrough_type(kind.value_type)
    if _is_plain(kind) or is_.is_temporal(kind) or is_.is_binary(kind) or is_.is_decimal(kind):
        return kind
    raise ValueError(f"columns of the type {kind} cannot pass through")


def _is_plain(kind: pa.DataType) -> bool:
    """Whether JSON holds the values as they are."""
    import pyarrow.types as is_

    if is_.is_list(kind) or is_.is_large_list(kind):
        return _is_plain(kind.value_type)
    if is_.is_struct(kind):
        return all(_is_plain(kind.field(i).type) for i in range(kind.num_fields))
    whole = is_.is_integer(kind) or is_.is_boolean(kind) or is_.is_null(kind)
    return (
        whole
        or is_.is_string(kind)
        or is_.is_large_string(kind)
        or is_.is_float32(kind)
        or is_.is_float64(kind)
    )


def to_json_values(array: Any) -> list[Any]:
    """The values of a Parquet column (pa.Array) as JSON values, where `passthrough_type` has a type for it."""
    import pyarrow as pa
    import pyarrow.types as is_

    if is_.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    kind = array.type
    if is_.is_temporal(kind):
        return array.view(f"int{kind.bit_width}").to_pylist()
    if is_.is_binary(kind):
        return [None if value is None else value.hex() for value in array.to_pylist()]
    if is_.is_decimal(kind):
        return array.cast(pa.string()).to_pylist()
    return array.to_pylist()


def from_json_values(values: Sequence[Any], kind: pa.DataType) -> Any:
    """What `to_json_values` was given, as a pa.Array."""
    import pyarrow as pa
    import pyarrow.types as is_

    if is_.is_temporal(kind):
        return pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)
    if is_.is_binary(kind):
        return pa.array([None if value is None else bytes.fromhex(value) for value in values], kind)
    if is_.is_decimal(kind):
        return pa.array(values, pa.string()).cast(kind)
    return pa.array(values, kind)

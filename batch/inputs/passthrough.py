"""Pass-through columns: columns of a dataset manifest that are copied to the rows of the scores.

Between the manifest and the scores, values are stored as lines of JSON. Their types are known only
after the last line: a Parquet manifest declares them, those of JSON lines follow from the values, and
a CSV column is numeric only if every cell is written as a number in canonical form.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from serving.storage.names import normalize

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["null", "bool", "int", "float", "text", "json"]

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")  # no leading zero: that is a code, not a number
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_INT64 = range(-(1 << 63), 1 << 63)


@dataclass
class _Column:
    """State of a column while its values are read.

    Attributes:
        name: name as it was first spelled, or as the existing rows spell it.
        at: position among the columns.
        kind: narrowest kind that holds all values.
        all_text: whether all values come from text formats such as CSV.
        declared: declared type, which no value changes; None to infer it.
    """

    name: str
    at: int
    kind: Kind = "null"
    all_text: bool = True
    declared: pa.DataType | None = None


class PassThroughColumns:
    """The pass-through columns of a source, whose types are inferred line by line.

    Args:
        previous_types: type, by name, of the columns of existing rows. New values get the same type
            where they allow it, such as text for codes that happen to be numbers this time.
    """

    def __init__(self, previous_types: Mapping[str, str] | None = None) -> None:
        self._previous_types = previous_types or {}
        self._spelling = {normalize(name): name for name in self._previous_types}
        self._columns: dict[str, _Column] = {}  # by Unicode form, in the order in which they appeared

    def __bool__(self) -> bool:
        return bool(self._columns)

    def declare(self, name: str, kind: pa.DataType | None = None) -> _Column:
        """Add a column unless it exists, and return it.

        Args:
            name: column name.
            kind: type of the column; None to infer it from the values.

        Raises:
            ValueError: the column is already declared with another type.
        """
        key = normalize(name)
        column = self._columns.setdefault(key, _Column(self._spelling.get(key, name), len(self._columns)))
        if column.declared is None:
            column.declared = kind
        elif kind is not None and column.declared != kind:
            raise ValueError(f"{name!r} is {kind}, and {column.declared} in an earlier file")
        return column

    def encode_row(self, cells: Mapping[str, Any], *, text: bool = False) -> list[Any]:
        """Return a line's cells as JSON values in the order of the columns, and learn their types.

        Columns that first appear on a later line are absent at the end of the list.

        Args:
            cells: values by column name; new columns are added.
            text: whether the values are text that may represent numbers, as in CSV.

        Raises:
            ValueError: a value's type conflicts with those of previous lines.
        """
        values: list[Any] = [None] * len(self._columns)
        for name, value in cells.items():
            column = self._columns.get(normalize(name)) or self.declare(name)
            if column.at == len(values):
                values.append(None)
            values[column.at] = value if column.declared else _encode_value(name, column, value, text=text)
        return values

    def describe(self) -> list[list[str]]:
        """Return [name, type] of each column as JSON values, once all lines are encoded."""
        return [[field.name, str(field.type)] for field in self.schema()]

    def schema(self) -> pa.Schema:
        """Return the Arrow schema, once all lines are encoded."""
        import pyarrow as pa

        types = {
            column.name: column.declared or pa.type_for_alias(self._final_type(column))
            for column in self._columns.values()
        }
        return pa.schema(types)

    def _final_type(self, column: _Column) -> Any:
        """Return the type of a column: that of the existing rows if all its values can be stored so."""
        found, previous = _TYPES.get(column.kind, "string"), self._previous_types.get(column.name, "")
        # Text from CSV stays text, nulls fit anywhere, and integers are also floats.
        text = column.all_text and previous == "string"
        fits = text or column.kind == "null" or (found, previous) == ("int64", "double")
        return previous if previous in _TYPES.values() and fits else found

    def to_table(self, rows: Sequence[Sequence[Any]]) -> pa.Table:
        """Return encoded rows as a table of `schema`, once all lines are encoded."""
        import pyarrow as pa

        schema = self.schema()
        arrays = []
        for at, (field, column) in enumerate(zip(schema, self._columns.values(), strict=True)):
            # Rows from before the column appeared are shorter: their value is null.
            values = [row[at] if at < len(row) else None for row in rows]
            if not column.declared:
                convert = _CONVERTERS.get(str(field.type), str)
                values = [None if value is None else convert(value) for value in values]
            arrays.append(from_json_values(values, field.type))
        # A table without columns has to keep its number of rows.
        return pa.table(arrays, schema=schema) if arrays else pa.table({"": pa.nulls(len(rows))}).select([])


_TYPES: Mapping[Kind, str] = {"bool": "bool", "int": "int64", "float": "double", "text": "string"}
"""Arrow type of each kind; the values of all other kinds are text."""

_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "bool": lambda value: value in (True, "true"),
    "int64": int,
    "double": float,
}
"""Conversion of values to each type but text."""


def _encode_value(name: str, column: _Column, value: Any, *, text: bool) -> Any:
    """Return a JSON value, and widen the kind of its column if necessary."""
    if value is None or (text and not value.strip()):
        return None
    kind = _infer_text_kind(value.strip()) if text else _infer_kind(value)
    if kind in ("int", "float") and text:
        value = value.strip()
    if kind != column.kind:
        column.kind = _widen(column.kind, kind, name, text=text)
    column.all_text &= text
    return json.dumps(value, ensure_ascii=False, sort_keys=True) if kind == "json" else value


def _infer_text_kind(text: str) -> Kind:
    if _INTEGER.fullmatch(text) and int(text) in _INT64:
        return "int"
    if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return "float"
    return "bool" if text in ("true", "false") else "text"


def _infer_kind(value: Any) -> Kind:
    if isinstance(value, int) and value not in _INT64:
        raise ValueError(f"{value} has more than 64 bits")
    return _PYTHON_KINDS.get(type(value), "json")


def _widen(before: Kind, kind: Kind, name: str, *, text: bool) -> Kind:
    """Return the narrowest kind that holds values of both kinds.

    Raises:
        ValueError: there is none. Values from text formats can always be stored as text.
    """
    if before == "null":
        return kind
    if {before, kind} == {"int", "float"}:
        return "float"
    if text:
        return "text"
    raise ValueError(f"{name!r} is {_KIND_NAMES[kind]} here and {_KIND_NAMES[before]} on an earlier line")


_PYTHON_KINDS: Mapping[type, Kind] = {bool: "bool", int: "int", float: "float", str: "text"}

_KIND_NAMES: Mapping[Kind, str] = {
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "text": "text",
    "json": "an object or a list",
}


def passthrough_type(kind: pa.DataType, name: str) -> pa.DataType:
    """Return the type of a Parquet column in the scores: that of `to_plain`.

    Args:
        kind: type in the manifest.
        name: name of the column, for the error.

    Raises:
        ValueError: columns of this type cannot pass through.
    """
    import pyarrow.types as is_

    kind = _plain_type(kind)
    if _is_json_type(kind) or is_.is_temporal(kind) or is_bytes(kind) or is_.is_decimal(kind):
        return kind
    raise ValueError(f"the column {name!r} is of the type {kind}, which cannot pass through")


def to_plain(array: Any) -> Any:
    """Return a column (pa.Array) whose values are stored as such: no dictionary, extension or view."""
    import pyarrow as pa

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return to_plain(array.storage)
    plain = _plain_type(kind)
    return array if plain == kind else array.cast(plain)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa
    import pyarrow.types as is_

    if is_.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    if is_.is_string_view(kind):
        return pa.string()
    return pa.binary() if is_.is_binary_view(kind) else kind


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether the values of a type are bytes."""
    import pyarrow.types as is_

    return is_.is_binary(kind) or is_.is_large_binary(kind) or is_.is_fixed_size_binary(kind)


def to_bytes(array: Any) -> Any:
    """Return a column (pa.Array) of text as the bytes that store it; of another type, an empty column."""
    import pyarrow as pa
    import pyarrow.types as is_

    if is_.is_large_string(array.type):
        return array.view(pa.large_binary())
    return array.view(pa.binary()) if is_.is_string(array.type) else pa.nulls(0, pa.binary())


def _is_json_type(kind: pa.DataType) -> bool:
    """Return whether JSON can represent the values without conversion."""
    import pyarrow.types as is_

    if is_.is_list(kind) or is_.is_large_list(kind):
        return _is_json_type(kind.value_type)
    if is_.is_struct(kind):
        return all(_is_json_type(field.type) for field in kind)
    text, floats = (is_.is_string, is_.is_large_string), (is_.is_float32, is_.is_float64)
    return any(check(kind) for check in (is_.is_integer, is_.is_boolean, is_.is_null, *text, *floats))


def to_json_values(array: Any) -> list[Any]:
    """Return the values of a Parquet column (pa.Array) as JSON values.

    Dates and times become integers, binary values hexadecimal digits, and decimals text. Supports
    the types that `passthrough_type` accepts.
    """
    import pyarrow as pa
    import pyarrow.types as is_

    array = to_plain(array)
    kind = array.type
    if is_.is_temporal(kind):
        return array.view(f"int{kind.bit_width}").to_pylist()
    if is_bytes(kind):
        return [None if value is None else value.hex() for value in array.to_pylist()]
    if is_.is_decimal(kind):
        return array.cast(pa.string()).to_pylist()
    return array.to_pylist()


def from_json_values(values: Sequence[Any], kind: pa.DataType) -> Any:
    """Return the pa.Array of the given type that `to_json_values` converted."""
    import pyarrow as pa
    import pyarrow.types as is_

    if is_.is_temporal(kind):
        return pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)
    if is_bytes(kind):
        return pa.array([None if value is None else bytes.fromhex(value) for value in values], kind)
    if is_.is_decimal(kind):
        return pa.array(values, pa.string()).cast(kind)
    return pa.array(values, kind)

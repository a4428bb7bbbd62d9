"""Pass-through columns: columns of a dataset manifest that are copied to the rows of the scores.

Between the manifest and the scores, values are stored as lines of JSON. Their types are known only
after the last line: a Parquet manifest declares them, those of JSON lines follow from the values, and
a CSV column is numeric only if every cell is written as a number in canonical form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["null", "bool", "int", "float", "text", "json"]

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")  # no leading zero: that is a code, not a number
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_INT64 = range(-(1 << 63), 1 << 63)


class PassThroughColumns:
    """The pass-through columns of a source, whose types are inferred line by line.

    Args:
        previous_types: type, by name, of the columns of existing rows. New values get the same type
            where they allow it, such as text for codes that happen to be numbers this time.

    Attributes:
        names: column names in the order in which they appeared.
    """

    def __init__(self, previous_types: Mapping[str, str] | None = None) -> None:
        self._previous_types = previous_types or {}
        self.names: list[str] = []
        self._at: dict[str, int] = {}  # position of each name
        self._kinds: list[Kind] = []  # narrowest kind that holds all values so far
        self._all_text: list[bool] = []  # whether all values come from text formats such as CSV
        self._types: dict[str, pa.DataType] = {}  # declared types, which no value changes

    def __bool__(self) -> bool:
        return bool(self.names)

    def declare(self, name: str, kind: pa.DataType | None = None) -> None:
        """Add a column unless it exists.

        Args:
            name: column name.
            kind: type of the column; None to infer it from the values.

        Raises:
            ValueError: the column is already declared with another type.
        """
        if name not in self._at:
            self._at[name] = len(self.names)
            self.names.append(name)
            self._kinds.append("null")
            self._all_text.append(True)
        if kind is not None and self._types.setdefault(name, kind) != kind:
            raise ValueError(f"{name!r} is {kind}, and {self._types[name]} in an earlier file")

    def encode_row(self, cells: Mapping[str, Any], *, text: bool = False) -> list[Any]:
        """Return a line's cells as JSON values in the order of `names`, and learn their types.

        Columns that first appear on a later line are absent at the end of the list.

        Args:
            cells: values by column name; new columns are added.
            text: whether the values are text that may represent numbers, as in CSV.

        Raises:
            ValueError: a value's type conflicts with those of previous lines.
        """
        values: list[Any] = [None] * len(self.names)
        for name, value in cells.items():
            if name not in self._at:
                self.declare(name)
                values.append(None)
            at = self._at[name]
            if name not in self._types:
                value = self._encode_value(at, value, text=text)
            values[at] = value
        return values

    def _encode_value(self, at: int, value: Any, *, text: bool) -> Any:
        """Return a JSON value, and widen the kind of its column if necessary."""
        if value is None or (text and value == ""):
            return None
        kind, before = _infer_text_kind(value) if text else _infer_kind(value), self._kinds[at]
        if kind != before:
            self._kinds[at] = _widen(before, kind, self.names[at], text=text)
        self._all_text[at] &= text
        return json.dumps(value, ensure_ascii=False, sort_keys=True) if kind == "json" else value

    def describe(self) -> list[list[str]]:
        """Return [name, type] of each column as JSON values, once all lines are encoded."""
        return [[field.name, str(field.type)] for field in self.schema()]

    def schema(self) -> pa.Schema:
        """Return the Arrow schema, once all lines are encoded."""
        import pyarrow as pa

        arrow = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
        return pa.schema(
            [
                pa.field(name, self._types.get(name) or arrow.get(self._final_kind(at), pa.string()))
                for at, name in enumerate(self.names)
            ]
        )

    def _final_kind(self, at: int) -> Kind:
        """Return the kind of a column: that of the existing rows if all its values can be stored so."""
        kind, previous = self._kinds[at], _KINDS.get(self._previous_types.get(self.names[at], ""))
        # Text from CSV stays text, nulls fit anywhere, and integers are also floats.
        text = self._all_text[at] and previous == "text"
        fits = text or kind == "null" or (kind, previous) == ("int", "float")
        return previous if previous and fits else kind

    def to_table(self, rows: Sequence[Sequence[Any]]) -> pa.Table:
        """Return encoded rows as a table of `schema`, once all lines are encoded."""
        import pyarrow as pa

        schema = self.schema()
        arrays = []
        for at, field in enumerate(schema):
            # Rows from before the column appeared are shorter: their value is null.
            values = [row[at] if at < len(row) else None for row in rows]
            declared = field.name in self._types
            arrays.append(
                from_json_values(values, field.type)
                if declared
                else pa.array([_CONVERTERS[self._final_kind(at)](value) for value in values], field.type)
            )
        # A table without columns has to keep its number of rows.
        return pa.table(arrays, schema=schema) if arrays else pa.table({"": pa.nulls(len(rows))}).select([])


_KINDS: Mapping[str, Kind] = {"bool": "bool", "int64": "int", "double": "float", "string": "text"}
"""Kind of each Arrow type that inference can produce."""


def _infer_text_kind(text: str) -> Kind:
    if _INTEGER.fullmatch(text):
        return "int"
    if _NUMBER.fullmatch(text):
        return "float"
    return "bool" if text in ("true", "false") else "text"


def _infer_kind(value: Any) -> Kind:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if value not in _INT64:
            raise ValueError(f"{value} has more than 64 bits")
        return "int"
    if isinstance(value, float):
        return "float"
    return "text" if isinstance(value, str) else "json"


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


_KIND_NAMES: Mapping[Kind, str] = {
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "text": "text",
    "json": "an object or a list",
}


def _to_bool(value: Any) -> Any:
    return value == "true" if isinstance(value, str) else value


def _keep_null(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


_CONVERTERS: Mapping[Kind, Callable[[Any], Any]] = {
    "null": _keep_null(str),
    "bool": _keep_null(_to_bool),
    "int": _keep_null(int),
    "float": _keep_null(float),
    "text": _keep_null(str),
    "json": _keep_null(str),
}


def passthrough_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a Parquet column in the scores; dictionaries become their value type.

    Raises:
        ValueError: columns of this type cannot pass through.
    """
    import pyarrow.types as is_

    if is_.is_dictionary(kind):
        return passthrough_type(kind.value_type)
    if _is_json_type(kind) or is_.is_temporal(kind) or is_.is_binary(kind) or is_.is_decimal(kind):
        return kind
    raise ValueError(f"columns of the type {kind} cannot pass through")


def _is_json_type(kind: pa.DataType) -> bool:
    """Return whether JSON can represent the values without conversion."""
    import pyarrow.types as is_

    if is_.is_list(kind) or is_.is_large_list(kind):
        return _is_json_type(kind.value_type)
    if is_.is_struct(kind):
        return all(_is_json_type(kind.field(i).type) for i in range(kind.num_fields))
    integral = is_.is_integer(kind) or is_.is_boolean(kind) or is_.is_null(kind)
    return (
        integral
        or is_.is_string(kind)
        or is_.is_large_string(kind)
        or is_.is_float32(kind)
        or is_.is_float64(kind)
    )


def to_json_values(array: Any) -> list[Any]:
    """Return the values of a Parquet column (pa.Array) as JSON values.

    Dates and times become integers, binary values hexadecimal digits, and decimals text. Supports
    the types that `passthrough_type` accepts.
    """
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
    """Return the pa.Array of the given type that `to_json_values` converted."""
    import pyarrow as pa
    import pyarrow.types as is_

    if is_.is_temporal(kind):
        return pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)
    if is_.is_binary(kind):
        return pa.array([None if value is None else bytes.fromhex(value) for value in values], kind)
    if is_.is_decimal(kind):
        return pa.array(values, pa.string()).cast(kind)
    return pa.array(values, kind)

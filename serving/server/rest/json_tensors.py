"""Conversion between tensors and JSON, by the rules of TensorFlow Serving's REST API (util/json_tensor.cc).

A tensor is a value, or lists of equal length, nested as deep as it has dimensions. Strings are JSON strings,
or `{"b64": "..."}` for bytes. Integers are accepted for floats where that loses no precision, but floats
never for integers. Half-precision, complex and 16-bit unsigned numbers have no JSON form.

Errors have the texts of TensorFlow Serving, with long values truncated. Two differences: a number that does
not fit its integer dtype is rejected where TensorFlow Serving wraps it around, and responses are always valid
JSON: bytes that are not UTF-8 become replacement characters in outputs whose name does not end in `_bytes`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serving import protos
from serving.protos import tensors
from serving.server.status_error import invalid_argument, unimplemented

Json: TypeAlias = Any
"""Any result of json.loads."""

Instance: TypeAlias = tuple[tuple[int, ...], list[Any]]
"""Shape of a JSON value, and its elements in order."""

# DataType numbers.
_FLOATS = (1, 2)
_INTEGERS = (3, 4, 5, 6, 9, 22, 23)
_BOOL = 10

_MAX_SHOWN = 512
"""Maximum characters of a value in an error message."""

_BYTES_SUFFIX = "_bytes"
"""Suffix of string outputs that are encoded as base64."""


# --- JSON to tensors --------------------------------------------------------------------------------------


def parse_tensor(value: Json, dtype: int) -> protos.Message:
    """Return the TensorProto of a JSON value.

    Args:
        value: a value, or nested lists of values.
        dtype: DataType number.

    Raises:
        StatusError: lists differ in length or depth, or an element does not have the dtype.
    """
    shape, leaves = parse_instance(value, dtype)
    return _make_proto(leaves, shape, dtype)


def stack_instances(instances: Sequence[Instance], dtype: int) -> protos.Message:
    """Stack instances from `parse_instance`, all of one shape, and return the TensorProto."""
    shape = (len(instances), *instances[0][0])
    return _make_proto(list(chain.from_iterable(leaves for _, leaves in instances)), shape, dtype)


def parse_instance(value: Json, dtype: int) -> Instance:
    """Return the shape of a JSON value, and its elements in order.

    Raises:
        StatusError: lists differ in length or depth, or an element does not have the dtype.
    """
    # Fast path: flatten level by level and check all elements at once. At the first irregularity the
    # recursive check takes over, which finds the error that comes first in reading order.
    shape = _infer_shape(value)
    level = [value]
    for size in shape:
        if not all(isinstance(item, list) and len(item) == size for item in level):
            return shape, _check_elements(value, shape, dtype)
        level = list(chain.from_iterable(level))
    leaves = _check_uniform(level, dtype)
    return shape, _check_elements(value, shape, dtype) if leaves is None else leaves


def format_value(value: Json) -> str:
    """Return a value as text for an error message, truncated."""
    if isinstance(value, float):
        return format_floats(np.array([value]))[0]
    text = ""
    try:
        for chunk in json.JSONEncoder(ensure_ascii=False, indent=4).iterencode(value):
            text += chunk[: _MAX_SHOWN + 1]
            if len(text) > _MAX_SHOWN:
                return text[:_MAX_SHOWN] + "..."
    except (RecursionError, ValueError):  # nested too deeply, or an integer with thousands of digits
        return "..."
    return text


def json_type(value: Json) -> str:
    """Return the JSON type of a value as TensorFlow Serving names it; "True" or "False" for booleans."""
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
    return names.get(type(value), "Null")


def is_base64(value: Json) -> bool:
    """Return whether a value has the form `{"b64": "..."}`, which stands for bytes."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def decode_base64(value: Json) -> bytes:
    """Return the bytes of `{"b64": "..."}`; padding is optional, and white space is ignored.

    Raises:
        StatusError: the value does not have that form, or is not base64.
    """
    if not is_base64(value):
        raise invalid_argument(f"JSON Value: {format_value(value)} not formatted correctly for base64 data")
    text = value["b64"]
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        text = "".join(text.split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument("Unable to base64 decode") from error


def encode_utf8(text: str) -> bytes:
    """Return a string as UTF-8.

    Raises:
        StatusError: the string has a lone surrogate, which JSON can escape but UTF-8 cannot encode.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise invalid_argument(f"JSON Value: {ascii(text)[:_MAX_SHOWN]} is not valid Unicode text") from error


def check_float(value: float, single: bool) -> None:
    """Check that a float can represent a number.

    Args:
        value: the number.
        single: True for float32, False for float64.

    Raises:
        StatusError: the number is out of range, or an integer that would lose precision.
    """
    limits, bits = (np.finfo(np.float32), 24) if single else (np.finfo(np.float64), 53)
    if isinstance(value, float):
        with np.errstate(over="ignore"):  # the shortest text of the largest float32 is slightly above it
            fits = not math.isfinite(value) or bool(np.isfinite(limits.dtype.type(value)))
    elif -(2**63) <= value < 2**64:
        fits = abs(value) < 2**bits
    else:  # beyond 64 bits, a JSON parser reads an integer as a float
        fits = abs(value) <= int(limits.max)
    if not fits:
        raise invalid_argument(
            f"Cannot convert JSON value: {format_value(value)} to {'float' if single else 'double'} "
            "without loss of precision."
        )


def _infer_shape(value: Json) -> tuple[int, ...]:
    """Return the shape that the first element of each list implies; the others are checked later.

    Raises:
        StatusError: there are too many dimensions.
    """
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    if len(shape) > tensors.MAX_RANK:
        raise invalid_argument(f"Shape must have at most {tensors.MAX_RANK} dimensions, but got {len(shape)}")
    return tuple(shape)


def _check_uniform(leaves: list[Any], dtype: int) -> list[Any] | None:
    """Return the elements if one check of all shows that they have the dtype; None: check each."""
    types = set(map(type, leaves))
    if dtype in _INTEGERS and types == {int}:
        limits = np.iinfo(tensors.NUMERIC[dtype][0])
        return leaves if limits.min <= min(leaves) and max(leaves) <= limits.max else None
    if dtype in _FLOATS and types and types <= {int, float}:
        floats = np.finfo(tensors.NUMERIC[dtype][0])
        limit = floats.max if types == {float} else 2.0**floats.nmant  # integers up to it are exact
        try:
            values = np.abs(np.array(leaves, np.float64))
        except OverflowError:
            return None
        return leaves if np.all((values <= limit) | ~np.isfinite(values)) else None
    return leaves if dtype == _BOOL and types == {bool} else None


def _check_elements(value: Json, shape: tuple[int, ...], dtype: int, depth: int = 0) -> list[Any]:
    """Return the elements in reading order.

    Raises:
        StatusError: an element or list is wrong; the first one in reading order is reported.
    """
    rank = len(shape)
    if not isinstance(value, list):
        if depth != rank:
            raise invalid_argument(
                f"JSON Value: {format_value(value)} found at incorrect level: {depth + 1} in the JSON DOM. "
                f"Expected at level: {rank}"
            )
        return [_check_element(value, dtype)]
    if depth >= rank:
        raise invalid_argument(f"Encountered list at unexpected level: {depth} expected < {rank}")
    if len(value) != shape[depth]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {depth} "
            f"expected size: {shape[depth]}"
        )
    return list(chain.from_iterable(_check_elements(item, shape, dtype, depth + 1) for item in value))


def _check_element(value: Json, dtype: int) -> Any:
    """Return one element in a form that numpy accepts.

    Raises:
        StatusError: it does not have the dtype, or the dtype has no JSON form.
    """
    if dtype == tensors.DT_STRING:
        if isinstance(value, dict):
            return decode_base64(value)
        if isinstance(value, str):
            return encode_utf8(value)
    elif dtype == _BOOL:
        if isinstance(value, bool):
            return value
    elif dtype not in (*_FLOATS, *_INTEGERS):
        raise unimplemented(
            f"Conversion of JSON Value: {format_value(value)} to type: {tensors.dtype_name(dtype)}"
        )
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if dtype in _FLOATS:
            check_float(value, single=dtype == 1)
            return value
        limits = np.iinfo(tensors.NUMERIC[dtype][0])
        if isinstance(value, int) and limits.min <= value <= limits.max:
            return value
    raise invalid_argument(
        f"JSON Value: {format_value(value)} Type: {json_type(value)} is not of expected type: "
        f"{tensors.dtype_name(dtype)}"
    )


def _make_proto(leaves: list[Any], shape: tuple[int, ...], dtype: int) -> protos.Message:
    if dtype == tensors.DT_STRING:
        array: NDArray[Any] = tensors.make_string_array(leaves)
    else:
        array = np.array(leaves, tensors.NUMERIC[dtype][0] if dtype in tensors.NUMERIC else np.float32)
    # The shape is set explicitly: numpy cannot tell the shape of nested empty lists.
    proto = tensors.encode(array.reshape(shape))
    proto.dtype = dtype  # a dtype that numpy lacks has no elements here
    return proto


# --- Tensors to JSON --------------------------------------------------------------------------------------


def format_rows(outputs: Mapping[str, protos.Message]) -> str:
    """Format outputs as a list with one item per row; an item is an object if there are several outputs.

    Args:
        outputs: TensorProtos by output alias, with the same first dimension.

    Raises:
        StatusError: the first dimensions differ or are missing, or a dtype has no JSON form.
    """
    columns: list[list[str]] = []
    for alias, proto in sorted(outputs.items()):
        shape = _get_shape(proto)
        if not shape:
            raise invalid_argument(f"Tensor name: {alias} has no shape information ")
        if columns and len(columns[0]) != shape[0]:
            raise invalid_argument(
                f"Tensor name: {alias} has inconsistent batch size: {shape[0]} expecting: {len(columns[0])}"
            )
        columns.append(_nest(_format_elements(alias, proto), shape, 1))
    return _format_list([_format_item(sorted(outputs), row) for row in zip(*columns, strict=True)])


def format_columns(outputs: Mapping[str, protos.Message]) -> str:
    """Format outputs as whole tensors: one value, or an object if there are several outputs.

    Raises:
        StatusError: a dtype has no JSON form.
    """
    texts = []
    for alias, proto in sorted(outputs.items()):
        texts += _nest(_format_elements(alias, proto), _get_shape(proto), 0)
    return _format_item(sorted(outputs), texts)


def format_floats(values: NDArray[Any]) -> list[str]:
    """Format floats so that they parse to the same value: with 6 digits, or 9 (float64: 17) if needed.

    Args:
        values: float32 or float64 of any shape; its elements are formatted in order.
    """
    flat = values.ravel()
    digits = 9 if flat.dtype == np.float32 else 17
    exact = flat.tolist()
    texts = [f"{value:g}" for value in exact]
    parsed = np.array([float(text) for text in texts]).astype(flat.dtype)
    return [
        _format_float(text if same else f"{value:.{digits}g}")
        for text, value, same in zip(texts, exact, (parsed == flat).tolist(), strict=True)
    ]


_NON_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _format_float(text: str) -> str:
    """Return the text with `.0` if it would otherwise be parsed as an integer."""
    if text in _NON_FINITE:
        return _NON_FINITE[text]
    return text if "." in text or "e" in text else f"{text}.0"


def _get_shape(proto: protos.Message) -> tuple[int, ...]:
    return tuple(dim.size for dim in proto.tensor_shape.dim)


def _format_elements(alias: str, proto: protos.Message) -> list[str]:
    """Format every element of a tensor as JSON.

    Raises:
        StatusError: the dtype has no JSON form.
    """
    dtype = proto.dtype
    if dtype not in (_BOOL, tensors.DT_STRING, *_FLOATS, *_INTEGERS):
        raise invalid_argument(f"Failed to write JSON value for tensor type: {tensors.dtype_name(dtype)}")
    values = tensors.decode(proto, alias).ravel()
    if dtype in _FLOATS:
        return format_floats(values)
    if dtype != tensors.DT_STRING:
        return [str(value).lower() for value in values.tolist()]
    if alias.endswith(_BYTES_SUFFIX):
        return [f'{{"b64": "{base64.b64encode(value).decode()}"}}' for value in values]
    return [quote(value.decode(errors="replace")) for value in values]


def quote(text: str) -> str:
    """Format a string as JSON."""
    return json.dumps(text, ensure_ascii=False)


def _nest(texts: list[str], shape: tuple[int, ...], kept: int) -> list[str]:
    """Join elements into nested lists, innermost dimension first; the first `kept` dimensions stay flat."""
    for axis in range(len(shape) - 1, kept - 1, -1):
        size, count = shape[axis], math.prod(shape[:axis])
        texts = [_format_list(texts[number * size : (number + 1) * size]) for number in range(count)]
    return texts


def _format_list(texts: Sequence[str]) -> str:
    return f"[{', '.join(texts)}]"


def _format_item(aliases: Sequence[str], texts: Sequence[str]) -> str:
    """Format the values of the outputs: the value of the only one, or an object."""
    if len(aliases) == 1:
        return texts[0]
    pairs = zip(map(quote, aliases), texts, strict=True)
    return "{" + ", ".join(f"{alias}: {text}" for alias, text in pairs) + "}"

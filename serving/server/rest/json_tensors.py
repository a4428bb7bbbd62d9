"""Tensors as JSON, by the rules of TensorFlow Serving's REST API (util/json_tensor.cc).

A tensor is a value, or lists of equal length, nested as deep as it has dimensions. Strings are JSON
strings, or `{"b64": "..."}` for bytes. Whole numbers pass for floats where nothing is lost, and
never the other way round. Half-precision, complex and 16-bit unsigned numbers have no JSON.

What is refused here is worded as there, with long values cut. Two things are better: a number that
does not fit its integer dtype is refused, not wrapped around, and answers are always valid JSON: bytes
that are no UTF-8 become replacement characters in outputs whose name does not end in `_bytes`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

import grpc
import numpy as np
from numpy.typing import NDArray

from serving import protos
from serving.protos import tensors
from serving.server.status_error import Refusal, invalid

Json: TypeAlias = Any
"""What json.loads gives."""

_FLOATS: dict[int, Any] = {1: np.float32, 2: np.float64}
_INTEGERS: dict[int, Any] = {
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    9: np.int64,
    22: np.uint32,
    23: np.uint64,
}
_BOOL = 10

_MAX_SHOWN = 512
"""Characters of a value that a message shows."""

_MAX_RANK = 64
"""Dimensions of a numpy array at most."""

_BYTES_SUFFIX = "_bytes"


# --- JSON to tensors --------------------------------------------------------------------------------------


def tensor(value: Json, dtype: int) -> protos.Message:
    """The TensorProto of one JSON value.

    Args:
        value: a value, or nested lists of values.
        dtype: DataType number.

    Raises:
        Refusal: lists of unequal length or depth, or a value that is not of the dtype.
    """
    shape, leaves = part(value, dtype)
    return _proto(leaves, shape, dtype)


def stacked(parts: Sequence[tuple[tuple[int, ...], list[Any]]], dtype: int) -> protos.Message:
    """The TensorProto of parts from `part`, all of one shape, along a new first dimension."""
    shape = (len(parts), *parts[0][0])
    return _proto(list(chain.from_iterable(leaves for _, leaves in parts)), shape, dtype)


def part(value: Json, dtype: int) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and elements of one JSON value, for `stacked`.

    Raises:
        Refusal: as `tensor`.
    """
    shape = _shape(value)
    level = [value]
    for size in shape:
        if not all(isinstance(item, list) and len(item) == size for item in level):
            return shape, _checked(value, shape, dtype)
        level = list(chain.from_iterable(level))
    quick = _quick(level, dtype)
    return shape, _checked(value, shape, dtype) if quick is None else quick


def shown(value: Json) -> str:
    """A value in a message."""
    if isinstance(value, float):
        return decimals(np.array([value]))[0]
    text = ""
    try:
        for piece in json.JSONEncoder(ensure_ascii=False, indent=4).iterencode(value):
            text += piece[: _MAX_SHOWN + 1]
            if len(text) > _MAX_SHOWN:
                return text[:_MAX_SHOWN] + "..."
    except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
        return "..."
    return text


def kind(value: Json) -> str:
    """The name of a value's JSON type."""
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
    return names.get(type(value), "Null")


def is_base64(value: Json) -> bool:
    """Whether a value stands for bytes."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def from_base64(value: Json) -> bytes:
    """The bytes of `{"b64": "..."}`; padding and white space may be there or not.

    Raises:
        Refusal: no such object, or no base64.
    """
    if not is_base64(value):
        raise invalid(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    text = value["b64"]
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        text = "".join(text.split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def utf8(text: str) -> bytes:
    """The bytes of a string.

    Raises:
        Refusal: half a character, which JSON can escape and UTF-8 cannot hold.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise invalid(f"JSON Value: {ascii(text)[:_MAX_SHOWN]} is no Unicode text") from error


def check_decimal(value: float, single: bool) -> None:
    """Refuse a number that a float cannot hold.

    Args:
        value: the number.
        single: whether 32 bits have to do, not 64.
    """
    limits, bits = (np.finfo(np.float32), 24) if single else (np.finfo(np.float64), 53)
    if isinstance(value, float):
        with np.errstate(over="ignore"):  # the largest float itself is written a little above it
            fits = not math.isfinite(value) or bool(np.isfinite(limits.dtype.type(value)))
    elif -(2**63) <= value < 2**64:
        fits = abs(value) < 2**bits
    else:  # what no integer holds is a float to a JSON parser
        fits = abs(value) <= int(limits.max)
    if not fits:
        raise invalid(
            f"Cannot convert JSON value: {shown(value)} to {'float' if single else 'double'} "
            "without loss of precision."
        )


def _shape(value: Json) -> tuple[int, ...]:
    """Of the first element of each list; whether the others are alike is looked at later."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    if len(shape) > _MAX_RANK:
        raise invalid(f"Shape must have at most {_MAX_RANK} dimensions, but got {len(shape)}")
    return tuple(shape)


def _quick(leaves: list[Any], dtype: int) -> list[Any] | None:
    """The leaves, where a look at all at once shows that they are of the dtype."""
    types = set(map(type, leaves))
    if dtype in _INTEGERS and types == {int}:
        limits = np.iinfo(_INTEGERS[dtype])
        return leaves if limits.min <= min(leaves) and max(leaves) <= limits.max else None
    if dtype in _FLOATS and types and types <= {int, float}:
        floats = np.finfo(_FLOATS[dtype])
        limit = floats.max if types == {float} else 2.0**floats.nmant  # whole numbers below are exact
        try:
            values = np.abs(np.array(leaves, np.float64))
        except OverflowError:
            return None
        return leaves if np.all((values <= limit) | ~np.isfinite(values)) else None
    return leaves if dtype == _BOOL and types == {bool} else None


def _checked(value: Json, shape: tuple[int, ...], dtype: int, depth: int = 0) -> list[Any]:
    """The leaves in their order; the first fault in that order is refused."""
    rank = len(shape)
    if not isinstance(value, list):
        if depth != rank:
            raise invalid(
                f"JSON Value: {shown(value)} found at incorrect level: {depth + 1} in the JSON DOM. "
                f"Expected at level: {rank}"
            )
        return [_leaf(value, dtype)]
    if depth >= rank:
        raise invalid(f"Encountered list at unexpected level: {depth} expected < {rank}")
    if len(value) != shape[depth]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {depth} "
            f"expected size: {shape[depth]}"
        )
    return list(chain.from_iterable(_checked(item, shape, dtype, depth + 1) for item in value))


def _leaf(value: Json, dtype: int) -> Any:
    """One element, as numpy takes it."""
    if dtype == tensors.DT_STRING:
        if isinstance(value, dict):
            return from_base64(value)
        if isinstance(value, str):
            return utf8(value)
    elif dtype == _BOOL:
        if isinstance(value, bool):
            return value
    elif dtype not in _FLOATS and dtype not in _INTEGERS:
        raise Refusal(
            grpc.StatusCode.UNIMPLEMENTED,
            f"Conversion of JSON Value: {shown(value)} to type: {tensors.dtype_name(dtype)}",
        )
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if dtype in _FLOATS:
            check_decimal(value, single=dtype == 1)
            return value
        limits = np.iinfo(_INTEGERS[dtype])
        if isinstance(value, int) and limits.min <= value <= limits.max:
            return value
    raise invalid(
        f"JSON Value: {shown(value)} Type: {kind(value)} is not of expected type: {tensors.dtype_name(dtype)}"
    )


def _proto(leaves: list[Any], shape: tuple[int, ...], dtype: int) -> protos.Message:
    if dtype == tensors.DT_STRING:
        proto = tensors.encode(leaves)
    else:
        known = _FLOATS | _INTEGERS | {_BOOL: np.bool_}
        proto = tensors.encode(np.array(leaves, dtype=known.get(dtype, np.float32)))
        proto.dtype = dtype
    del proto.tensor_shape.dim[:]
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


# --- Tensors to JSON --------------------------------------------------------------------------------------


def predictions(outputs: Mapping[str, protos.Message]) -> str:
    """The outputs as rows: `[...]` with one item for each, an object where there are several outputs.

    Args:
        outputs: alias to TensorProto, all with the same first dimension.

    Raises:
        Refusal: an output has no such dimension, or no JSON.
    """
    columns: dict[str, list[str]] = {}
    sizes: list[int] = []
    for alias, proto in sorted(outputs.items()):
        shape = _dims(proto)
        if not shape:
            raise invalid(f"Tensor name: {alias} has no shape information ")
        if sizes and sizes[0] != shape[0]:
            raise invalid(
                f"Tensor name: {alias} has inconsistent batch size: {shape[0]} expecting: {sizes[0]}"
            )
        sizes.append(shape[0])
        columns[alias] = _nested(_texts(alias, proto), shape, 1)
    if len(columns) == 1:
        return _list(next(iter(columns.values())))
    return _list(
        [_object(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    )


def columns(outputs: Mapping[str, protos.Message]) -> str:
    """The outputs as they are: one value, or an object of them where there are several.

    Raises:
        Refusal: an output has no JSON.
    """
    values = {
        alias: _nested(_texts(alias, proto), _dims(proto), 0)[0] for alias, proto in sorted(outputs.items())
    }
    return next(iter(values.values())) if len(values) == 1 else _object(values)


def decimals(values: NDArray[Any]) -> list[str]:
    """Floats with the digits that make them again: six if they do, else 9 (17 of 64 bits).

    Args:
        values: float32 or float64, any shape; its elements in order.
    """
    flat = values.ravel()
    digits = 9 if flat.dtype == np.float32 else 17
    exact = flat.tolist()
    texts = [f"{value:g}" for value in exact]
    again = np.array([float(text) for text in texts]).astype(flat.dtype)
    return [
        _decimal(text if same else f"{value:.{digits}g}")
        for text, value, same in zip(texts, exact, (again == flat).tolist(), strict=True)
    ]


_NO_NUMBERS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _decimal(text: str) -> str:
    """So that it is read as a float again."""
    if text in _NO_NUMBERS:
        return _NO_NUMBERS[text]
    return text if "." in text or "e" in text else f"{text}.0"


def _dims(proto: protos.Message) -> tuple[int, ...]:
    return tuple(dim.size for dim in proto.tensor_shape.dim)


def _texts(alias: str, proto: protos.Message) -> list[str]:
    """Every element as JSON."""
    dtype = proto.dtype
    if dtype != _BOOL and dtype != tensors.DT_STRING and dtype not in _FLOATS and dtype not in _INTEGERS:
        raise invalid(f"Failed to write JSON value for tensor type: {tensors.dtype_name(dtype)}")
    values = tensors.decode(proto, alias).ravel()
    if dtype in _FLOATS:
        return decimals(values)
    if dtype != tensors.DT_STRING:
        return [str(value).lower() for value in values.tolist()]
    if alias.endswith(_BYTES_SUFFIX):
        return [f'{{"b64": "{base64.b64encode(value).decode()}"}}' for value in values]
    return [quoted(value.decode(errors="replace")) for value in values]


def quoted(text: str) -> str:
    """A string as JSON."""
    return json.dumps(text, ensure_ascii=False)


def _nested(texts: list[str], shape: tuple[int, ...], kept: int) -> list[str]:
    """Elements put into lists, from the last dimension on, but for the first `kept`."""
    for axis in range(len(shape) - 1, kept - 1, -1):
        size, count = shape[axis], math.prod(shape[:axis])
        texts = [_list(texts[number * size : (number + 1) * size]) for number in range(count)]
    return texts


def _list(texts: Sequence[str]) -> str:
    return f"[{', '.join(texts)}]"


def _object(texts: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{quoted(key)}: {text}" for key, text in texts.items()) + "}"

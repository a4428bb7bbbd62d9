"""Conversion between TensorProto and numpy, without TensorFlow.

The wire format is that of tensorflow/core/framework/{tensor,types}.proto: values are stored in
`tensor_content` (little-endian bytes) or in the typed `*_val` field of their dtype. A server
may use either, so `decode` reads both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import protos
from serving.errors import InputError

DT_STRING = 7
DT_BFLOAT16 = 14
DT_HALF = 19

NUMERIC: dict[int, tuple[np.dtype[Any], str]] = {
    1: (np.dtype("<f4"), "float_val"),
    2: (np.dtype("<f8"), "double_val"),
    3: (np.dtype("<i4"), "int_val"),
    4: (np.dtype("u1"), "int_val"),
    5: (np.dtype("<i2"), "int_val"),
    6: (np.dtype("i1"), "int_val"),
    8: (np.dtype("<c8"), "scomplex_val"),
    9: (np.dtype("<i8"), "int64_val"),
    10: (np.dtype("?"), "bool_val"),
    DT_BFLOAT16: (np.dtype("<u2"), "half_val"),
    17: (np.dtype("<u2"), "int_val"),
    18: (np.dtype("<c16"), "dcomplex_val"),
    DT_HALF: (np.dtype("<f2"), "half_val"),
    22: (np.dtype("<u4"), "uint32_val"),
    23: (np.dtype("<u8"), "uint64_val"),
}
"""Dtype of the values and name of the field that contains them, by DataType number.

Numpy has no bfloat16; its bits are the upper half of those of a float32.
"""

_NUMBERS = {dtype: number for number, (dtype, _) in NUMERIC.items() if number != DT_BFLOAT16}

MAX_RANK = 32
"""Maximum dimensions of a tensor: TensorFlow converts no array that has more."""

_MAX_REPEATED_BYTES = 1 << 26
"""Size limit of what a tensor repeats; a message of a few bytes can state any shape."""

_MAX_COUNT = 1 << 22
"""Maximum number of strings in `tensor_content`, and of rows without elements: both can take one byte or none
in the message, and much more in memory."""

_STRING_BYTES = 32
"""Bytes that a repeated string takes besides its text: the reference in numpy, the string in TensorFlow."""

_MAX_VARINT_BYTES = 10


def dtype_name(number: int) -> str:
    """Return TensorFlow's name of a DataType number, such as "float", "string" or "half"."""
    try:
        return str(protos.DataType.Name(number)).removeprefix("DT_").lower()
    except ValueError:
        return f"unknown dtype enum ({number})"


def find_dtype_number(dtype: np.dtype[Any]) -> int:
    """Return the DataType number of a numeric dtype.

    Raises:
        InputError: TensorFlow has no such dtype.
    """
    if dtype.name == "bfloat16":  # of ml_dtypes, which TensorFlow uses for numpy arrays
        return DT_BFLOAT16
    little_endian = dtype.newbyteorder("<")
    if little_endian not in _NUMBERS:
        raise InputError(f"An array of dtype {dtype} cannot be sent as a tensor.")
    return _NUMBERS[little_endian]


def encode(values: NDArray[Any] | Sequence[bytes], *, typed_fields: bool = False) -> protos.Message:
    """Return a TensorProto with the same shape and values.

    Args:
        values: numbers, or bytes as an object array or as a sequence (shape [N]).
        typed_fields: write numbers to the `*_val` field of their dtype, as TensorFlow Serving
            does by default, instead of the more compact `tensor_content`.

    Raises:
        InputError: a TensorProto cannot have this dtype, or the strings are not bytes.
    """
    array = values if isinstance(values, np.ndarray) else make_string_array(values)
    proto = protos.TensorProto(tensor_shape={"dim": [{"size": size} for size in array.shape]})
    if array.dtype.kind in "OS":
        proto.dtype = DT_STRING
        try:
            proto.string_val.extend(array.ravel().tolist())
        except TypeError as error:
            raise InputError(f"A string tensor accepts only bytes: {error}.") from error
        return proto
    proto.dtype = find_dtype_number(array.dtype)
    if proto.dtype == DT_BFLOAT16:
        flat = array.ravel().view("<u2")
    else:
        flat = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).ravel()
    if not typed_fields:
        proto.tensor_content = flat.tobytes()
        return proto
    field = NUMERIC[proto.dtype][1]
    if field == "half_val":
        flat = flat.view("<u2")
    elif flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    getattr(proto, field).extend(flat.tolist())
    return proto


def decode(proto: protos.Message, name: str) -> NDArray[Any]:
    """Return the array of a TensorProto: strings as an object array of bytes, bfloat16 as float32.

    If there are fewer values than elements, the last value is repeated; if there are none, the
    elements are zeros or empty strings (TensorFlow's rule in tensor.proto).

    Args:
        proto: TensorProto message.
        name: name of the tensor, for error messages.

    Raises:
        InputError: the shape is unknown, negative or too large, the dtype is not supported, or the number
            of values does not match the shape.
    """
    rank = len(proto.tensor_shape.dim)
    if rank > MAX_RANK:  # before the sizes are multiplied, which takes long for thousands of them
        raise InputError(f"Tensor {name!r} has {rank} dimensions, more than {MAX_RANK}.")
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise InputError(f"Tensor {name!r} has no complete shape.")
    count = math.prod(shape)
    if not count and math.prod(filter(None, shape)) > _MAX_COUNT:  # a model may compute something for each
        raise InputError(f"Tensor {name!r} has the shape {list(shape)}, which is too large.")
    if proto.dtype == DT_STRING:
        content = proto.tensor_content
        strings = _parse_string_list(content, name, count) if content else proto.string_val
        flat = _fill(make_string_array(strings), name, count)
    elif proto.dtype in NUMERIC:
        flat = _decode_numbers(proto, name, shape)
    else:
        raise InputError(f"Tensor {name!r} is of dtype {dtype_name(proto.dtype)}, which is not supported.")
    return flat.reshape(shape)


def _decode_numbers(proto: protos.Message, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    (dtype, field), count = NUMERIC[proto.dtype], math.prod(shape)
    if proto.tensor_content:
        if len(proto.tensor_content) != count * dtype.itemsize:
            raise _mismatch(name, shape, f"{len(proto.tensor_content)} bytes of {dtype.itemsize} each")
        flat = np.frombuffer(proto.tensor_content, dtype=dtype)
    else:
        try:
            flat = _fill(_decode_typed(getattr(proto, field), dtype, field), name, count)
        except OverflowError as error:
            raise InputError(f"Tensor {name!r} has a value out of range: {error}.") from error
    if proto.dtype == DT_BFLOAT16:
        # A bfloat16 is the upper half of a float32.
        flat = (flat.astype("<u4") << 16).view("<f4")
    return flat.astype(flat.dtype.newbyteorder("="))  # a copy, because arrays of frombuffer are read-only


def _decode_typed(values: Any, dtype: np.dtype[Any], field: str) -> NDArray[Any]:
    # np.array would first make a list of Python's numbers, of four to eight times the size.
    if field == "half_val":
        return np.fromiter(values, "<i4", len(values)).astype("<u2").view(dtype)
    if dtype.kind == "c":
        part = np.dtype(f"<f{dtype.itemsize // 2}")
        if len(values) % 2:
            raise OverflowError("a complex number without its imaginary part")
        return np.fromiter(values, part, len(values)).view(dtype)
    return np.fromiter(values, dtype, len(values))


def _parse_string_list(content: bytes, name: str, count: int) -> list[bytes]:
    """Parse strings in tensor_content: all lengths as varints, then all bytes (EncodeStringList)."""
    if count > _MAX_COUNT:
        raise InputError(f"Tensor {name!r} has {count} strings in tensor_content, more than {_MAX_COUNT}.")
    lengths: list[int] = []
    position = length = shift = 0
    # A varint has seven bits per byte, the lowest first; a byte below 0x80 is its last.
    for byte in content:
        if len(lengths) == count:
            break
        position += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if shift > 7 * _MAX_VARINT_BYTES:  # or a number of any length would be parsed, in quadratic time
            break
        if byte < 0x80:
            lengths.append(length)
            length = shift = 0
    if len(lengths) != count or position + sum(lengths) != len(content):
        raise _mismatch(name, (count,), f"{len(content)} bytes that do not encode that many strings")
    strings = []
    for length in lengths:
        strings.append(content[position : position + length])
        position += length
    return strings


def _fill(values: NDArray[Any], name: str, count: int) -> NDArray[Any]:
    """Extend values to `count` by repeating the last one; without values, by zeros or empty strings."""
    if len(values) > count:
        raise _mismatch(name, (count,), f"{len(values)} values")
    if len(values) == count:
        return values
    is_text = values.dtype == object
    last: Any = values[-1] if len(values) else b"" if is_text else 0
    cost = _STRING_BYTES + len(last) if is_text else values.itemsize
    if (count - len(values)) * cost > _MAX_REPEATED_BYTES:
        raise _mismatch(
            name, (count,), f"{len(values)} values, which are repeated only up to {_MAX_REPEATED_BYTES} bytes"
        )
    filled = np.full(count, last, dtype=values.dtype)
    filled[: len(values)] = values
    return filled


def make_string_array(strings: Sequence[bytes]) -> NDArray[np.object_]:
    """Return strings as an object array, shape [N]."""
    array = np.empty(len(strings), dtype=object)  # np.array would strip trailing zero bytes
    array[:] = strings
    return array


def _mismatch(name: str, shape: tuple[int, ...], found: str) -> InputError:
    return InputError(f"Tensor {name!r} does not match its shape {list(shape)}: it has {found}.")

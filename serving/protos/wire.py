"""Estimate of the memory that a serialized message takes once it is parsed, without parsing it.

An empty message inside another takes two bytes on the wire and hundreds in memory, so a limit on the size of
a message does not bound the memory of the process.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from serving.errors import InputError

MAX_FIELDS = 1_000_000
"""Maximum fields of a message, those of the messages inside it included."""

_MESSAGE_BYTES = 256
"""Memory of an empty message inside another; a TensorProto in a map takes the most, about 180 bytes."""

_FIELD_BYTES = 64
"""Memory of a field besides its content, as a value of Python and in an array."""

_NUMBER_BYTES = 16
"""Memory of a number of a packed field: in the message, and in an array."""

_MAX_DEPTH = 100
"""Depth of messages inside messages from which protobuf rejects a body."""

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
"""Wire types."""

_FIXED_SIZES = {1: 8, 2: 4, 6: 8, 7: 4, 15: 4, 16: 8}
"""Bytes of a number by field type, where they are fixed (FieldDescriptor.TYPE_*)."""

_BYTES_TYPES = (9, 12)
"""Field types of text and bytes."""


def estimate_memory(body: bytes, descriptor: Any, max_fields: int = MAX_FIELDS) -> int:
    """Return about how many bytes a message takes, besides its serialized form and its values in arrays.

    A body that is not well-formed is read up to the error, which the parser will find again.

    Args:
        body: serialized message.
        descriptor: descriptor of the message.
        max_fields: maximum fields, those of the messages inside it included.

    Raises:
        InputError: it has more fields.
    """
    total, fields_left = len(body), max_fields
    view, position, end = memoryview(body), 0, len(body)
    fields = _describe_fields(descriptor)
    # Where the messages around the current one go on. Nothing is kept of those inside it: a list of a million
    # messages yet to be read would keep the garbage collector, and so all threads, busy.
    enclosing: list[tuple[int, int, dict[int, Any]]] = []
    try:
        while True:
            while position >= end:
                if not enclosing:
                    return total
                position, end, fields = enclosing.pop()
            fields_left -= 1
            if fields_left < 0:
                raise InputError(f"The message has more than {max_fields:,} fields.")
            total += _FIELD_BYTES
            key, position = body[position], position + 1
            if key >= 0x80:
                key, position = _read_varint(body, position - 1)
            wire_type, kind = key & 7, fields.get(key >> 3)
            if wire_type != _DELIMITED:
                position = _skip_number(body, position, wire_type)
                continue
            size, position = body[position], position + 1
            if size >= 0x80:
                size, position = _read_varint(body, position - 1)
            if isinstance(kind, int):  # packed numbers, of that many bytes or as varints
                numbers = np.frombuffer(view[position : min(position + size, end)], np.uint8)
                total += _NUMBER_BYTES * (len(numbers) // kind if kind else int(np.sum(numbers < 0x80)))
            elif kind is not None:
                total += _MESSAGE_BYTES
                if size and len(enclosing) < _MAX_DEPTH:
                    enclosing.append((position + size, end, fields))
                    end, fields = min(position + size, end), _describe_fields(kind)
                    continue
            position += size
    except IndexError:  # the body ends inside a number
        return total


def _skip_number(body: bytes, position: int, wire_type: int) -> int:
    """Return the position behind a field that is not delimited by a length."""
    if wire_type == _VARINT:
        return _read_varint(body, position)[1]
    return position + {_FIXED64: 8, _FIXED32: 4}.get(wire_type, 0)  # groups have no length


def _read_varint(body: bytes, position: int) -> tuple[int, int]:
    """Return a number of at most ten bytes, and the position behind it."""
    byte = body[position]
    if byte < 0x80:
        return byte, position + 1
    value, shift = byte & 0x7F, 7
    while byte >= 0x80 and shift < 70:
        position += 1
        byte = body[position]
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, position + 1


@functools.cache
def _describe_fields(descriptor: Any) -> dict[int, Any]:
    """Return, by field number: a descriptor for messages, and for numbers their size, 0 if it varies."""
    return {
        field.number: field.message_type or _FIXED_SIZES.get(field.type, 0)
        for field in descriptor.fields
        if field.type not in _BYTES_TYPES
    }

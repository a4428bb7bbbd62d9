"""Readers of numbers, signatures and segments in a photo's bytes, as TensorFlow ops.

No op here fails, whatever the bytes are: bytes beyond the end read as zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

_ByteOrder = Literal["little", "big"]

HEAD_BYTES = 40
"""Every format except JPEG has its dimensions within this many bytes."""

_BEYOND = 1 << 30
"""A position beyond the end of any photo."""

_MOST_STEPS = 4096
"""Maximum of segments to visit. Photos have some tens; millions of tiny ones would take minutes."""


def read_head(contents: Any) -> Any:
    """Return the first bytes of a string scalar as int32 [HEAD_BYTES], zeros beyond the end."""
    return read_bytes(contents, 0, HEAD_BYTES)


def read_bytes(contents: Any, position: Any, count: int) -> Any:
    """Return `count` bytes from `position` on as int32 [count], zeros beyond the end."""
    import tensorflow as tf

    position = tf.clip_by_value(position, 0, tf.strings.length(contents))
    padded = tf.strings.join([tf.strings.substr(contents, position, count), b"\0" * count])
    # The second substr fixes the length, so that the shape is known when the graph is traced.
    return tf.cast(tf.io.decode_raw(tf.strings.substr(padded, 0, count), tf.uint8), tf.int32)


def cut(contents: Any, start: Any, size: Any) -> Any:
    """Return up to `size` bytes (int32 or int64) of a string scalar from `start` on, as a string."""
    import tensorflow as tf

    size = tf.cast(tf.clip_by_value(size, 0, _BEYOND), tf.int32)
    return tf.strings.substr(contents, tf.minimum(start, tf.strings.length(contents)), size)


def matches(head: Any, signature: bytes, at: int = 0) -> Any:
    """Return bool: true if the int32 bytes have `signature` at position `at`."""
    import tensorflow as tf

    return tf.reduce_all(tf.equal(head[at : at + len(signature)], list(signature)))


def read_number(head: Any, at: int, size: int, order: _ByteOrder = "little") -> Any:
    """Return the unsigned number of `size` bytes at position `at`, as int64."""
    import tensorflow as tf

    weights = [256**power for power in range(size)][:: 1 if order == "little" else -1]
    return tf.reduce_sum(tf.cast(head[at : at + size], tf.int64) * tf.constant(weights, tf.int64))


def read_pair(head: Any, first: int, second: int, size: int, order: _ByteOrder = "little") -> Any:
    """Return two unsigned numbers of `size` bytes at the positions `first` and `second`, int64 [2]."""
    import tensorflow as tf

    return tf.stack([read_number(head, at, size, order) for at in (first, second)])


def add_offset(start: Any, length: Any) -> Any:
    """Return `start` + `length` (int64, up to 2**32) as int32, clamped to _BEYOND."""
    import tensorflow as tf

    return tf.cast(tf.minimum(tf.cast(start, tf.int64) + length, _BEYOND), tf.int32)


def contains(contents: Any, text: bytes) -> Any:
    """Return bool: true if a string scalar contains `text`."""
    import tensorflow as tf

    return tf.size(tf.strings.split(contents, text, maxsplit=1)) > 1


def find_segment(contents: Any, start: int, step: Callable[[Any], tuple[Any, Any]]) -> Any:
    """Go from segment to segment until `step` finds one; return its position as int32, or -1.

    Every step advances by at least one byte, so the loop ends.

    Args:
        contents: string scalar.
        start: position of the first segment.
        step: position -> (found, position of the next segment; at or beyond the end to stop).
    """
    import tensorflow as tf

    length = tf.strings.length(contents)

    def body(position: Any, found: Any, steps: Any) -> Any:
        found, following = step(position)
        return tf.where(found, position, tf.maximum(following, position + 1)), found, steps + 1

    position, found, _ = tf.while_loop(
        lambda position, found, steps: (position < length) & ~found & (steps < _MOST_STEPS),
        body,
        (tf.constant(start), tf.constant(False), tf.constant(0)),
    )
    return tf.where(found, position, -1)

"""Reading numbers, signatures and chains of segments out of a photo's bytes, as TensorFlow ops.

Nothing here fails, whatever the bytes are: what lies beyond the end reads as zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

HEAD_BYTES = 40
"""Every format but JPEG has its dimensions within so many bytes."""

_MOST_STEPS = 4096
"""Segments that a walk looks at. A photo has some tens; millions, each a few bytes, would take minutes."""


def head_of(contents: Any) -> Any:
    """The first bytes of a string scalar as int32 [HEAD_BYTES], zeros beyond the end."""
    return bytes_at(contents, 0, HEAD_BYTES)


def bytes_at(contents: Any, position: Any, count: int) -> Any:
    """`count` bytes from `position` on as int32 [count], zeros beyond the end."""
    import tensorflow as tf

    position = tf.clip_by_value(position, 0, tf.strings.length(contents))
    padded = tf.strings.join([tf.strings.substr(contents, position, count), b"\0" * count])
    # Of a fixed length, so that the shape is known when the graph is built.
    return tf.cast(tf.io.decode_raw(tf.strings.substr(padded, 0, count), tf.uint8), tf.int32)


def begins(head: Any, signature: bytes, at: int = 0) -> Any:
    """Whether `signature` stands at a place of int32 bytes; bool."""
    import tensorflow as tf

    return tf.reduce_all(tf.equal(head[at : at + len(signature)], list(signature)))


def number(head: Any, places: Sequence[int]) -> Any:
    """An unsigned number from bytes at `places`, the least significant first; int64."""
    import tensorflow as tf

    chosen = tf.cast(tf.gather(head, list(places)), tf.int64)
    return tf.reduce_sum(chosen * tf.constant([256**power for power in range(len(places))], tf.int64))


def offset(start: Any, length: Any) -> Any:
    """`start` + `length` (int64, up to 2**32) as int32, held below 2**30: beyond the end of any photo."""
    import tensorflow as tf

    return tf.cast(tf.minimum(tf.cast(start, tf.int64) + length, 1 << 30), tf.int32)


def has(contents: Any, text: bytes) -> Any:
    """Whether `text` stands anywhere in a string scalar; bool."""
    import tensorflow as tf

    return tf.size(tf.strings.split(contents, text, maxsplit=1)) > 1


def walk(contents: Any, start: int, step: Callable[[Any], tuple[Any, Any]]) -> Any:
    """Go from segment to segment until one is found; its position as int32, or -1.

    Args:
        contents: string scalar.
        start: position of the first segment.
        step: position -> (found, position of the next segment; at or beyond the end to give up).
    """
    import tensorflow as tf

    length = tf.strings.length(contents)

    def on(position: Any, found: Any, steps: Any) -> Any:
        return (position < length) & tf.logical_not(found) & (steps < _MOST_STEPS)

    def body(position: Any, found: Any, steps: Any) -> Any:
        found, following = step(position)
        return tf.where(found, position, tf.maximum(following, position + 1)), found, steps + 1

    position, found, _ = tf.while_loop(on, body, (tf.constant(start), tf.constant(False), tf.constant(0)))
    return tf.where(found, position, -1)

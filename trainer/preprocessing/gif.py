"""GIF (GIF89a specification): its first frame, on white.

The decoder unpacks every frame before it gives the first, so a small file could take any amount
of memory. It is therefore given another file, of the first frame alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trainer.preprocessing import headers, limits
from trainer.preprocessing.limits import Claim, Decoded, Lane
from trainer.preprocessing.settings import CORRUPT, TOO_LARGE, Preprocessing

SIGNATURE = b"GIF8"

_EXTENSION, _IMAGE, _TRAILER, _GRAPHIC_CONTROL = 0x21, 0x2C, 0x3B, 0xF9
_BYTES_A_PIXEL = 12
_RUN = 1024
"""Sub-blocks of one length that are passed in one step."""

_MOST_STEPS = 4096
"""Runs of sub-blocks of one photo. Encoders write blocks of one length, then a shorter one."""


class _Frame(NamedTuple):
    """Where the first frame is.

    Attributes:
        position: of its image descriptor, or -1.
        transparent: index of the transparent colour, or -1.
        steps: how long it took to find it.
    """

    position: Any
    transparent: Any
    steps: Any


def decode(contents: Any, head: Any, settings: Preprocessing, lane: Lane) -> Decoded:
    """The first frame of one GIF on its canvas, which is enlarged where the frame sticks out."""
    import tensorflow as tf

    source = tf.strings.substr(contents, 0, settings.max_gif_bytes)
    frame = _first_frame(source, head)
    descriptor = headers.bytes_at(source, frame.position, 10)
    place = tf.stack([_short(descriptor, 3), _short(descriptor, 1)])
    sides = tf.stack([_short(descriptor, 7), _short(descriptor, 5)])
    canvas = tf.maximum(tf.stack([_short(head, 8), _short(head, 6)]), place + sides)
    data = frame.position + 10 + _table_bytes(descriptor[9])
    # Behind the colours: the smallest code's size, then the sub-blocks.
    end, steps = _behind_blocks(source, data + 1, frame.steps)
    status = limits.judge(canvas, settings.max_gif_pixels)
    status = tf.where((steps >= _MOST_STEPS) | _is_cut_by_us(contents, end, settings), TOO_LARGE, status)
    status = tf.where((frame.position < 0) | tf.reduce_any(sides <= 0), CORRUPT, status)

    def pixels() -> Any:
        own = descriptor[9] >= 128
        flags = tf.where(own, descriptor[9], head[10])
        table = tf.where(own, frame.position + 10, 13)
        colours = tf.strings.substr(source, tf.minimum(table, size), _table_bytes(flags))
        single = tf.strings.join(
            [
                b"GIF89a",
                tf.strings.substr(source, frame.position + 5, 4),  # its sides are those of the canvas
                _byte(128 | flags % 8),
                b"\0\0",
                _whitened(colours, frame.transparent),
                b"\x2c\0\0\0\0",
                tf.strings.substr(source, frame.position + 5, 4),
                _byte(descriptor[9] // 64 % 2 * 64),  # interlaced or not
                tf.strings.substr(source, tf.minimum(data, size), tf.maximum(end - data, 0)),
                bytes([_TRAILER]),
            ]
        )
        return _on_canvas(tf.io.decode_gif(single)[0], place, canvas)

    size = tf.strings.length(source)
    claim = Claim(canvas, status, canvas[0] * canvas[1] * _BYTES_A_PIXEL, tf.constant(1))
    return limits.decode(claim, pixels, settings, lane)


def _short(raw: Any, at: int) -> Any:
    return headers.number(raw, (at, at + 1))


def _byte(value: Any) -> Any:
    """A number from 0 to 255 as a string of one byte."""
    import tensorflow as tf

    return tf.gather(tf.constant([bytes([number]) for number in range(256)]), value)


def _table_bytes(flags: Any) -> Any:
    """Bytes of the colour table that packed flags announce (18 and 20, size of the table)."""
    import tensorflow as tf

    return tf.where(flags >= 128, 3 * tf.bitwise.left_shift(2, flags % 8), 0)


def _is_cut_by_us(contents: Any, end: Any, settings: Preprocessing) -> Any:
    import tensorflow as tf

    return (end >= settings.max_gif_bytes) & (tf.strings.length(contents) > settings.max_gif_bytes)


def _first_frame(source: Any, head: Any) -> _Frame:
    """Pass the extensions before the first image (23 to 26), and keep what the last one says of it."""
    import tensorflow as tf

    length = tf.strings.length(source)

    def on(position: Any, transparent: Any, steps: Any) -> Any:
        del transparent
        is_image = tf.equal(headers.bytes_at(source, position, 1)[0], _IMAGE)
        return (position < length) & (steps < _MOST_STEPS) & tf.logical_not(is_image)

    def body(position: Any, transparent: Any, steps: Any) -> Any:
        block = headers.bytes_at(source, position, 8)
        is_extension = tf.equal(block[0], _EXTENSION)
        controls = is_extension & tf.equal(block[1], _GRAPHIC_CONTROL) & tf.equal(block[2], 4)
        index = tf.where(block[3] % 2 > 0, block[6], -1)
        behind, steps = tf.cond(
            is_extension,
            lambda: _behind_blocks(source, position + 2, steps + 1),
            lambda: (length, steps + 1),
        )
        return behind, tf.where(controls, index, transparent), steps

    start = 13 + _table_bytes(head[10])
    position, transparent, steps = tf.while_loop(on, body, (start, tf.constant(-1), tf.constant(0)))
    return _Frame(tf.where((position < length) & (steps < _MOST_STEPS), position, -1), transparent, steps)


def _behind_blocks(source: Any, start: Any, steps: Any) -> tuple[Any, Any]:
    """Position behind the empty sub-block that ends a chain of them (15), and the steps so far.

    Each step passes a run of sub-blocks of one length at once, so that a photo takes a few.
    """
    import tensorflow as tf

    length = tf.strings.length(source)

    def on(position: Any, ended: Any, steps: Any) -> Any:
        return (position < length) & tf.logical_not(ended) & (steps < _MOST_STEPS)

    def body(position: Any, ended: Any, steps: Any) -> Any:
        size = headers.bytes_at(source, position, 1)[0]
        stretch = tf.io.decode_raw(tf.strings.substr(source, position, _RUN * (size + 1)), tf.uint8)
        sizes = tf.cast(stretch[:: size + 1], tf.int32)
        others = tf.concat([tf.not_equal(sizes, size), [True]], 0)
        run = tf.cast(tf.argmax(others), tf.int32)
        ended = tf.equal(size, 0)
        return tf.where(ended, position + 1, position + run * (size + 1)), ended, steps + 1

    position, _, steps = tf.while_loop(
        on, body, (tf.minimum(start, length), tf.constant(False), tf.convert_to_tensor(steps))
    )
    return tf.minimum(position, length), steps


def _whitened(colours: Any, transparent: Any) -> Any:
    """A colour table whose transparent colour is white."""
    import tensorflow as tf

    size = tf.strings.length(colours)
    start = tf.minimum(3 * transparent, size)
    white = tf.strings.join(
        [
            tf.strings.substr(colours, 0, tf.maximum(start, 0)),
            b"\xff\xff\xff",
            tf.strings.substr(colours, tf.minimum(tf.maximum(start, 0) + 3, size), size),
        ]
    )
    return tf.where((transparent >= 0) & (3 * transparent < size), white, colours)


def _on_canvas(frame: Any, place: Any, canvas: Any) -> Any:
    """uint8 [h,w,3] at its place of a white canvas."""
    import tensorflow as tf

    def padded() -> Any:
        before = tf.cast(place, tf.int32)
        after = tf.cast(canvas, tf.int32) - before - tf.shape(frame)[:2]
        paddings = tf.concat([tf.stack([before, after], 1), [[0, 0]]], 0)
        return tf.pad(frame, paddings, constant_values=tf.constant(255, tf.uint8))

    fills = tf.reduce_all(tf.equal(tf.shape(frame)[:2], tf.cast(canvas, tf.int32)))
    return tf.cond(fills, lambda: frame, padded)

"""GIF (GIF89a specification): the first frame, on white.

The decoder decompresses all frames before it returns the first one, so a small file could take any
amount of memory. It therefore gets a new file that contains only the first frame.
"""

from __future__ import annotations

from typing import Any

from trainer.preprocessing import headers
from trainer.preprocessing.limits import HeaderInfo
from trainer.preprocessing.settings import CORRUPT, OK, TOO_LARGE, Preprocessing

SIGNATURE = b"GIF8"

_EXTENSION, _IMAGE, _TRAILER, _GRAPHIC_CONTROL = 0x21, 0x2C, 0x3B, 0xF9
_BYTES_PER_PIXEL = 12
_RUN = 1024
"""Sub-blocks of equal length that are skipped in one step of the loop."""

_MOST_STEPS = 4096
"""Maximum number of steps per photo. Encoders write blocks of equal length, then a shorter one."""


def read_header(contents: Any, head: Any, settings: Preprocessing) -> HeaderInfo:
    """Find the first frame, and decode it on its canvas, which is enlarged if the frame exceeds it."""
    import tensorflow as tf

    source = tf.strings.substr(contents, 0, settings.max_gif_bytes)
    position, transparent, steps = _find_first_frame(source, head)
    descriptor = headers.read_bytes(source, position, 10)
    place = headers.read_pair(descriptor, 3, 1, 2)
    sides = headers.read_pair(descriptor, 7, 5, 2)
    canvas = tf.maximum(headers.read_pair(head, 8, 6, 2), place + sides)
    data = position + 10 + _color_table_bytes(descriptor[9])
    # After the colour table: one byte with the minimum code size, then the sub-blocks.
    end, steps = _skip_sub_blocks(source, data + 1, steps)
    # Does the frame end beyond the limit rather than at the end of the file?
    cut_off = (end >= settings.max_gif_bytes) & (tf.strings.length(contents) > settings.max_gif_bytes)
    status = tf.where((steps >= _MOST_STEPS) | cut_off, TOO_LARGE, OK)
    status = tf.where((position < 0) | tf.reduce_any(sides <= 0), CORRUPT, status)

    def decode() -> Any:
        # A GIF of the first frame alone: header and screen descriptor with the frame's size, the colour
        # table (its own or the global one) with white for transparent, the image, the trailer.
        own = descriptor[9] >= 128
        flags = tf.where(own, descriptor[9], head[10])
        colours = headers.cut(source, tf.where(own, position + 10, 13), _color_table_bytes(flags))
        frame_size = tf.strings.substr(source, position + 5, 4)  # which the canvas gets too
        single = tf.strings.join(
            [
                b"GIF89a",
                frame_size,
                _to_byte(128 | flags % 8),
                b"\0\0",
                _whiten_transparent(colours, transparent),
                b"\x2c\0\0\0\0",
                frame_size,
                _to_byte(descriptor[9] // 64 % 2 * 64),  # interlaced or not
                headers.cut(source, data, end - data),
                bytes([_TRAILER]),
            ]
        )
        return _place_on_canvas(tf.io.decode_gif(single)[0], place, canvas)

    return HeaderInfo(canvas, settings.max_gif_pixels, _BYTES_PER_PIXEL, decode, status)


def _to_byte(value: Any) -> Any:
    """Return a number from 0 to 255 as a string of one byte."""
    import tensorflow as tf

    return tf.gather(tf.constant([bytes([number]) for number in range(256)]), value)


def _color_table_bytes(flags: Any) -> Any:
    """Return the size in bytes of the colour table that the packed flags declare (sections 18 and 20)."""
    import tensorflow as tf

    return tf.where(flags >= 128, 3 * tf.bitwise.left_shift(2, flags % 8), 0)


def _find_first_frame(source: Any, head: Any) -> tuple[Any, Any, Any]:
    """Skip the extensions before the first image (sections 23 to 26).

    Returns:
        position: position of the image descriptor, or -1.
        transparent: index of the last transparent colour, or -1.
        steps: loop steps that were used.
    """
    import tensorflow as tf

    length = tf.strings.length(source)

    def condition(position: Any, _transparent: Any, steps: Any) -> Any:
        is_image = tf.equal(headers.read_bytes(source, position, 1)[0], _IMAGE)
        return (position < length) & (steps < _MOST_STEPS) & ~is_image

    def body(position: Any, transparent: Any, steps: Any) -> Any:
        block = headers.read_bytes(source, position, 8)
        is_extension = tf.equal(block[0], _EXTENSION)
        controls = is_extension & tf.equal(block[1], _GRAPHIC_CONTROL) & tf.equal(block[2], 4)
        index = tf.where(block[3] % 2 > 0, block[6], -1)
        behind, steps = tf.cond(
            is_extension,
            lambda: _skip_sub_blocks(source, position + 2, steps + 1),
            lambda: (length, steps + 1),
        )
        return behind, tf.where(controls, index, transparent), steps

    start = 13 + _color_table_bytes(head[10])
    position, transparent, steps = tf.while_loop(condition, body, (start, tf.constant(-1), tf.constant(0)))
    return tf.where((position < length) & (steps < _MOST_STEPS), position, -1), transparent, steps


def _skip_sub_blocks(source: Any, start: Any, steps: Any) -> tuple[Any, Any]:
    """Return the position after the terminating empty sub-block (section 15), and the steps so far.

    Each step skips a whole run of sub-blocks of equal length, so that a photo takes only a few steps.
    """
    import tensorflow as tf

    length = tf.strings.length(source)

    def body(position: Any, ended: Any, steps: Any) -> Any:
        size = headers.read_bytes(source, position, 1)[0]
        # Every (size + 1)-th byte is the length of a block, as long as the lengths are equal.
        stretch = tf.io.decode_raw(tf.strings.substr(source, position, _RUN * (size + 1)), tf.uint8)
        sizes = tf.cast(stretch[:: size + 1], tf.int32)
        others = tf.concat([tf.not_equal(sizes, size), [True]], 0)
        run = tf.cast(tf.argmax(others), tf.int32)
        ended = tf.equal(size, 0)
        return tf.where(ended, position + 1, position + run * (size + 1)), ended, steps + 1

    position, _, steps = tf.while_loop(
        lambda position, ended, steps: (position < length) & ~ended & (steps < _MOST_STEPS),
        body,
        (tf.minimum(start, length), tf.constant(False), tf.convert_to_tensor(steps)),
    )
    return tf.minimum(position, length), steps


def _whiten_transparent(colours: Any, transparent: Any) -> Any:
    """Return the colour table with white in place of the transparent colour."""
    import tensorflow as tf

    start, size = 3 * transparent, tf.strings.length(colours)
    before, behind = headers.cut(colours, 0, start), headers.cut(colours, start + 3, size)
    white = tf.strings.join([before, b"\xff\xff\xff", behind])
    return tf.where((start >= 0) & (start < size), white, colours)


def _place_on_canvas(frame: Any, place: Any, canvas: Any) -> Any:
    """Pad a frame, uint8 [h,w,3], with white to the size of the canvas."""
    import tensorflow as tf

    def padded() -> Any:
        before = tf.cast(place, tf.int32)
        after = tf.cast(canvas, tf.int32) - before - tf.shape(frame)[:2]
        paddings = tf.concat([tf.stack([before, after], 1), [[0, 0]]], 0)
        return tf.pad(frame, paddings, constant_values=tf.constant(255, tf.uint8))

    fills = tf.reduce_all(tf.equal(tf.shape(frame)[:2], tf.cast(canvas, tf.int32)))
    return tf.cond(fills, lambda: frame, padded)

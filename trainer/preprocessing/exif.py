"""EXIF orientation: read from its TIFF structure (Exif 2.32, 4.5.4, 4.6.4; TIFF 6.0, section 2), undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.preprocessing import headers

IDENTIFIER = b"Exif\0\0"
"""Prefix of EXIF data in JPEG, and in WebP files of some writers."""

_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4
_MOST_ENTRIES = 512


def find_orientation(
    contents: Any, start: int, step: Callable[[Any], tuple[Any, Any]], read_tiff: Callable[[Any], Any]
) -> Any:
    """Return the EXIF orientation of the first segment that `step` finds; 1 if there is none.

    Args:
        contents: encoded photo, string scalar.
        start: position of the first segment.
        step: see `headers.find_segment`.
        read_tiff: position of the segment -> its TIFF data, string scalar.
    """
    import tensorflow as tf

    position = headers.find_segment(contents, start, step)
    return tf.cond(position >= 0, lambda: read_orientation(read_tiff(position)), lambda: tf.constant(1))


def read_orientation(tiff: Any) -> Any:
    """Return the EXIF orientation, 1 to 8, as int32; 1 if it is missing or invalid.

    Args:
        tiff: string scalar that should start with a TIFF header.
    """
    import tensorflow as tf

    little = tf.equal(tf.strings.substr(tiff, 0, 2), b"II")
    big = tf.equal(tf.strings.substr(tiff, 0, 2), b"MM")

    def number(at: Any, size: int) -> Any:
        """Return an unsigned number of `size` bytes; 0 beyond the end."""
        raw = headers.read_bytes(tiff, at, size)
        return headers.read_number(tf.where(little, raw, raw[::-1]), 0, size)

    def search() -> Any:
        # The whole directory is read at once as a table of 12-byte entries: tag, type, count, value.
        directory = headers.add_offset(0, number(4, 4))
        entries = tf.cast(tf.minimum(number(directory, 2), _MOST_ENTRIES), tf.int32)
        raw = tf.io.decode_raw(headers.cut(tiff, directory + 2, 12 * entries), tf.uint8)
        table = tf.cast(tf.reshape(raw[: tf.size(raw) // 12 * 12], [-1, 12]), tf.int32)

        def short(at: int) -> Any:
            first, second = table[:, at], table[:, at + 1]
            return tf.where(little, first + 256 * second, 256 * first + second)

        kind = short(2)
        # The tag is a SHORT, but some writers use a LONG: its lower half comes last in big-endian files,
        # and its upper half must be zero.
        lower = tf.where(little | tf.equal(kind, _SHORT), short(8), short(10))
        upper = tf.where(tf.equal(kind, _SHORT), 0, tf.where(little, short(10), short(8)))
        sound = tf.equal(kind, _SHORT) | tf.equal(kind, _LONG) & tf.equal(upper, 0)
        values = tf.boolean_mask(lower, tf.equal(short(0), _ORIENTATION) & sound)
        value = tf.concat([values, [1]], 0)[0]
        return tf.where((value >= 1) & (value <= 8), value, 1)

    return tf.cond(little | big, search, lambda: tf.constant(1))


def apply_orientation(columns: Any, orientation: Any) -> Any:
    """Undo the rotation and mirroring of an EXIF orientation, 1 to 8; return pixels [H,W,3].

    This runs after the resize, when the photo is small.

    Args:
        columns: [w,3,h], the columns of the photo as stored, each with its three colours apart. So a photo
            that is rotated by 90 degrees is not transposed twice.
        orientation: int32.
    """
    import tensorflow as tf

    def is_any_of(*orientations: int) -> Any:
        return tf.reduce_any(tf.equal(orientation, orientations))

    def flip() -> Any:
        axes = tf.boolean_mask([0, 1], [is_any_of(3, 4, 7, 8), is_any_of(2, 3, 6, 7)])
        return tf.reverse(pixels, axes)

    def transpose() -> Any:
        width, _, height = tf.unstack(tf.shape(columns))
        return tf.reshape(tf.transpose(tf.reshape(columns, [-1, height])), [height, width, 3])

    pixels = tf.cond(orientation >= 5, lambda: tf.transpose(columns, [0, 2, 1]), transpose)
    return tf.cond(orientation > 1, flip, lambda: pixels)

"""WebP (RFC 9649): lossy and lossless, alpha composed on white, with the orientation of the EXIF chunk."""

from __future__ import annotations

import base64
from typing import Any

from trainer.preprocessing import exif, headers, resize
from trainer.preprocessing.limits import HeaderInfo
from trainer.preprocessing.settings import CORRUPT, OK, UNSUPPORTED, Preprocessing

SIGNATURE = b"RIFF"
FORM = b"WEBP"
"""Signature at byte 8, after the size of the file."""

_ANIMATION, _EXIF, _ALPHA = 0x02, 0x08, 0x10
_BYTES_PER_PIXEL = 30

_PROBE = base64.b64decode("UklGRh4AAABXRUJQVlA4TBEAAAAvAAAAAAdQvOIVr/+BiOh/AAA=")
"""Lossless photo of one pixel, to test whether TensorFlow decodes WebP."""


def read_header(contents: Any, head: Any, settings: Preprocessing, repair: Any) -> HeaderInfo:
    """Read the canvas (VP8X), lossless (VP8L) or lossy (VP8) header at byte 12.

    Animations are rejected.
    """
    import tensorflow as tf

    extended, lossless = tf.equal(head[15], ord("X")), tf.equal(head[15], ord("L"))

    def chosen(of_extended: Any, of_lossless: Any, of_lossy: Any) -> Any:
        return tf.where(extended, of_extended, tf.where(lossless, of_lossless, of_lossy))

    packed = tf.stack([headers.read_number(head, 22, 3) // 2**6, headers.read_number(head, 21, 2)])
    sides = chosen(
        1 + headers.read_pair(head, 27, 24, 3),
        1 + packed % 2**14,
        headers.read_pair(head, 28, 26, 2) % 2**14,
    )
    flags = chosen(head[20], tf.bitwise.bitwise_and(head[24], _ALPHA), 0)

    def flagged(flag: int) -> Any:
        return tf.bitwise.bitwise_and(flags, flag) > 0

    def image(channels: int) -> Any:
        # The decoder requires exactly the channels of the file. This op is used since tf.io.decode_webp
        # does not exist in TensorFlow before 2.20; there this one fails, which is caught.
        return tf.io.decode_image(contents, channels=channels, expand_animations=False)

    def decode() -> Any:
        # A canvas may omit the alpha flag that its photo has: a second attempt tries the other way.
        with_alpha = tf.not_equal(flagged(_ALPHA), repair)
        return tf.cond(with_alpha, lambda: resize.compose_on_white(image(4)), lambda: image(3))

    status = tf.where(flagged(_ANIMATION), UNSUPPORTED, OK)
    orientation = tf.cond(flagged(_EXIF), lambda: _read_orientation(contents), lambda: tf.constant(1))
    return HeaderInfo(sides, settings.max_whole_pixels, _BYTES_PER_PIXEL, decode, status, orientation)


def _read_orientation(contents: Any) -> Any:
    """Return the orientation of the EXIF chunk (2.7.1.5): TIFF data, from some writers with JPEG's prefix."""
    import tensorflow as tf

    def step(position: Any) -> tuple[Any, Any]:
        chunk = headers.read_bytes(contents, position, 8)
        size = headers.read_number(chunk, 4, 4)
        return headers.matches(chunk, b"EXIF"), headers.add_offset(position + 8, size + size % 2)

    def read_tiff(position: Any) -> Any:
        size = headers.read_number(headers.read_bytes(contents, position, 8), 4, 4)
        data = headers.cut(contents, position + 8, size)
        has_identifier = tf.equal(tf.strings.substr(data, 0, len(exif.IDENTIFIER)), exif.IDENTIFIER)
        return tf.strings.substr(data, tf.where(has_identifier, len(exif.IDENTIFIER), 0), 1 << 20)

    # Bytes after the RIFF container are not part of the photo.
    size = headers.read_number(headers.read_bytes(contents, 4, 4), 0, 4)
    contents = headers.cut(contents, 0, 8 + size)
    return exif.find_orientation(contents, 12, step, read_tiff)


def explain_failures(contents: Any, status: Any) -> Any:
    """Replace CORRUPT by UNSUPPORTED for a WebP if the TensorFlow that runs the graph is older than 2.20.

    Args:
        contents: encoded photos, string [N].
        status: int32 [N].
    """
    import tensorflow as tf

    def is_unsupported() -> Any:
        probe = tf.data.Dataset.from_tensors(tf.constant(_PROBE)).map(
            lambda probe: tf.io.decode_image(probe, channels=3, expand_animations=False)[0, 0, 0]
        )
        return probe.ignore_errors().reduce(tf.constant(True), lambda _found, _value: tf.constant(False))

    form = tf.strings.substr(tf.strings.join([contents, b"\0" * 12]), 8, 4)
    failed = tf.equal(status, CORRUPT) & tf.equal(form, FORM)
    unsupported = tf.cond(tf.reduce_any(failed), is_unsupported, lambda: tf.constant(False))
    return tf.where(failed & unsupported, UNSUPPORTED, status)

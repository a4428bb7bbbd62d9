"""WebP (RFC 9649): lossy and lossless, alpha composed on white, with the orientation of the EXIF chunk."""

from __future__ import annotations

import base64
from typing import Any

from trainer.preprocessing import exif, headers, limits, resize
from trainer.preprocessing.limits import DecodeAttempt, DecodedPhoto, HeaderInfo
from trainer.preprocessing.settings import UNSUPPORTED, Preprocessing

SIGNATURE = b"RIFF"
FORM = b"WEBP"
"""Signature at byte 8, after the size of the file."""

_ANIMATION, _EXIF, _ALPHA = 0x02, 0x08, 0x10
_BYTES_PER_PIXEL = 30

_PROBE = base64.b64decode("UklGRh4AAABXRUJQVlA4TBEAAAAvAAAAAAdQvOIVr/+BiOh/AAA=")
"""Lossless photo of one pixel, to test whether TensorFlow decodes WebP."""


def decode(contents: Any, head: Any, settings: Preprocessing, attempt: DecodeAttempt) -> DecodedPhoto:
    """Decode one WebP with a canvas (VP8X), lossless (VP8L) or lossy (VP8) header at byte 12.

    Animations are rejected.
    """
    import tensorflow as tf

    extended, lossless = tf.equal(head[15], ord("X")), tf.equal(head[15], ord("L"))

    def chosen(of_extended: Any, of_lossless: Any, of_lossy: Any) -> Any:
        return tf.where(extended, of_extended, tf.where(lossless, of_lossless, of_lossy))

    height = chosen(
        1 + headers.read_number(head, (27, 28, 29)),
        1 + headers.read_number(head, (22, 23, 24)) // 2**6 % 2**14,
        headers.read_number(head, (28, 29)) % 2**14,
    )
    width = chosen(
        1 + headers.read_number(head, (24, 25, 26)),
        1 + headers.read_number(head, (21, 22)) % 2**14,
        headers.read_number(head, (26, 27)) % 2**14,
    )
    flags = chosen(head[20], tf.bitwise.bitwise_and(head[24], _ALPHA), 0)

    def flagged(flag: int) -> Any:
        return tf.bitwise.bitwise_and(flags, flag) > 0

    def image(channels: int) -> Any:
        # The decoder requires exactly the channels of the file. This op is used since tf.io.decode_webp
        # does not exist in TensorFlow before 2.20; there this one fails, which is caught.
        return tf.io.decode_image(contents, channels=channels, expand_animations=False)

    def pixels() -> Any:
        # A canvas may omit the alpha flag that its photo has: a second attempt tries the other way.
        with_alpha = tf.not_equal(flagged(_ALPHA), attempt.repair)
        return tf.cond(with_alpha, lambda: resize.compose_on_white(image(4)), lambda: image(3))

    sides = tf.stack([height, width])
    status = limits.check_pixel_count(sides, settings.max_whole_pixels)
    header = HeaderInfo(
        sides,
        tf.where(flagged(_ANIMATION), UNSUPPORTED, status),
        height * width * _BYTES_PER_PIXEL,
        tf.cond(flagged(_EXIF), lambda: _read_orientation(contents), lambda: tf.constant(1)),
    )
    return limits.decode_if_allowed(header, pixels, settings, attempt)


def _read_orientation(contents: Any) -> Any:
    """Return the orientation of the EXIF chunk (2.7.1.5): TIFF data, from some writers with JPEG's prefix."""
    import tensorflow as tf

    def step(position: Any) -> tuple[Any, Any]:
        chunk = headers.read_bytes(contents, position, 8)
        size = headers.read_number(chunk, (4, 5, 6, 7))
        return headers.matches(chunk, b"EXIF"), headers.add_offset(position + 8, size + size % 2)

    def parse() -> Any:
        size = headers.read_number(headers.read_bytes(contents, position, 8), (4, 5, 6, 7))
        start = tf.minimum(position + 8, tf.strings.length(contents))
        data = tf.strings.substr(contents, start, headers.add_offset(0, size))
        has_identifier = tf.equal(tf.strings.substr(data, 0, len(exif.IDENTIFIER)), exif.IDENTIFIER)
        skipped = tf.where(has_identifier, len(exif.IDENTIFIER), 0)
        return exif.read_orientation(tf.strings.substr(data, skipped, 1 << 20))

    # Bytes after the RIFF container are not part of the photo.
    size = headers.read_number(headers.read_bytes(contents, 4, 4), (0, 1, 2, 3))
    contents = tf.strings.substr(contents, 0, headers.add_offset(8, size))
    position = headers.find_segment(contents, 12, step)
    return tf.cond(position >= 0, parse, lambda: tf.constant(1))


def is_supported_here() -> Any:
    """Return bool: true if the TensorFlow that runs the graph decodes WebP, as it does since 2.20."""
    import tensorflow as tf

    def decode(probe: Any) -> Any:
        return tf.io.decode_image(probe, channels=3, expand_animations=False)[0, 0, 0]

    dataset = tf.data.Dataset.from_tensors(tf.constant(_PROBE)).map(decode)
    return dataset.ignore_errors().reduce(tf.constant(False), lambda _found, _value: tf.constant(True))

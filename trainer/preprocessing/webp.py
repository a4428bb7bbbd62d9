"""WebP (RFC 9649): lossy and lossless, alpha on white, turned as its EXIF chunk says."""

from __future__ import annotations

import base64
from typing import Any

from trainer.preprocessing import exif, headers, limits, resize
from trainer.preprocessing.limits import Claim, Decoded, Lane
from trainer.preprocessing.settings import UNSUPPORTED, Preprocessing

SIGNATURE = b"RIFF"
FORM = b"WEBP"
"""At byte 8, behind the size of the file."""

_ANIMATION, _EXIF, _ALPHA = 0x02, 0x08, 0x10
_BYTES_A_PIXEL = 30

_PROBE = base64.b64decode("UklGRh4AAABXRUJQVlA4TBEAAAAvAAAAAAdQvOIVr/+BiOh/AAA=")
"""A lossless photo of one pixel."""


def decode(contents: Any, head: Any, settings: Preprocessing, lane: Lane) -> Decoded:
    """One WebP: a canvas (VP8X), lossless (VP8L) or lossy (VP8) header at 12. Animations are refused."""
    import tensorflow as tf

    extended, lossless = tf.equal(head[15], ord("X")), tf.equal(head[15], ord("L"))

    def chosen(of_extended: Any, of_lossless: Any, of_lossy: Any) -> Any:
        return tf.where(extended, of_extended, tf.where(lossless, of_lossless, of_lossy))

    height = chosen(
        1 + headers.number(head, (27, 28, 29)),
        1 + headers.number(head, (22, 23, 24)) // 2**6 % 2**14,
        headers.number(head, (28, 29)) % 2**14,
    )
    width = chosen(
        1 + headers.number(head, (24, 25, 26)),
        1 + headers.number(head, (21, 22)) % 2**14,
        headers.number(head, (26, 27)) % 2**14,
    )
    flags = chosen(head[20], tf.bitwise.bitwise_and(head[24], _ALPHA), 0)

    def flagged(flag: int) -> Any:
        return tf.bitwise.bitwise_and(flags, flag) > 0

    def image(channels: int) -> Any:
        # The decoder wants exactly the channels that the file has, and no other op takes WebP in
        # TensorFlow before 2.20 (this one fails there, which is caught).
        return tf.io.decode_image(contents, channels=channels, expand_animations=False)

    def pixels() -> Any:
        # A canvas may keep silent about alpha that its photo has.
        with_alpha = tf.not_equal(flagged(_ALPHA), lane.mend)
        return tf.cond(with_alpha, lambda: resize.on_white(image(4)), lambda: image(3))

    sides = tf.stack([height, width])
    status = limits.judge(sides, settings.max_whole_pixels)
    claim = Claim(
        sides,
        tf.where(flagged(_ANIMATION), UNSUPPORTED, status),
        height * width * _BYTES_A_PIXEL,
        tf.cond(flagged(_EXIF), lambda: _orientation(contents), lambda: tf.constant(1)),
    )
    return limits.decode(claim, pixels, settings, lane)


def _orientation(contents: Any) -> Any:
    """That of the EXIF chunk (2.7.1.5): a TIFF header, which some writers put behind JPEG's identifier."""
    import tensorflow as tf

    def step(position: Any) -> tuple[Any, Any]:
        chunk = headers.bytes_at(contents, position, 8)
        size = headers.number(chunk, (4, 5, 6, 7))
        return headers.begins(chunk, b"EXIF"), headers.offset(position + 8, size + size % 2)

    def parse() -> Any:
        size = headers.number(headers.bytes_at(contents, position, 8), (4, 5, 6, 7))
        start = tf.minimum(position + 8, tf.strings.length(contents))
        data = tf.strings.substr(contents, start, headers.offset(0, size))
        has_identifier = tf.equal(tf.strings.substr(data, 0, len(exif.IDENTIFIER)), exif.IDENTIFIER)
        skipped = tf.where(has_identifier, len(exif.IDENTIFIER), 0)
        return exif.orientation(tf.strings.substr(data, skipped, 1 << 20))

    # What stands behind the container is no part of the photo.
    size = headers.number(headers.bytes_at(contents, 4, 4), (0, 1, 2, 3))
    contents = tf.strings.substr(contents, 0, headers.offset(8, size))
    position = headers.walk(contents, 12, step)
    return tf.cond(position >= 0, parse, lambda: tf.constant(1))


def is_decoded_here() -> Any:
    """Whether the TensorFlow that runs the graph decodes WebP at all, as it does since 2.20; bool."""
    import tensorflow as tf

    def decode(probe: Any) -> Any:
        return tf.io.decode_image(probe, channels=3, expand_animations=False)[0, 0, 0]

    dataset = tf.data.Dataset.from_tensors(tf.constant(_PROBE)).map(decode)
    return dataset.ignore_errors().reduce(tf.constant(False), lambda _found, _value: tf.constant(True))

"""PNG (ISO/IEC 15948): alpha composed on white, with the orientation of the eXIf chunk."""

from __future__ import annotations

from typing import Any

from trainer.preprocessing import exif, headers, limits, resize
from trainer.preprocessing.limits import DecodeAttempt, DecodedPhoto, HeaderInfo
from trainer.preprocessing.settings import Preprocessing

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_EXIF, _END = b"eXIf", b"IEND"
_BYTES_PER_PIXEL = 30
"""Four channels, and with alpha the composition in 16 bits."""


def decode(contents: Any, head: Any, settings: Preprocessing, attempt: DecodeAttempt) -> DecodedPhoto:
    """Decode one PNG. IHDR comes first (11.2.2), with width and height big-endian at bytes 16 and 20."""
    import tensorflow as tf

    sides = tf.stack(
        [headers.read_number(head, (23, 22, 21, 20)), headers.read_number(head, (19, 18, 17, 16))]
    )
    sides = tf.where(sides >= 2**31, tf.zeros_like(sides), sides)  # the format's own limit is 2**31 - 1
    # Greyscale below 8 bits has no alpha, and the decoder returns a wrong one if asked for four channels.
    few_greys = (head[24] < 8) & tf.equal(head[25], 0)

    def pixels() -> Any:
        return tf.cond(
            few_greys,
            lambda: tf.io.decode_png(contents, channels=3),
            lambda: resize.compose_on_white(tf.io.decode_png(contents, channels=4)),
        )

    header = HeaderInfo(
        sides,
        limits.check_pixel_count(sides, settings.max_whole_pixels),
        sides[0] * sides[1] * _BYTES_PER_PIXEL,
        _read_orientation(contents),
    )
    return limits.decode_if_allowed(header, pixels, settings, attempt)


def _read_orientation(contents: Any) -> Any:
    """Return the orientation of the eXIf chunk (PNG, third edition, 11.3.3.2), before or after the pixels."""
    import tensorflow as tf

    def read() -> Any:
        def step(position: Any) -> tuple[Any, Any]:
            chunk = headers.read_bytes(contents, position, 8)
            size = headers.read_number(chunk, (3, 2, 1, 0))
            # A chunk consists of length (4 bytes), type (4), data and checksum (4).
            following = headers.add_offset(position + 12, size)
            over = headers.matches(chunk, _END, at=4)
            return headers.matches(chunk, _EXIF, at=4), tf.where(over, length, following)

        def parse() -> Any:
            size = headers.read_number(headers.read_bytes(contents, position, 4), (3, 2, 1, 0))
            start = tf.minimum(position + 8, length)
            return exif.read_orientation(tf.strings.substr(contents, start, headers.add_offset(0, size)))

        position = headers.find_segment(contents, len(SIGNATURE), step)
        return tf.cond(position >= 0, parse, lambda: tf.constant(1))

    length = tf.strings.length(contents)
    return tf.cond(headers.contains(contents, _EXIF), read, lambda: tf.constant(1))

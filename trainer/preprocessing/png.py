"""PNG (ISO/IEC 15948): its alpha on white, turned as its eXIf chunk says."""

from __future__ import annotations

from typing import Any

from trainer.preprocessing import exif, headers, limits, resize
from trainer.preprocessing.limits import Claim, Decoded, Lane
from trainer.preprocessing.settings import Preprocessing

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_EXIF, _END = b"eXIf", b"IEND"
_BYTES_A_PIXEL = 30
"""Four channels, and where there is alpha its composition in 16 bits."""


def decode(contents: Any, head: Any, settings: Preprocessing, lane: Lane) -> Decoded:
    """One PNG. IHDR comes first (11.2.2): width and height are big-endian at 16 and 20."""
    import tensorflow as tf

    sides = tf.stack([headers.number(head, (23, 22, 21, 20)), headers.number(head, (19, 18, 17, 16))])
    sides = tf.where(sides >= 2**31, tf.zeros_like(sides), sides)  # the format's own limit
    # Grey of fewer than 8 bits has no alpha, and asked for one the decoder gives a wrong one.
    few_greys = (head[24] < 8) & tf.equal(head[25], 0)

    def pixels() -> Any:
        return tf.cond(
            few_greys,
            lambda: tf.io.decode_png(contents, channels=3),
            lambda: resize.on_white(tf.io.decode_png(contents, channels=4)),
        )

    claim = Claim(
        sides,
        limits.judge(sides, settings.max_whole_pixels),
        sides[0] * sides[1] * _BYTES_A_PIXEL,
        _orientation(contents),
    )
    return limits.decode(claim, pixels, settings, lane)


def _orientation(contents: Any) -> Any:
    """That of the eXIf chunk (PNG, third edition, 11.3.3.2), before or behind the pixels."""
    import tensorflow as tf

    def read() -> Any:
        def step(position: Any) -> tuple[Any, Any]:
            chunk = headers.bytes_at(contents, position, 8)
            size = headers.number(chunk, (3, 2, 1, 0))
            # A chunk is its length, its type, its data and a checksum.
            following = headers.offset(position + 12, size)
            over = headers.begins(chunk, _END, at=4)
            return headers.begins(chunk, _EXIF, at=4), tf.where(over, length, following)

        def parse() -> Any:
            size = headers.number(headers.bytes_at(contents, position, 4), (3, 2, 1, 0))
            start = tf.minimum(position + 8, length)
            return exif.orientation(tf.strings.substr(contents, start, headers.offset(0, size)))

        position = headers.walk(contents, len(SIGNATURE), step)
        return tf.cond(position >= 0, parse, lambda: tf.constant(1))

    length = tf.strings.length(contents)
    return tf.cond(headers.has(contents, _EXIF), read, lambda: tf.constant(1))

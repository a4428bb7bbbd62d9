"""PNG (ISO/IEC 15948): alpha composed on white, with the orientation of the eXIf chunk."""

from __future__ import annotations

from typing import Any

from trainer.preprocessing import exif, headers, resize
from trainer.preprocessing.limits import HeaderInfo
from trainer.preprocessing.settings import OK, UNSUPPORTED, Preprocessing

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_EXIF, _END = b"eXIf", b"IEND"
_IPHONE = b"CgBI"
"""First chunk of the PNGs in apps for iPhones, whose compression and channels are not PNG's."""

_BYTES_PER_PIXEL = 30
"""Four channels, and with alpha the composition in 16 bits."""


def read_header(contents: Any, head: Any, settings: Preprocessing) -> HeaderInfo:
    """Read the IHDR chunk, which comes first (11.2.2): width and height are big-endian at bytes 16 and 20."""
    import tensorflow as tf

    sides = headers.read_pair(head, 20, 16, 4, "big")
    sides = tf.where(sides >= 2**31, tf.zeros_like(sides), sides)  # the format's own limit is 2**31 - 1
    # Greyscale below 8 bits has no alpha, and the decoder returns a wrong one if asked for four channels.
    few_greys = (head[24] < 8) & tf.equal(head[25], 0)

    def decode() -> Any:
        return tf.cond(
            few_greys,
            lambda: tf.io.decode_png(contents, channels=3),
            lambda: resize.compose_on_white(tf.io.decode_png(contents, channels=4)),
        )

    status = tf.where(headers.matches(head, _IPHONE, at=12), UNSUPPORTED, OK)
    return HeaderInfo(
        sides, settings.max_whole_pixels, _BYTES_PER_PIXEL, decode, status, _read_orientation(contents)
    )


def _read_orientation(contents: Any) -> Any:
    """Return the orientation of the eXIf chunk (PNG, third edition, 11.3.3.2), before or after the pixels."""
    import tensorflow as tf

    def step(position: Any) -> tuple[Any, Any]:
        chunk = headers.read_bytes(contents, position, 8)
        # A chunk consists of length (4 bytes), type (4), data and checksum (4).
        following = headers.add_offset(position + 12, headers.read_number(chunk, 0, 4, "big"))
        over = headers.matches(chunk, _END, at=4)
        return headers.matches(chunk, _EXIF, at=4), tf.where(over, tf.strings.length(contents), following)

    def read_tiff(position: Any) -> Any:
        size = headers.read_number(headers.read_bytes(contents, position, 4), 0, 4, "big")
        return headers.cut(contents, position + 8, size)

    return tf.cond(
        headers.contains(contents, _EXIF),
        lambda: exif.find_orientation(contents, len(SIGNATURE), step, read_tiff),
        lambda: tf.constant(1),
    )

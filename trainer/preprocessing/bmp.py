"""BMP (BITMAPINFOHEADER and later): uncompressed, with 24 or 32 bits per pixel."""

from __future__ import annotations

from typing import Any

from trainer.preprocessing import headers
from trainer.preprocessing.limits import HeaderInfo
from trainer.preprocessing.settings import CORRUPT, OK, UNSUPPORTED, Preprocessing

SIGNATURE = b"BM"

_INFO_HEADER_BYTES = 40
_BYTES_PER_PIXEL = 8


def read_header(contents: Any, head: Any, settings: Preprocessing) -> HeaderInfo:
    """Read the header: width at byte 18, height at 22 (negative: top down), bits at 28, compression at 30.

    Other variants are rejected: the decoder fails on some and returns wrong colours for others.
    """
    import tensorflow as tf

    height, width = headers.read_number(head, 22, 4), headers.read_number(head, 18, 4)
    height = tf.where(height >= 2**31, 2**32 - height, height)
    width = tf.where(width >= 2**31, tf.zeros_like(width), width)
    sides = tf.stack([height, width])
    bits, info_bytes = headers.read_number(head, 28, 2), headers.read_number(head, 14, 4)
    supported = info_bytes >= _INFO_HEADER_BYTES
    supported &= tf.equal(bits, 24) | tf.equal(bits, 32)
    supported &= tf.equal(headers.read_number(head, 30, 4), 0)
    start = headers.read_number(head, 10, 4)  # of the pixel data, after both headers
    status = tf.where(start < 14 + info_bytes, CORRUPT, OK)
    status = tf.where(supported, status, UNSUPPORTED)

    def decode() -> Any:
        # Rows are padded to four bytes. The decoder rejects trailing bytes, which some writers add.
        row = (width * bits // 8 + 3) // 4 * 4
        whole = headers.cut(contents, 0, start + row * height)
        return tf.io.decode_image(whole, channels=3, expand_animations=False)

    return HeaderInfo(sides, settings.max_whole_pixels, _BYTES_PER_PIXEL, decode, status)

"""BMP (BITMAPINFOHEADER and later): uncompressed, with 24 or 32 bits per pixel."""

from __future__ import annotations

from typing import Any

from trainer.preprocessing import headers, limits
from trainer.preprocessing.limits import DecodeAttempt, DecodedPhoto, HeaderInfo
from trainer.preprocessing.settings import CORRUPT, UNSUPPORTED, Preprocessing

SIGNATURE = b"BM"

_INFO_HEADER_BYTES = 40
_BYTES_PER_PIXEL = 8


def decode(contents: Any, head: Any, settings: Preprocessing, attempt: DecodeAttempt) -> DecodedPhoto:
    """Decode one BMP: width at byte 18, height at 22 (negative: top down), bits at 28, compression at 30.

    Other variants are rejected: the decoder fails on some and returns wrong colours for others.
    """
    import tensorflow as tf

    height = headers.read_number(head, (22, 23, 24, 25))
    width = headers.read_number(head, (18, 19, 20, 21))
    height = tf.where(height >= 2**31, 2**32 - height, height)
    width = tf.where(width >= 2**31, tf.zeros_like(width), width)
    bits = headers.read_number(head, (28, 29))
    info_bytes = headers.read_number(head, (14, 15, 16, 17))
    supported = info_bytes >= _INFO_HEADER_BYTES
    supported &= tf.equal(bits, 24) | tf.equal(bits, 32)
    supported &= tf.equal(headers.read_number(head, (30, 31, 32, 33)), 0)
    sides = tf.stack([height, width])
    start = headers.read_number(head, (10, 11, 12, 13))  # of the pixel data, after both headers
    status = tf.where(
        start < 14 + info_bytes, CORRUPT, limits.check_pixel_count(sides, settings.max_whole_pixels)
    )
    status = tf.where(supported, status, UNSUPPORTED)
    header = HeaderInfo(sides, status, height * width * _BYTES_PER_PIXEL, tf.constant(1))

    def pixels() -> Any:
        # Rows are padded to four bytes. The decoder rejects trailing bytes, which some writers add.
        row = (width * bits // 8 + 3) // 4 * 4
        end = headers.add_offset(start, row * height)
        whole = tf.strings.substr(contents, 0, end)
        return tf.io.decode_image(whole, channels=3, expand_animations=False)

    return limits.decode_if_allowed(header, pixels, settings, attempt)

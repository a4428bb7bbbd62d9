"""BMP (BITMAPINFOHEADER and later): uncompressed, of 24 or 32 bits."""

from __future__ import annotations

from typing import Any

from trainer.preprocessing import headers, limits
from trainer.preprocessing.limits import Claim, Decoded, Lane
from trainer.preprocessing.settings import CORRUPT, UNSUPPORTED, Preprocessing

SIGNATURE = b"BM"

_INFO_HEADER_BYTES = 40
_BYTES_A_PIXEL = 8


def decode(contents: Any, head: Any, settings: Preprocessing, lane: Lane) -> Decoded:
    """One BMP: width at 18, height at 22 (negative: top down), bits at 28, compression at 30.

    Of other kinds the decoder refuses some and gives wrong colours of others.
    """
    import tensorflow as tf

    height = headers.number(head, (22, 23, 24, 25))
    width = headers.number(head, (18, 19, 20, 21))
    height = tf.where(height >= 2**31, 2**32 - height, height)
    width = tf.where(width >= 2**31, tf.zeros_like(width), width)
    bits = headers.number(head, (28, 29))
    info_bytes = headers.number(head, (14, 15, 16, 17))
    supported = info_bytes >= _INFO_HEADER_BYTES
    supported &= tf.equal(bits, 24) | tf.equal(bits, 32)
    supported &= tf.equal(headers.number(head, (30, 31, 32, 33)), 0)
    sides = tf.stack([height, width])
    start = headers.number(head, (10, 11, 12, 13))  # of the pixels, behind both headers
    status = tf.where(start < 14 + info_bytes, CORRUPT, limits.judge(sides, settings.max_whole_pixels))
    status = tf.where(supported, status, UNSUPPORTED)
    claim = Claim(sides, status, height * width * _BYTES_A_PIXEL, tf.constant(1))

    def pixels() -> Any:
        # Rows are padded to four bytes. The decoder takes no byte behind them, and writers add some.
        row = (width * bits // 8 + 3) // 4 * 4
        end = headers.offset(start, row * height)
        whole = tf.strings.substr(contents, 0, end)
        return tf.io.decode_image(whole, channels=3, expand_animations=False)

    return limits.decode(claim, pixels, settings, lane)

"""Checks of a photo's header against the limits, before any memory is allocated for its pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from trainer.preprocessing.settings import CORRUPT, GREY, OK, STATUSES, TOO_LARGE, TRUNCATED, Preprocessing

UNUSUAL, POSTPONED = len(STATUSES), len(STATUSES) + 1
"""Internal statuses that lead to another attempt: not an ordinary JPEG; too large to decode in parallel."""


class HeaderInfo(NamedTuple):
    """Properties of a photo by its header.

    Attributes:
        sides: int64 [2], height and width as stored.
        max_pixels: limit of the format.
        bytes_per_pixel: peak memory of the decoding, in bytes per pixel.
        decode: callback that decodes to uint8 [h,w,3]; run only if the photo may be decoded.
        status: int32, OK or TRUNCATED if the photo may be decoded, else the reason to reject it.
        orientation: int32, EXIF orientation, 1 to 8.
    """

    sides: Any
    max_pixels: int
    bytes_per_pixel: int
    decode: Callable[[], Any]
    status: Any = OK
    orientation: Any = 1


class DecodedPhoto(NamedTuple):
    """Decoded photo as stored, before it is resized and its orientation applied.

    Attributes:
        pixels: uint8 [h,w,3], for a JPEG possibly at a reduced scale; one grey pixel if rejected.
        status: int32, index into STATUSES, or UNUSUAL or POSTPONED.
        sides: int32 [2], height and width by the header; zeros if rejected.
        orientation: int32, EXIF orientation; 1 if rejected.
    """

    pixels: Any
    status: Any
    sides: Any
    orientation: Any


def reject(status: Any) -> DecodedPhoto:
    """Return a rejected photo without pixels, with the reason as its status."""
    import tensorflow as tf

    return DecodedPhoto(_grey_pixel(), tf.cast(status, tf.int32), tf.constant([0, 0]), tf.constant(1))


def decode_if_allowed(header: HeaderInfo, settings: Preprocessing, alone: Any) -> DecodedPhoto:
    """Decode a photo if its header is within the limits; else reject or postpone it.

    Args:
        header: properties of the photo by its header.
        settings: limits; photos above `max_parallel_bytes` are postponed unless `alone`.
        alone: bool, true if no other photo of the call is decoded at the same time.
    """
    import tensorflow as tf

    pixels = header.sides[0] * header.sides[1]
    wrong = (pixels <= 0) | (pixels > header.max_pixels)
    reason = tf.where(pixels <= 0, CORRUPT, TOO_LARGE)
    status = tf.where(wrong & (header.status <= TRUNCATED), reason, header.status)
    large = tf.logical_not(alone) & (pixels * header.bytes_per_pixel > settings.max_parallel_bytes)
    status = tf.where(large & (status <= TRUNCATED), POSTPONED, status)
    good = status <= TRUNCATED
    return DecodedPhoto(
        tf.cond(good, header.decode, _grey_pixel),
        status,
        tf.where(good, tf.cast(header.sides, tf.int32), 0),
        tf.where(good, header.orientation, 1),
    )


def _grey_pixel() -> Any:
    """Return the pixels of a rejected photo: one grey pixel, which the resize spreads over the output."""
    import tensorflow as tf

    return tf.fill([1, 1, 3], tf.constant(GREY, tf.uint8))

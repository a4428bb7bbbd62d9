"""Checks of a photo's header against the limits, before any memory is allocated for its pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from trainer.preprocessing.settings import CORRUPT, GREY, OK, STATUSES, TOO_LARGE, TRUNCATED, Preprocessing

UNUSUAL, POSTPONED = len(STATUSES), len(STATUSES) + 1
"""Internal statuses that lead to another attempt: not an ordinary JPEG; too large to decode in parallel."""


class DecodeAttempt(NamedTuple):
    """Mode of an attempt to decode photos after the first one.

    Attributes:
        alone: bool, true if no other photo of the call is decoded at the same time.
        repair: bool, true if the photo failed to decode unmodified and may be truncated.
    """

    alone: Any
    repair: Any


FIRST_ATTEMPT = None
"""Value in place of a DecodeAttempt for the first attempt, which is made for ordinary JPEGs.

TensorFlow instantiates the functions that a call uses anew each time. For all formats together that
costs as much as decoding a small photo. The first attempt therefore contains the JPEG path alone and
gives all other photos the status UNUSUAL, so that the next attempt takes them.
"""


class HeaderInfo(NamedTuple):
    """Properties of a photo by its header.

    Attributes:
        sides: int64 [2], height and width as stored.
        status: int32, OK or TRUNCATED if the photo may be decoded, else the reason to reject it.
        cost: int64, peak memory of the decoding in bytes.
        orientation: int32, EXIF orientation, 1 to 8.
    """

    sides: Any
    status: Any
    cost: Any
    orientation: Any


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


def decode_if_allowed(
    header: HeaderInfo, pixels: Callable[[], Any], settings: Preprocessing, attempt: DecodeAttempt | None
) -> DecodedPhoto:
    """Decode a photo if its header is within the limits; else reject or postpone it.

    Args:
        header: properties of the photo by its header.
        pixels: callback that decodes to uint8 [h,w,3]; run only if the photo may be decoded.
        settings: limits; photos above `max_parallel_bytes` are postponed.
        attempt: mode of the attempt; None for FIRST_ATTEMPT.
    """
    import tensorflow as tf

    status = tf.where(tf.reduce_any(header.sides <= 0) & (header.status <= TRUNCATED), CORRUPT, header.status)
    good = status <= TRUNCATED
    large = good & (header.cost > settings.max_parallel_bytes)
    if attempt:
        large &= tf.logical_not(attempt.alone)
    status = tf.where(large, POSTPONED, status)
    good &= tf.logical_not(large)
    return DecodedPhoto(
        tf.cond(good, pixels, _grey_pixel),
        status,
        tf.where(good, tf.cast(header.sides, tf.int32), 0),
        tf.where(good, header.orientation, 1),
    )


def check_pixel_count(sides: Any, limit: int, otherwise: Any = OK) -> Any:
    """Return TOO_LARGE if the sides (int64 [2]) have more pixels than the limit, else `otherwise`."""
    import tensorflow as tf

    return tf.where(sides[0] * sides[1] > limit, TOO_LARGE, otherwise)


def _grey_pixel() -> Any:
    """Return the pixels of a rejected photo: one grey pixel, which the resize spreads over the output."""
    import tensorflow as tf

    return tf.fill([1, 1, 3], tf.constant(GREY, tf.uint8))

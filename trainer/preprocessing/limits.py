"""From what a photo's header claims to its pixels, or to the reason why there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from trainer.preprocessing.settings import CORRUPT, GREY, OK, STATUSES, TOO_LARGE, TRUNCATED, Preprocessing

UNUSUAL, POSTPONED = len(STATUSES), len(STATUSES) + 1
"""Statuses that never leave the graph: no ordinary JPEG; too large to be decoded beside others."""


class Lane(NamedTuple):
    """How photos are decoded: all at once first, then those that need it in another way.

    Attributes:
        alone: bool, no other photo of the call is decoded at the same time.
        mend: bool, the photo did not decode as it is: try what helps one that was cut.
    """

    alone: Any
    mend: Any


FIRST = None
"""In the place of a lane: the one that all photos take, made for ordinary JPEGs.

A call instantiates the graph of each lane that it takes anew, which for all formats together costs
as much as decoding a small photo. So this one leaves what is not ordinary to the next, as UNUSUAL.
"""


class Claim(NamedTuple):
    """What the header says, before anything is allocated.

    Attributes:
        sides: int64 [2], height and width as stored.
        status: int32, OK (or TRUNCATED) where the photo may be decoded, else why not.
        cost: int64, bytes of memory that decoding takes at its peak.
        orientation: int32, Exif's, 1 to 8.
    """

    sides: Any
    status: Any
    cost: Any
    orientation: Any


class Decoded(NamedTuple):
    """A photo as it is stored, before it is resized and turned upright.

    Attributes:
        pixels: uint8 [h,w,3], of a JPEG perhaps at a reduced scale; one grey dot where refused.
        status: int32, an index into STATUSES, or POSTPONED.
        sides: int32 [2], height and width by the header; zeros where refused.
        orientation: int32, 1 where refused.
    """

    pixels: Any
    status: Any
    sides: Any
    orientation: Any


def refuse(status: Any) -> Decoded:
    """No pixels, for a reason."""
    import tensorflow as tf

    return Decoded(_dot(), tf.cast(status, tf.int32), tf.constant([0, 0]), tf.constant(1))


def decode(claim: Claim, pixels: Callable[[], Any], settings: Preprocessing, lane: Lane | None) -> Decoded:
    """Decode what may be decoded.

    Args:
        claim: of the header.
        pixels: gives uint8 [h,w,3]; run only where the claim is within the limits.
        settings: what may be decoded beside others.
        lane: how this photo is decoded; None: FIRST.
    """
    import tensorflow as tf

    status = tf.where(tf.reduce_any(claim.sides <= 0) & (claim.status <= TRUNCATED), CORRUPT, claim.status)
    good = status <= TRUNCATED
    large = good & (claim.cost > settings.max_parallel_bytes)
    if lane:
        large &= tf.logical_not(lane.alone)
    status = tf.where(large, POSTPONED, status)
    good &= tf.logical_not(large)
    return Decoded(
        tf.cond(good, pixels, _dot),
        status,
        tf.where(good, tf.cast(claim.sides, tf.int32), 0),
        tf.where(good, claim.orientation, 1),
    )


def judge(sides: Any, limit: int, otherwise: Any = OK) -> Any:
    """The status TOO_LARGE where the sides (int64 [2]) make more pixels than the limit."""
    import tensorflow as tf

    return tf.where(sides[0] * sides[1] > limit, TOO_LARGE, otherwise)


def _dot() -> Any:
    """What a refused photo decodes to: one grey pixel, which the resize spreads over the blank."""
    import tensorflow as tf

    return tf.fill([1, 1, 3], tf.constant(GREY, tf.uint8))

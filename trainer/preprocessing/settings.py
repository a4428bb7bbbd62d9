"""Settings of the preprocessing, and the statuses of photos by their index."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from serving.contract import Status

VERSION = 3
"""Version of the preprocessing, part of the embedding store's key.

Increment it with every change that alters pixels or statuses.
"""

STATUSES = (
    Status.OK,
    Status.TRUNCATED,
    Status.EMPTY,
    Status.NOT_AN_IMAGE,
    Status.UNSUPPORTED_FORMAT,
    Status.TOO_LARGE,
    Status.CORRUPT,
)
"""Statuses that the preprocessing returns; inside the graph a status is its index in this tuple."""

OK, TRUNCATED, EMPTY, NOT_AN_IMAGE, UNSUPPORTED, TOO_LARGE, CORRUPT = range(len(STATUSES))

GREY = 128
"""Value of a rejected photo's pixels and of padding: mid-grey, which is neutral for a backbone."""


class Aspect(StrEnum):
    """Treatment of photos whose aspect ratio differs from that of the backbone's input."""

    STRETCH = "stretch"
    CROP = "crop"
    PAD = "pad"

    @property
    def meaning(self) -> str:
        """Description of the mode for users."""
        return {
            Aspect.STRETCH: "the whole photo, each side scaled independently, as in retrain.py",
            Aspect.CROP: "the largest crop around the centre",
            Aspect.PAD: "the whole photo, with grey bars",
        }[self]


@dataclass(frozen=True)
class Preprocessing:
    """Settings of the preprocessing, which are part of the bundle and of its fingerprint.

    The limits bound the cost of a photo before its first pixel is allocated. Peak memory of a call is
    at most `parallel` photos of `max_parallel_bytes` plus one photo at the limits, since larger photos
    are decoded one after the other.

    Attributes:
        height, width: size of the backbone's input in pixels.
        aspect: treatment of other aspect ratios, see Aspect.
        max_bytes: maximum file size.
        max_pixels: maximum of pixels, by the header, of a JPEG with one scan, which is decoded row by row.
        max_whole_pixels: the same for photos that are held in memory as a whole: JPEGs with several
            scans, PNG, BMP, WebP.
        max_scan_pixels: maximum of pixels times scans of a JPEG with several scans, the cost of decoding.
        max_gif_pixels: maximum of pixels of a GIF's canvas; only the first frame is decoded.
        max_gif_bytes: position in a GIF by which its first frame has to end.
        max_parallel_bytes: photos that need more memory, by their header, are decoded one by one.
        parallel: maximum number of photos of one call that are decoded at the same time.
    """

    height: int = 224
    width: int = 224
    aspect: Aspect = Aspect.STRETCH
    max_bytes: int = 64 << 20
    max_pixels: int = 120_000_000
    max_whole_pixels: int = 50_000_000
    max_scan_pixels: int = 600_000_000
    max_gif_pixels: int = 16_000_000
    max_gif_bytes: int = 16 << 20
    max_parallel_bytes: int = 96 << 20
    parallel: int = 8

    @classmethod
    def with_limits(cls, aspect: str, max_pixels: int, max_bytes: int) -> Preprocessing:
        """Return settings with one pixel limit for all formats; a lower limit of a format stays."""
        return cls(
            aspect=Aspect(aspect),
            max_pixels=max_pixels,
            max_whole_pixels=min(cls.max_whole_pixels, max_pixels),
            max_gif_pixels=min(cls.max_gif_pixels, max_pixels),
            max_bytes=max_bytes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for hubhead.json and the fingerprint."""
        return {"version": VERSION, **asdict(self)}

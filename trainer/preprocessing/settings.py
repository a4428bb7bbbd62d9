"""The settings of the preprocessing, and the statuses that travel through the graph."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from serving.contract import Status

VERSION = 2
"""Part of the embedding store's key: raise it with every change that alters pixels or statuses."""

STATUSES = (
    Status.OK,
    Status.TRUNCATED,
    Status.EMPTY,
    Status.NOT_AN_IMAGE,
    Status.UNSUPPORTED_FORMAT,
    Status.TOO_LARGE,
    Status.CORRUPT,
)
"""The statuses the graph gives; a status travels through it as its index here."""

OK, TRUNCATED, EMPTY, NOT_AN_IMAGE, UNSUPPORTED, TOO_LARGE, CORRUPT = range(len(STATUSES))

GREY = 128
"""The value of a refused photo's pixels and of padding: the middle, which a backbone takes for nothing."""


class Aspect(StrEnum):
    """What becomes of a photo whose sides are not in the proportion of the backbone's input."""

    STRETCH = "stretch"
    CROP = "crop"
    PAD = "pad"

    @property
    def meaning(self) -> str:
        """One phrase for people."""
        return {
            Aspect.STRETCH: "the whole photo, its sides scaled each by itself, as in retrain.py",
            Aspect.CROP: "the largest part around the centre",
            Aspect.PAD: "the whole photo, with grey bars",
        }[self]


@dataclass(frozen=True)
class Preprocessing:
    """The settings of the graph: they are part of the bundle and of the fingerprint.

    The limits hold what a photo may cost before its first pixel is allocated. Peak memory of a
    call is at most `parallel` times what photos of `max_parallel_bytes` take, and one photo at
    the limits beside them, since larger ones are decoded one after the other.

    Attributes:
        height, width: of the pixels that the backbone takes.
        aspect: see Aspect.
        max_bytes: a longer file is refused.
        max_pixels: a JPEG of one scan with more, by its header, is refused; it is decoded row by row.
        max_whole_pixels: the same for what is held whole: JPEGs of several scans, PNG, BMP, WebP.
        max_scan_pixels: for JPEGs of several scans: pixels times scans, which is what decoding costs.
        max_gif_pixels: for the canvas and for the first frame of a GIF; others are never looked at.
        max_gif_bytes: the first frame of a GIF has to end before.
        max_parallel_bytes: photos that take more memory, by their header, wait for one another.
        parallel: how many photos of one call are decoded at once, at most.
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
    def limited(cls, aspect: str, max_pixels: int, max_bytes: int) -> Preprocessing:
        """With one limit of pixels for all formats, where that is below the format's own."""
        return cls(
            aspect=Aspect(aspect),
            max_pixels=max_pixels,
            max_whole_pixels=min(cls.max_whole_pixels, max_pixels),
            max_gif_pixels=min(cls.max_gif_pixels, max_pixels),
            max_bytes=max_bytes,
        )

    def settings(self) -> dict[str, Any]:
        """For hubhead.json and the fingerprint."""
        return {"version": VERSION, **asdict(self)}

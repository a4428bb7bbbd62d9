"""The photos of the comparison: small ones as they are, and camera photos of two sizes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.bench import camera
from tests.bench.variants import read_sample_photos

_DISTINCT_SMALL = 100
_DISTINCT_LARGE = 24
"""The photos with the most pixels among about 30 in Debian's packages."""


@dataclass(frozen=True)
class Size:
    """A size of photos.

    Attributes:
        width, height: pixels; 0 for the sample photos as they are, about 307 x 173.
        count: photos per turn.
    """

    width: int
    height: int
    count: int


SIZES = {"small": Size(0, 0, 1000), "2MP": Size(1632, 1224, 240), "12MP": Size(4000, 3000, 120)}


def read_distinct(size: Size) -> list[bytes]:
    """Read the distinct photos of a size."""
    if not size.width:
        return read_sample_photos()[:_DISTINCT_SMALL]
    return camera.read_resized_photos(camera.find_directory(), size.width, size.height, _DISTINCT_LARGE)


def write(size: Size, distinct: Path, repeated: Path) -> None:
    """Write the distinct photos of a size, and in another directory as many as a turn processes."""
    contents = read_distinct(size)
    for directory, count in ((distinct, len(contents)), (repeated, size.count)):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for number in range(count):
            # Bytes after the end of a JPEG do not change the picture, but make its content distinct.
            content = contents[number % len(contents)] + number.to_bytes(4, "big")
            (directory / f"{number:06d}.jpeg").write_bytes(content)

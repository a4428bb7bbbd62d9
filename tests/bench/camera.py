"""Photos of camera size, from Debian's packages of free wallpapers; fetched, never shipped."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

from PIL import Image

from serving.errors import FetchError
from trainer.dataset.download import cache_directory, create_once

PACKAGES = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds")
DRAWN = ("analogpattern", "abstract", "desktop", "2004default", "warty")
"""Parts of the names of what is no photo."""

LEAST_SIDE = 1000
CROPPED_PIXELS = 3_000_000
"""Photos above this count five times: whole, and as four overlapping parts of it."""


def directory(given: Path | None = None) -> Path:
    """Where the photos are: the directory given, else the unpacked packages.

    Raises:
        FetchError: apt-get and dpkg-deb are not there, or do not fetch them.
    """
    if given:
        return given
    place = cache_directory() / "camera"
    if not place.is_dir():
        with create_once(place) as staged:
            try:
                subprocess.run(
                    ["apt-get", "download", *PACKAGES], cwd=staged, check=True, capture_output=True
                )
                for package in staged.glob("*.deb"):
                    subprocess.run(["dpkg-deb", "-x", str(package), str(staged)], check=True)
                    package.unlink()
            except (OSError, subprocess.CalledProcessError) as error:
                raise FetchError(
                    f"The packages {', '.join(PACKAGES)} were not fetched: {error}",
                    remedy="Run it on Debian, after apt-get update, or give --photos DIRECTORY.",
                ) from error
    return place


def photos(place: Path) -> list[bytes]:
    """Upright JPEGs of camera size, large ones also in parts, so that there are enough to count."""
    found = []
    for path in sorted({*place.rglob("*.jpg"), *place.rglob("*.jpeg")}):
        if path.is_symlink() or any(part in str(path) for part in DRAWN):
            continue
        with Image.open(path) as image:
            width, height = image.size
            if min(width, height) < LEAST_SIDE or image.getexif().get(0x0112, 1) != 1:
                continue
            found.append(path.read_bytes())
            if width * height > CROPPED_PIXELS:
                whole = image.convert("RGB")
                for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
                    left, top = int(0.4 * x * width), int(0.4 * y * height)
                    part = whole.crop((left, top, left + int(0.6 * width), top + int(0.6 * height)))
                    found.append(encoded(part))
    return found


def resized(place: Path, width: int, height: int, count: int) -> list[bytes]:
    """Some photos brought to one size, as baseline JPEGs."""
    largest = sorted((path for path in place.rglob("*.jpg") if not path.is_symlink()), key=_pixels)[-count:]
    chosen = []
    for path in largest:
        with Image.open(path) as image:
            chosen.append(encoded(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)))
    return chosen


def encoded(image: Image.Image) -> bytes:
    """Baseline, as cameras do: quality 90."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _pixels(path: Path) -> int:
    if any(part in str(path) for part in DRAWN):
        return 0
    with Image.open(path) as image:
        return image.width * image.height

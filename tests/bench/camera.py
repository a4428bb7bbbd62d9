"""Photos of camera size from Debian's packages of free wallpapers, which are downloaded when needed."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

from PIL import Image

from serving.errors import FetchError
from trainer.dataset.download import cache_directory, create_once

PACKAGES = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds")
DRAWN = ("analogpattern", "abstract", "desktop", "2004default", "warty")
"""Parts of the names of files that are drawings, not photos."""

MIN_SIDE = 1000
CROPPED_PIXELS = 3_000_000
"""Photos with more pixels count five times: the whole photo and four overlapping crops."""


def find_directory(given: Path | None = None) -> Path:
    """Return the given directory of photos, or else that of the unpacked packages.

    Raises:
        FetchError: apt-get or dpkg-deb is not installed, or the download failed.
    """
    if given:
        return given
    directory = cache_directory() / "camera"
    if not directory.is_dir():
        with create_once(directory) as staged:
            try:
                subprocess.run(
                    ["apt-get", "download", *PACKAGES], cwd=staged, check=True, capture_output=True
                )
                for package in staged.glob("*.deb"):
                    subprocess.run(["dpkg-deb", "-x", str(package), str(staged)], check=True)
                    package.unlink()
            except (OSError, subprocess.CalledProcessError) as error:
                raise FetchError(
                    f"Download of the packages {', '.join(PACKAGES)} failed: {error}",
                    remedy="Run this on Debian, after apt-get update, or give --photos DIRECTORY.",
                ) from error
    return directory


def read_photos(directory: Path) -> list[bytes]:
    """Read the upright JPEGs of camera size, with four crops of each large one, to have enough photos."""
    found = []
    for path in sorted({*directory.rglob("*.jpg"), *directory.rglob("*.jpeg")}):
        if path.is_symlink() or any(part in str(path) for part in DRAWN):
            continue
        with Image.open(path) as image:
            width, height = image.size
            if min(width, height) < MIN_SIDE or image.getexif().get(0x0112, 1) != 1:
                continue
            found.append(path.read_bytes())
            if width * height > CROPPED_PIXELS:
                whole = image.convert("RGB")
                for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
                    left, top = int(0.4 * x * width), int(0.4 * y * height)
                    part = whole.crop((left, top, left + int(0.6 * width), top + int(0.6 * height)))
                    found.append(encode_jpeg(part))
    return found


def read_resized_photos(directory: Path, width: int, height: int, count: int) -> list[bytes]:
    """Resize the largest photos to one size; return them as baseline JPEGs."""
    paths = (path for path in directory.rglob("*.jpg") if not path.is_symlink())
    largest = sorted(paths, key=_count_pixels)[-count:]
    chosen = []
    for path in largest:
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            chosen.append(encode_jpeg(resized))
    return chosen


def encode_jpeg(image: Image.Image) -> bytes:
    """Encode a picture as a baseline JPEG of quality 90, as cameras do."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _count_pixels(path: Path) -> int:
    """Return the number of pixels of a photo, or 0 for a drawing."""
    if any(part in str(path) for part in DRAWN):
        return 0
    with Image.open(path) as image:
        return image.width * image.height

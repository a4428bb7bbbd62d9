"""Thumbnails of photos for the reports."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from serving.photos.thumbnails import make_thumbnails

SIDE = 64


def write_photo(path: Path, kind: str, **settings: object) -> str:
    """Write a photo of 300 x 200 pixels, its left third red and the rest blue; return its path."""
    image = Image.new("RGB", (300, 200), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 100, 200))
    image.save(path, kind, **settings)
    return str(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_shorter_side_has_the_requested_length(kind: str, tmp_path: Path) -> None:
    uri = write_photo(tmp_path / "a", kind)
    (content,) = make_thumbnails([uri], SIDE).values()
    with Image.open(io.BytesIO(content)) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (96, SIDE))
        assert thumbnail.getpixel((10, 32))[0] > 200  # type: ignore[index]
        assert thumbnail.getpixel((80, 32))[2] > 200  # type: ignore[index]


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (content,) = make_thumbnails([write_photo(tmp_path / "a", "JPEG", exif=exif)], SIDE).values()
    with Image.open(io.BytesIO(content)) as thumbnail:
        assert thumbnail.size == (SIDE, 96)
        assert thumbnail.getpixel((32, 10))[0] > 200  # type: ignore[index]


def test_truncated_jpegs_are_shown_in_part(tmp_path: Path) -> None:
    photo = Path(write_photo(tmp_path / "a", "JPEG"))
    content = photo.read_bytes()
    photo.write_bytes(content[: 3 * len(content) // 4])
    (shown,) = make_thumbnails([str(photo)], SIDE).values()
    with Image.open(io.BytesIO(shown)) as thumbnail:
        assert thumbnail.size == (96, SIDE)
        assert thumbnail.getpixel((10, 5))[0] > 200  # type: ignore[index]
        missing = thumbnail.getpixel((80, 60))
        assert max(missing) - min(missing) < 10  # type: ignore[arg-type]


def test_unreadable_and_damaged_photos_have_no_thumbnail(tmp_path: Path) -> None:
    valid = write_photo(tmp_path / "valid", "PNG")
    (tmp_path / "damaged").write_bytes(Path(valid).read_bytes()[:60])
    found = make_thumbnails([str(tmp_path / "missing"), valid, str(tmp_path / "damaged")], SIDE)
    assert list(found) == [valid]

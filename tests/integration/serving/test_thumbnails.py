"""Small pictures of photos for the reports."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from serving.photos.thumbnails import make_thumbnails

SIDE = 64


def photo(path: Path, kind: str, **settings: object) -> str:
    """300 x 200, its left third red, the rest blue."""
    picture = Image.new("RGB", (300, 200), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 100, 200))
    picture.save(path, kind, **settings)
    return str(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_shorter_side_is_the_one_asked_for(kind: str, tmp_path: Path) -> None:
    uri = photo(tmp_path / "a", kind)
    (content,) = make_thumbnails([uri], SIDE).values()
    with Image.open(io.BytesIO(content)) as small:
        assert (small.format, small.size) == ("JPEG", (96, SIDE))
        assert small.getpixel((10, 32))[0] > 200  # type: ignore[index]
        assert small.getpixel((80, 32))[2] > 200  # type: ignore[index]


def test_a_phones_photo_stands_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    (content,) = make_thumbnails([photo(tmp_path / "a", "JPEG", exif=turned)], SIDE).values()
    with Image.open(io.BytesIO(content)) as small:
        assert small.size == (SIDE, 96)
        assert small.getpixel((32, 10))[0] > 200  # type: ignore[index]


def test_what_cannot_be_read_or_decoded_has_none(tmp_path: Path) -> None:
    good = photo(tmp_path / "good", "PNG")
    (tmp_path / "broken").write_bytes(Path(good).read_bytes()[:60])
    found = make_thumbnails([str(tmp_path / "gone"), good, str(tmp_path / "broken")], SIDE)
    assert list(found) == [good]

"""Preprocessing compared with Pillow on sound photos; damaged and malicious photos get a status."""

from __future__ import annotations

import ast
import io
import os
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from serving.contract import Status
from tests.corpus.exif import exif
from tests.corpus.gif import animation
from tests.corpus.images import saved, scene, translucent
from tests.corpus.jpeg import SCAN, XMP, frame, jpeg, segment, until_scan, with_segments
from tests.corpus.png import deep_png, interlaced_png, png, shallow_png
from tests.support.decoding import Decode, DecodedPhoto, Pixels, make_decoder
from tests.support.repository import REPO
from trainer import preprocessing
from trainer.preprocessing import STATUSES, Preprocessing

pytestmark = pytest.mark.tf

SIZE = 224
EXAMPLES = int(os.environ.get("HUBHEAD_FUZZ_EXAMPLES", "120"))
"""Number of damaged photos; `make fuzz` sets more."""


@pytest.fixture(scope="module")
def decode() -> Decode:
    return make_decoder()


# --- Sound photos -----------------------------------------------------------------------------------


def expected(content: bytes) -> Pixels:
    """Return the first frame by Pillow: upright, on white, resized by Keys' cubic filter, antialiased."""
    with Image.open(io.BytesIO(content)) as image:
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        # As floats, since Pillow clips 8-bit pixels after each direction, where the cubic filter overshoots.
        bands = [
            band.convert("F").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            for band in image.convert("RGB").split()
        ]
    return np.clip(np.round(np.stack(bands, -1)), 0, 255).astype(np.uint8)


def assert_close(found: Pixels, wanted: Pixels, *, mean: float = 0.1, most: int = 1) -> None:
    """Assert that pixels differ by rounding at most: both resize with the same filter."""
    difference = np.abs(found.astype(int) - wanted.astype(int))
    assert difference.mean() <= mean
    assert difference.max() <= most


PHOTOS: dict[str, Callable[[], bytes]] = {
    "JPEG": jpeg,
    "JPEG, progressive": lambda: jpeg(progressive=True),
    "JPEG, 4:4:4": lambda: jpeg(subsampling=0),
    "JPEG, grey": lambda: jpeg(scene().convert("L")),
    "JPEG, CMYK": lambda: jpeg(scene().convert("CMYK")),
    "PNG": lambda: saved(scene(), "PNG"),
    "PNG, grey": lambda: saved(scene().convert("L"), "PNG"),
    "PNG, grey and alpha": lambda: saved(translucent().convert("LA"), "PNG"),
    "PNG, alpha": lambda: saved(translucent(), "PNG"),
    "PNG, palette": lambda: saved(scene().quantize(32), "PNG"),
    "PNG, palette with a transparent colour": lambda: saved(scene().quantize(32), "PNG", transparency=3),
    "PNG, grey of 1 bit": lambda: shallow_png(scene(), 1),
    "PNG, grey of 2 bits": lambda: shallow_png(scene(), 2),
    "PNG, grey of 4 bits": lambda: shallow_png(scene(), 4),
    "PNG, interlaced": lambda: interlaced_png(scene()),
    "GIF": lambda: saved(scene().quantize(64), "GIF"),
    "GIF, animated": animation,
    "BMP": lambda: saved(scene(), "BMP"),
    "WebP": lambda: saved(scene(), "WEBP", quality=90),
    "WebP, lossless": lambda: saved(scene(), "WEBP", lossless=True),
    "WebP, alpha": lambda: saved(translucent(), "WEBP", lossless=True, exact=True),
    "WebP, lossy with alpha": lambda: saved(translucent(), "WEBP", quality=90, exact=True),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_every_format_decodes_as_in_pillow(decode: Decode, name: str) -> None:
    content = PHOTOS[name]()
    [row] = decode([content])
    assert (row.status, row.height, row.width) == (Status.OK, 200, 300)
    assert_close(row.pixels, expected(content))


def test_a_16_bit_png_is_reduced_to_the_upper_8_bits(decode: Decode) -> None:
    [deep, plain] = decode([deep_png(scene()), saved(scene(), "PNG")])
    assert (deep.status, deep.height, deep.width) == (Status.OK, 200, 300)
    np.testing.assert_array_equal(deep.pixels, plain.pixels)


def test_a_large_jpeg_decoded_at_a_reduced_scale_stays_close_to_the_mean_of_its_pixels(
    decode: Decode,
) -> None:
    photo = scene(4000, 3000)
    area = np.asarray(photo.resize((SIZE, SIZE), Image.Resampling.BOX)).astype(int)
    for row in decode([jpeg(photo), jpeg(photo, progressive=True)]):
        assert (row.status, row.height, row.width) == (Status.OK, 3000, 4000)
        assert np.abs(row.pixels - area).mean() < 1.5


# --- Orientation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_exif_orientation_is_applied(decode: Decode, order: str) -> None:
    contents = [with_segments(segment(0xE1, exif(number, order))) for number in range(1, 9)]
    rows = decode(contents)
    for number, (content, row) in enumerate(zip(contents, rows, strict=True), 1):
        sides = (300, 200) if number >= 5 else (200, 300)
        assert (row.status, (row.height, row.width)) == (Status.OK, sides)
        assert_close(row.pixels, expected(content))
    distinct = {row.pixels.tobytes() for row in rows}
    assert len(distinct) == 8


@pytest.mark.parametrize(
    "before",
    [XMP, segment(0xFE, b"a comment"), segment(0xE2, bytes(60_000)) * 2],
    ids=["XMP", "comment", "long ICC profile"],
)
def test_exif_is_found_after_other_segments(decode: Decode, before: bytes) -> None:
    content = with_segments(before, segment(0xE1, exif(6)))
    [row] = decode([content])
    assert (row.status, row.height, row.width) == (Status.OK, 300, 200)
    assert_close(row.pixels, expected(content))


def test_the_exif_orientation_is_found_among_other_entries(decode: Decode) -> None:
    image = scene()
    about = Image.Exif()
    about[0x010F], about[0x0110], about[0x0112], about[0x0132] = "maker", "model", 8, "2020:01:01 00:00:00"
    content = jpeg(image, exif=about)
    [row] = decode([content])
    assert (row.status, row.height, row.width) == (Status.OK, 300, 200)
    assert_close(row.pixels, expected(content))


MISLEADING = {
    "orientation 0": exif(0),
    "orientation 9": exif(9),
    "orientation 65535": exif(65535),
    "another tag": exif(6, tag=0x0113),
    "another type": exif(6, kind=2),
    "an unknown byte order": exif(6, mark=b"XX"),
    "a directory beyond the end": exif(6, offset=2**32 - 1),
    "a directory at half a gigabyte": exif(6, offset=2**29),
    "no entries": exif(6, entries=0),
    "65535 entries, none of them there": exif(6, entries=65535, tag=0x0113),
    "cut after the header": exif(6)[:14],
    "cut inside the entry": exif(6)[:20],
    "nothing behind Exif": b"Exif\0\0",
}


@pytest.mark.parametrize("name", MISLEADING)
def test_invalid_exif_is_ignored(decode: Decode, name: str) -> None:
    plain, misled = decode([jpeg(), with_segments(segment(0xE1, MISLEADING[name]))])
    assert (misled.status, misled.height, misled.width) == (Status.OK, 200, 300)
    np.testing.assert_array_equal(misled.pixels, plain.pixels)


def test_exif_bytes_outside_of_their_segment_are_ignored(decode: Decode) -> None:
    plain, misled = decode([jpeg(), with_segments(segment(0xFE, exif(6)))])
    np.testing.assert_array_equal(misled.pixels, plain.pixels)


# --- Damaged and other files --------------------------------------------------------------------------


REFUSED: dict[str, tuple[Callable[[], bytes], Status]] = {
    "nothing": (lambda: b"", Status.EMPTY),
    "text": (lambda: b"hello, I am no photo", Status.NOT_AN_IMAGE),
    "one byte": (lambda: b"\xff", Status.NOT_AN_IMAGE),
    "zeros": (lambda: bytes(1000), Status.NOT_AN_IMAGE),
    "HTML": (lambda: b"<!doctype html><title>404</title>", Status.NOT_AN_IMAGE),
    "PDF": (lambda: b"%PDF-1.7\n", Status.NOT_AN_IMAGE),
    "the start of a JPEG": (lambda: b"\xff\xd8\xff", Status.CORRUPT),
    "a JPEG's headers": (lambda: until_scan(jpeg()), Status.CORRUPT),
    "a JPEG without pixels": (lambda: frame(0, 0), Status.CORRUPT),
    "a cut PNG": (lambda: saved(scene(), "PNG")[:9000], Status.CORRUPT),
    "a PNG's signature": (lambda: b"\x89PNG\r\n\x1a\n", Status.CORRUPT),
    "a PNG with a damaged chunk": (
        lambda: saved(scene(), "PNG").replace(b"IDAT", b"IDAT\0\0\0\0", 1),
        Status.CORRUPT,
    ),
    "a PNG with sides beyond the format's own limit": (
        lambda: png(2**32 - 1, 2**32 - 1, 16, 6, 0, b""),
        Status.CORRUPT,
    ),
    "a cut WebP": (lambda: saved(scene(), "WEBP")[:2000], Status.CORRUPT),
    "a GIF's header": (lambda: saved(scene(), "GIF")[:13], Status.CORRUPT),
    "a BMP's header": (lambda: saved(scene(), "BMP")[:54], Status.CORRUPT),
    "a sound file in RIFF": (lambda: b"RIFF\x24\0\0\0WAVEfmt ", Status.NOT_AN_IMAGE),
    "TIFF": (lambda: saved(scene(), "TIFF"), Status.UNSUPPORTED_FORMAT),
    "TIFF, big-endian": (lambda: b"MM\0*" + bytes(100), Status.UNSUPPORTED_FORMAT),
    "HEIC": (lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Status.UNSUPPORTED_FORMAT),
    "AVIF": (lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", Status.UNSUPPORTED_FORMAT),
    "an animated WebP": (
        lambda: saved(scene(), "WEBP", save_all=True, append_images=[scene().rotate(180)]),
        Status.UNSUPPORTED_FORMAT,
    ),
    "a BMP with a palette": (lambda: saved(scene().quantize(16), "BMP"), Status.UNSUPPORTED_FORMAT),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bytes_that_are_not_a_photo_get_a_status_and_blank_pixels(decode: Decode, name: str) -> None:
    make, status = REFUSED[name]
    [row] = decode([make()])
    assert (row.status, row.height, row.width) == (status, 0, 0)
    assert (row.pixels == 128).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": exif(6)}], ids=str)
def test_a_truncated_jpeg_is_decoded_in_part_with_the_status_truncated(
    decode: Decode, options: dict[str, Any]
) -> None:
    photo = jpeg(**options)
    whole, cut = decode([photo, photo[: len(photo) * 2 // 3]])
    assert cut.status is Status.TRUNCATED
    assert (cut.height, cut.width) == (whole.height, whole.width)
    if not options:
        np.testing.assert_array_equal(cut.pixels[: SIZE // 3], whole.pixels[: SIZE // 3])
    assert (cut.pixels != whole.pixels).any()


def empty_gif(side: int) -> bytes:
    """Return a GIF that declares a large frame (GIF89a, 18 and 20), with almost no data."""
    screen = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\0\x3b"


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 900 million pixels": lambda: png(30_000, 30_000, 8, 2, 0, bytes(90_001 * 20)),
    "PNG of 2**62 pixels": lambda: png(2**31 - 1, 2**31 - 1, 16, 6, 0, b""),
    "GIF of 900 million pixels": lambda: empty_gif(30_000),
    "JPEG of 4 billion pixels": lambda: frame(65_500, 65_500) + SCAN,
    "progressive JPEG of 4 billion pixels": lambda: frame(65_500, 65_500, 0xC2) + SCAN,
    "BMP of 900 million pixels": lambda: (
        b"BM" + bytes(8) + struct.pack("<2I2i2HI", 54, 40, 30_000, 30_000, 1, 24, 0)
    ),
    "WebP of 268 million pixels": lambda: (
        b"RIFF\x30\0\0\0WEBPVP8 \x24\0\0\0\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383) + bytes(20)
    ),
}


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_rejected_by_its_header(decode: Decode, name: str) -> None:
    content = BOMBS[name]()
    decode([jpeg()])
    memory, start = peak_megabytes(), time.perf_counter()
    [row] = decode([content])
    assert row.status is Status.TOO_LARGE
    assert time.perf_counter() - start < 1.0
    # Decoding the smallest of them would take 800 MB.
    assert peak_megabytes() - memory < 100


def test_a_progressive_jpeg_with_many_scans_is_rejected_by_the_scan_guard(decode: Decode) -> None:
    # Each scan is a pass over all pixels, so this small file would take minutes.
    start = time.perf_counter()
    [row] = decode([frame(4000, 4000, 0xC2) + SCAN * 500])
    assert row.status is Status.TOO_LARGE
    assert time.perf_counter() - start < 1.0


def test_a_file_above_max_bytes_is_rejected(decode: Decode) -> None:
    [row] = decode([jpeg() + bytes(Preprocessing().max_bytes)])
    assert row.status is Status.TOO_LARGE


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (2, 3), (SIZE, SIZE)], ids=str)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_extreme_aspect_ratios_decode(decode: Decode, kind: str, size: tuple[int, int]) -> None:
    content = saved(Image.new("RGB", size, (200, 100, 50)), kind)
    [row] = decode([content])
    assert (row.status, row.width, row.height) == (Status.OK, *size)
    assert_close(row.pixels, expected(content))


# --- Batches ------------------------------------------------------------------------------------------


def photos_and_others() -> list[bytes]:
    good = [PHOTOS[name]() for name in PHOTOS]
    bad = [make() for make, _ in REFUSED.values()]
    cut = [photo[: len(photo) * 3 // 4] for photo in good[:2]]
    return [*good, *bad, *cut]


def assert_same(found: DecodedPhoto, alone: DecodedPhoto) -> None:
    assert (found.status, found.height, found.width) == (alone.status, alone.height, alone.width)
    np.testing.assert_array_equal(found.pixels, alone.pixels)


def test_photos_of_a_shuffled_batch_are_bit_identical_to_single_calls(decode: Decode) -> None:
    contents = photos_and_others()
    alone = [decode([content])[0] for content in contents]
    order = list(range(len(contents)))
    for seed in range(3):
        random.Random(seed).shuffle(order)
        for batch in chunks(order, 32):
            for number, row in zip(batch, decode([contents[number] for number in batch]), strict=True):
                assert_same(row, alone[number])


def chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def test_a_batch_of_32_keeps_its_order(decode: Decode) -> None:
    colours = [(8 * number, 255 - 8 * number, 97) for number in range(32)]
    random.Random(1).shuffle(colours)
    rows = decode([saved(Image.new("RGB", (40, 30), colour), "PNG") for colour in colours])
    assert [tuple(row.pixels[0, 0]) for row in rows] == colours


def test_an_empty_batch_is_accepted(decode: Decode) -> None:
    assert decode([]) == []


def test_a_batch_of_only_bad_photos_is_accepted(decode: Decode) -> None:
    rows = decode([make() for make, _ in REFUSED.values()])
    assert [row.status for row in rows] == [status for _, status in REFUSED.values()]


def small(name: str) -> bytes:
    image = scene(24, 16)
    alpha = image.copy()
    alpha.putalpha(100)
    return {
        "JPEG": lambda: jpeg(image, exif=exif(6)),
        "progressive": lambda: jpeg(image, progressive=True),
        "PNG": lambda: saved(alpha, "PNG"),
        "GIF": lambda: saved(image.quantize(8), "GIF", save_all=True, append_images=[image.quantize(4)]),
        "BMP": lambda: saved(image, "BMP"),
        "WebP": lambda: saved(alpha, "WEBP"),
        "lossless": lambda: saved(image, "WEBP", lossless=True),
    }[name]()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a small photo with changed bytes, optionally truncated or with trailing bytes."""
    photo = bytearray(
        small(draw(st.sampled_from(["JPEG", "progressive", "PNG", "GIF", "BMP", "WebP", "lossless"])))
    )
    # Headers matter most, so half of the changes are made there.
    places = st.one_of(st.integers(0, 63), st.integers(0, len(photo) - 1))
    for place, value in draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        photo[min(place, len(photo) - 1)] = value
    end = draw(st.one_of(st.just(len(photo)), st.integers(0, len(photo))))
    return bytes(photo[:end]) + draw(st.binary(max_size=8))


@settings(max_examples=EXAMPLES, deadline=None)
@given(contents=st.lists(damaged(), min_size=1, max_size=4))
def test_damaged_photos_never_raise_or_affect_other_photos(decode: Decode, contents: list[bytes]) -> None:
    *rows, neighbour = decode([*contents, small("JPEG")])
    assert (neighbour.status, neighbour.height, neighbour.width) == (Status.OK, 24, 16)
    for row in rows:
        assert row.status in STATUSES
        assert (row.height > 0 and row.width > 0) == row.status.usable
        assert row.status.usable or (row.pixels == 128).all()


@settings(max_examples=max(EXAMPLES // 3, 40), deadline=None)
@given(contents=st.lists(st.binary(max_size=200), max_size=6))
def test_arbitrary_bytes_never_raise(decode: Decode, contents: list[bytes]) -> None:
    assert all(row.status in STATUSES for row in decode(contents))


def test_status_names_and_is_usable_match_the_contract() -> None:
    indices = list(range(len(STATUSES)))
    names = [name.decode() for name in preprocessing.status_names(indices).numpy()]
    assert names == [str(status) for status in STATUSES]
    assert preprocessing.is_usable(np.array(indices, np.int32)).numpy().tolist() == [
        s.usable for s in STATUSES
    ]


# --- Banned decoders ----------------------------------------------------------------------------------

IMAGE_OPS = {
    "decode_and_crop_jpeg",
    "decode_bmp",
    "decode_gif",
    "decode_image",
    "decode_jpeg",
    "decode_png",
    "decode_webp",
}
HOME = "trainer/preprocessing"


def find_banned_calls(source: str, path: str) -> Iterator[str]:
    """Yield the calls in a source that the docstring of trainer/preprocessing bans."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        given_ = {keyword.arg: keyword.value for keyword in node.keywords}
        if "try_recover_truncated" in given_:
            yield "try_recover_truncated: hangs on three bytes"
        if name in IMAGE_OPS and not path.startswith(HOME):
            yield f"{name}: decoding belongs into {HOME}"
        if name in {"decode_webp", "decode_and_crop_jpeg"}:
            yield f"{name}: does not load in older servers, or skips the header"
        if name == "decode_image":
            channels = given_.get("channels")
            if channels is None or (isinstance(channels, ast.Constant) and not channels.value):
                yield "decode_image(channels=0): crashes on an animated WebP"


def test_no_banned_decoder_is_called_anywhere() -> None:
    sources = [
        REPO / "hubhead.py",
        *(p for top in ("trainer", "batch", "serving") for p in (REPO / top).rglob("*.py")),
    ]
    assert len(sources) > 30
    found = [
        f"{path.relative_to(REPO)}: {danger}"
        for path in sources
        for danger in find_banned_calls(path.read_text(), path.relative_to(REPO).as_posix())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("tf.io.decode_jpeg(x, channels=3, try_recover_truncated=True)", HOME),
        ("tf.io.decode_image(x)", HOME),
        ("tf.io.decode_image(x, channels=0)", HOME),
        ("tf.io.decode_webp(x, channels=3)", HOME),
        ("decode_jpeg(x, channels=3)", "batch/inputs/listing.py"),
    ],
)
def test_the_check_finds_banned_decoders(source: str, path: str) -> None:
    assert list(find_banned_calls(source, path))

"""Cases with one flipped bit in a sound photo; mostly the rules of the format determine the result.

The photos are stored in flips.json, since another version of an encoder would produce other bytes. If
only the decoder determines the result, that is stored there too.
"""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from serving.contract import Status
from tests.corpus import bmp, gif, jpeg, png
from tests.corpus.case import Case, bad, flipped, good, open_case
from tests.corpus.images import saved, scene

GOLDEN_FILE = Path(__file__).with_name("flips.json")
W, H = 24, 16


def photos() -> dict[str, bytes]:
    """Return the photos to damage, as `python -m tests.corpus --golden --photos` regenerates them."""
    image = scene(W, H)
    text = png.chunk(b"tEXt", b"Comment\0a comment of some length")
    return {
        "jpeg": jpeg.with_segments(jpeg.segment(jpeg.COM, b"a comment"), photo=jpeg.jpeg(image)),
        "jpeg/progressive": jpeg.jpeg(image, progressive=True),
        "png": png.with_chunks(saved(image.quantize(16), "PNG"), text),
        "gif": gif.gif(gif.COMMENT, gif.picture(W, H), width=W, height=H),
        "bmp": bmp.bmp(W, H),
        "webp": saved(image, "WEBP", quality=80),
        "webp/lossless": saved(image, "WEBP", lossless=True),
    }


@cache
def golden() -> dict[str, Any]:
    """Return the golden file: `photos` in base64, and `answers`: case name -> [status, height, width]."""
    found: dict[str, Any] = json.loads(GOLDEN_FILE.read_text())
    return found


def base(name: str) -> bytes:
    return base64.b64decode(golden()["photos"][name])


def cases() -> Iterator[Case]:
    """Yield all cases with a flipped bit."""
    yield from _jpeg_scans()
    yield from _jpeg_headers()
    yield from _png()
    yield from _gif()
    yield from _bmp()
    yield from _webp()


def _bits(seed: int, start: int, end: int, count: int) -> list[tuple[int, int]]:
    """Return distinct random positions of bits."""
    everything = [(at, bit) for at in range(start, end) for bit in range(8)]
    return sorted(random.Random(seed).sample(everything, count))


def _jpeg_scans() -> Iterator[Case]:
    """Yield flips that neither add nor remove a marker, so that the decoder returns wrong pixels."""
    for kind, count in {"jpeg": 40, "jpeg/progressive": 40}.items():
        photo = base(kind)
        places = [
            (at, bit)
            for found in jpeg.parts(photo)
            for at in range(found.header_end + 1, found.end - 1)
            for bit in range(8)
            if 0xFF not in photo[at - 1 : at + 2] and photo[at] ^ 1 << bit != 0xFF
        ]
        for at, bit in sorted(random.Random(1).sample(places, count)):
            yield good(f"{kind}/flip in the scan, byte {at} bit {bit}", flipped(photo, at, bit), W, H)


def _jpeg_headers() -> Iterator[Case]:
    photo = base("jpeg")
    frame, table = jpeg.part(photo, jpeg.SOF0), jpeg.part(photo, jpeg.DQT)
    for marker in (jpeg.APP0, jpeg.COM):
        found = jpeg.part(photo, marker)
        for at, bit in _bits(2, found.body, found.header_end, 8):
            yield good(f"jpeg/flip in {marker:02X}, byte {at} bit {bit}", flipped(photo, at, bit), W, H)
    for at, bit in _bits(3, table.body + 1, table.header_end, 10):
        yield good(f"jpeg/flip in the quantisation, byte {at} bit {bit}", flipped(photo, at, bit), W, H)
    for bit in range(8):
        content = flipped(photo, frame.body, bit)
        yield bad(f"jpeg/flip in the precision, bit {bit}", content, Status.UNSUPPORTED_FORMAT)
    for at in range(frame.body + 1, frame.body + 5):
        for bit in range(8):
            content = flipped(photo, at, bit)
            height, width = struct.unpack(">HH", content[frame.body + 1 : frame.body + 5])
            name = f"jpeg/flip in the sides, byte {at} bit {bit}"
            sound = width > 0 and height > 0
            yield good(name, content, width, height) if sound else bad(name, content, Status.CORRUPT)
    for number, found in enumerate(jpeg.parts(photo)):
        for bit in (1, 6):
            for what, at in {
                "marker": found.start,
                "kind": found.start + 1,
                "length": found.start + 3,
            }.items():
                name = f"jpeg/flip in the {what} of {found.marker:02X} at {found.start}, bit {bit}"
                yield open_case(name, flipped(photo, at, bit))
        if found.marker in (jpeg.DHT, jpeg.SOS):
            for at, bit in _bits(number, found.body, found.header_end, 4):
                name = f"jpeg/flip in {found.marker:02X}, byte {at} bit {bit}"
                yield open_case(name, flipped(photo, at, bit))
    for at in range(frame.body + 5, frame.header_end):
        yield open_case(f"jpeg/flip in the components, byte {at}", flipped(photo, at, at % 8))


def _png() -> Iterator[Case]:
    """Yield flips in a PNG, in which every byte is covered by a checksum."""
    photo = base("png")
    for kind, start, end in png.parts(photo):
        # Type, data and checksum; the sides are left out, since a flip may make the photo a bomb.
        first = start + 16 if kind == b"IHDR" else start + 8
        for at, bit in _bits(4, first, end, 8):
            name = f"png/flip in {kind.decode()}, byte {at} bit {bit}"
            content = flipped(photo, at, bit)
            yield good(name, content, W, H) if kind == b"tEXt" else bad(name, content, Status.CORRUPT)
    for bit in range(8):
        yield bad(f"png/flip in the signature, bit {bit}", flipped(photo, bit, bit), Status.NOT_AN_IMAGE)


def _gif() -> Iterator[Case]:
    photo = base("gif")
    comment = photo.index(gif.COMMENT)
    frame = photo.index(gif.COMMENT) + len(gif.COMMENT)
    for at, bit in _bits(5, 13, 13 + 48, 10):
        yield good(f"gif/flip in the table, byte {at} bit {bit}", flipped(photo, at, bit), W, H)
    for at, bit in _bits(6, comment + 3, comment + 250, 6):
        yield good(f"gif/flip in a comment, byte {at} bit {bit}", flipped(photo, at, bit), W, H)
    for at, bit in _bits(7, frame, len(photo) - 1, 20):
        yield open_case(f"gif/flip in the frame, byte {at} bit {bit}", flipped(photo, at, bit))


def _bmp() -> Iterator[Case]:
    photo = base("bmp")
    for at, bit in _bits(8, 54, len(photo), 15):
        yield good(f"bmp/flip in the pixels, byte {at} bit {bit}", flipped(photo, at, bit), W, H)
    for at, bit in _bits(9, 38, 54, 6):
        yield good(f"bmp/flip in the resolution, byte {at} bit {bit}", flipped(photo, at, bit), W, H)
    for bit in range(8):
        for what, at in {"bits": 28, "compression": 30}.items():
            content = flipped(photo, at, bit)
            # 24 bits become 16, which can be converted, or 8 without a palette, or an invalid number;
            # pixels become damaged RLE, or a compression that no decoder knows.
            converted = Status.OK if content[28] == 16 else Status.UNSUPPORTED_FORMAT
            if content[28] == 8 or content[30] in (1, 2):
                converted = Status.CORRUPT
            name = f"bmp/flip in the {what}, bit {bit}"
            yield bad(name, content, Status.UNSUPPORTED_FORMAT, converted)


def _webp() -> Iterator[Case]:
    for kind in ("webp", "webp/lossless"):
        photo = base(kind)
        for at, bit in _bits(10, 12, 36, 8) + _bits(11, 36, len(photo), 12):
            yield open_case(f"{kind}/flip, byte {at} bit {bit}", flipped(photo, at, bit))

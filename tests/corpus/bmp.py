"""BMP cases (BITMAPFILEHEADER and its info headers); 24 and 32 bit without compression are decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from serving.contract import Status
from tests.corpus.case import Case, bad, good, open_case
from tests.corpus.images import HEIGHT, WIDTH, saved, small, translucent

W, H = 19, 13
"""Sides of the hand-made files; a row of 24-bit pixels has padding."""


def bmp(
    width: int = W,
    height: int = H,
    bits: int = 24,
    *,
    compression: int = 0,
    header: int = 40,
    table: bytes = b"",
    data: bytes | None = None,
    file_size: int | None = None,
    image_size: int | None = None,
    offset: int | None = None,
    planes: int = 1,
) -> bytes:
    """Return a BMP with the given, possibly inconsistent, header fields."""
    if data is None:
        stride = (abs(width) * bits + 31) // 32 * 4
        data = bytes((x * 3 + y * 11) % 256 for y in range(abs(height)) for x in range(stride))
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, planes, bits)
    else:
        size = len(data) if image_size is None else image_size
        info = struct.pack(
            "<IiiHHIIiiII", header, width, height, planes, bits, compression, size, 2835, 2835, 0, 0
        )
        info += bytes(max(header - 40, 0))
    start = 14 + len(info) + len(table) if offset is None else offset
    size = 14 + len(info) + len(table) + len(data) if file_size is None else file_size
    return b"BM" + struct.pack("<IHHI", size, 0, 0, start) + info + table + data


def cases() -> Iterator[Case]:
    """Yield all BMP cases."""
    photo = saved(small(), "BMP")
    yield good("bmp/Pillow's", photo, WIDTH, HEIGHT)
    yield good("bmp/Pillow's alpha", saved(translucent(WIDTH, HEIGHT), "BMP"), WIDTH, HEIGHT)
    yield good("bmp/behind it junk", photo + b"junk" * 50, WIDTH, HEIGHT)
    for name, content in {
        "24 bits": bmp(),
        "32 bits": bmp(bits=32),
        "24 bits, top down": bmp(height=-H),
        "32 bits, top down": bmp(height=-H, bits=32),
        "header of version 4": bmp(header=108),
        "header of version 5": bmp(header=124),
        "header of version 5, 32 bits": bmp(header=124, bits=32),
        "header of 56 bytes": bmp(header=56),
        "a file size of 0": bmp(file_size=0),
        "a file size too large": bmp(file_size=2**32 - 1),
        "an image size of 0": bmp(image_size=0),
        "an image size too large": bmp(image_size=2**31),
        "a gap before the pixels": bmp(offset=74, table=bytes(20)),
        "no planes": bmp(planes=0),
        "7 planes": bmp(planes=7),
    }.items():
        yield good(f"bmp/{name}", content, W, H)
    for width, height in [(1, 1), (1, 5000), (100_000, 1), (2, 2), (3, 3), (4, 4)]:
        yield good(f"bmp/{width}x{height}", bmp(width, height), width, height)
    yield from _unsupported()
    yield from _broken()
    for name, content in {
        "30000x30000": bmp(30_000, 30_000, data=b""),
        "30000x30000, top down": bmp(30_000, -30_000, data=b""),
        "2**31-1 on both sides": bmp(2**31 - 1, 2**31 - 1, data=b""),
        "a height of 0x80000000": bmp(W, -(2**31), data=bytes(100)),
        "8000x8000 of 32 bits": bmp(8000, 8000, 32, data=bytes(100)),
    }.items():
        yield bad(f"bmp/bomb/{name}", content, Status.TOO_LARGE)
    for name, content in {
        "pixels that begin in the header": bmp(offset=30),
        "pixels that begin at 0": bmp(offset=0),
        "the last byte missing": bmp(18, 13)[:-1],
    }.items():
        yield open_case(f"bmp/odd/{name}", content)


def _unsupported() -> Iterator[Case]:
    grey = bytes(i // 4 for i in range(1024))
    colours = bytes(i * 37 % 256 for i in range(64))
    for name, content in {
        "Pillow's black and white": saved(small().convert("1"), "BMP"),
        "Pillow's grey": saved(small().convert("L"), "BMP"),
        "Pillow's palette": saved(small().quantize(16), "BMP"),
        "1 bit": bmp(bits=1, table=grey[:4] + grey[-4:]),
        "4 bits": bmp(bits=4, table=colours),
        "8 bits": bmp(bits=8, table=grey),
        "8 bits, top down": bmp(height=-H, bits=8, table=grey),
        "16 bits": bmp(bits=16),
        "16 bits with masks": bmp(bits=16, compression=3, table=struct.pack("<III", 0xF800, 0x7E0, 0x1F)),
        "32 bits with masks": bmp(bits=32, compression=3, table=struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)),
        "RLE8": bmp(bits=8, compression=1, table=grey, data=(bytes([W, 7]) + b"\0\0") * H + b"\0\x01"),
        "RLE4": bmp(bits=4, compression=2, table=grey[:64], data=(bytes([W, 7]) + b"\0\0") * H + b"\0\x01"),
        "OS/2": bmp(header=12),
        "OS/2, 8 bits": bmp(header=12, bits=8, table=grey[:768]),
    }.items():
        yield bad(f"bmp/{name}", content, Status.UNSUPPORTED_FORMAT, Status.OK)
    for name, content in {
        "a JPEG inside": bmp(bits=0, compression=4, data=saved(small(), "JPEG")),
        "a PNG inside": bmp(bits=0, compression=5, data=saved(small(), "PNG")),
        "2 bits": bmp(bits=2),
        "64 bits": bmp(bits=64),
        "0 bits": bmp(bits=0, data=b""),
        "an unknown compression": bmp(compression=77),
        "a header of 39 bytes": bmp(header=39),
        "a header of 0 bytes": bmp(header=0),
        "its signature and zeros": b"BM" + bytes(200),
        "16 bits with masks of 4 bits": bmp(
            bits=16, compression=3, table=struct.pack("<III", 0xF00, 0xF0, 0xF)
        ),
        "32 bits with masks and alpha": bmp(bits=32, compression=6, table=struct.pack("<IIII", 1, 2, 4, 8)),
        "24 bits of RLE": bmp(compression=4),
    }.items():
        yield bad(f"bmp/{name}", content, Status.UNSUPPORTED_FORMAT, Status.UNSUPPORTED_FORMAT)
    for name, content in {
        "its file header alone": bmp()[:14],
        "a text that begins so": b"BMW is a maker of cars.",
    }.items():
        yield bad(f"bmp/{name}", content, Status.UNSUPPORTED_FORMAT, Status.CORRUPT)


def _broken() -> Iterator[Case]:
    whole = bmp(32, 20)
    for name, content in {
        "no pixels": whole[:54],
        "cut in the first row": whole[:60],
        "cut at half of its pixels": whole[: 54 + 960],
        "the last row missing": whole[:-96],
        "width 0": bmp(0, 13, data=bytes(40)),
        "a negative width": bmp(-W, H),
        "height 0": bmp(19, 0, data=bytes(40)),
        "pixels behind the end": bmp(offset=1_000_000),
        "pixels at 2**32-1": bmp(offset=2**32 - 1),
        "pixels that begin too late": bmp(32, 20, offset=1500),
    }.items():
        yield bad(f"bmp/broken/{name}", content, Status.CORRUPT)

"""PNG cases (ISO/IEC 15948, third edition)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from serving.contract import Status
from tests.corpus.case import Case, bad, good, open_case
from tests.corpus.exif import MISLEADING, ORDERS, late_directory, tiff
from tests.corpus.images import HEIGHT, WIDTH, saved, small, translucent

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xaeB`\x82"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGBA: (8, 16)}
COLOURS = {GREY: "grey", RGB: "RGB", PALETTE: "palette", GREY_ALPHA: "grey and alpha", RGBA: "RGBA"}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Seven passes of interlacing: first column, first row, step right, step down."""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def ihdr(width: int, height: int, depth: int = 8, colour: int = RGB, interlace: int = 0) -> bytes:
    """Return the header chunk."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(width: int, height: int, depth: int, colour: int, interlace: int, data: bytes) -> bytes:
    """Return a PNG of a kind that Pillow does not write."""
    idat = chunk(b"IDAT", zlib.compress(data))
    return SIGNATURE + ihdr(width, height, depth, colour, interlace) + idat + chunk(b"IEND", b"")


def deep_png(image: Image.Image) -> bytes:
    """Return a PNG with 16 bits per channel; the lower byte is noise that must not affect the rounding."""
    high = np.asarray(image).astype(np.uint16) << 8
    rows = (high | 0x40).astype(">u2")
    return png(image.width, image.height, 16, RGB, 0, b"".join(b"\0" + row.tobytes() for row in rows))


def shallow_png(image: Image.Image, depth: int) -> bytes:
    """Return a greyscale PNG of 1, 2 or 4 bits, as scanners write it; most significant bits come first."""
    grey = np.asarray(image.convert("L")) >> (8 - depth)
    bits = (grey[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(image.height, -1).astype(np.uint8), axis=1)
    return png(image.width, image.height, depth, GREY, 0, b"".join(b"\0" + row.tobytes() for row in rows))


def interlaced_png(image: Image.Image) -> bytes:
    """Return a PNG with Adam7 interlacing."""
    pixels = np.asarray(image)
    data = b"".join(b"\0" + row.tobytes() for x, y, right, down in ADAM7 for row in pixels[y::down, x::right])
    return png(image.width, image.height, 8, RGB, 1, data)


def rows(width: int, height: int, depth: int, colour: int, *, interlaced: bool = False) -> bytes:
    """Return unfiltered sample data of any kind, a ramp."""

    def passed(wide: int, high: int) -> bytes:
        if not wide or not high:
            return b""
        size = (wide * CHANNELS[colour] * depth + 7) // 8
        return b"".join(b"\0" + bytes((x * 5 + y * 7) % 251 for x in range(size)) for y in range(high))

    if not interlaced:
        return passed(width, height)
    return b"".join(
        passed((width - x + right - 1) // right, (height - y + down - 1) // down)
        for x, y, right, down in ADAM7
    )


def build(*chunks: bytes) -> bytes:
    """Return the signature and the chunks."""
    return SIGNATURE + b"".join(chunks)


def parts(content: bytes) -> list[tuple[bytes, int, int]]:
    """Return (type, start, end) of every chunk of a sound PNG."""
    found, at = [], len(SIGNATURE)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        found.append((content[at + 4 : at + 8], at, end))
        at = end
    return found


def with_chunks(content: bytes, *inserted: bytes, before: bytes = b"IDAT") -> bytes:
    """Return the content with chunks inserted before the first one of a type."""
    at = next(start for kind, start, _ in parts(content) if kind == before)
    return content[:at] + b"".join(inserted) + content[at:]


def plain() -> bytes:
    return saved(small(), "PNG")


def cases() -> Iterator[Case]:
    """Yield all PNG cases."""
    yield from _kinds()
    yield from _chunks()
    yield from _oriented()
    yield from _cuts()
    yield from _broken()
    yield from _bombs()
    yield bad("png/of an iPhone app", _iphone_png(), Status.UNSUPPORTED_FORMAT)
    for width, height in [
        (1, 1),
        (1, 100_000),
        (20_000, 1),
        (100_000, 1),
        (2, 3),
        (7, 9),
        (224, 224),
        (3, 2000),
    ]:
        image = saved(Image.new("RGB", (width, height), (200, 100, 50)), "PNG")
        yield good(f"png/{width}x{height}", image, width, height)


def _kinds() -> Iterator[Case]:
    for colour, depths in DEPTHS.items():
        for depth in depths:
            for interlaced in (False, True):
                table = [_palette(2**depth)] * (colour == PALETTE)
                data = zlib.compress(rows(19, 13, depth, colour, interlaced=interlaced))
                content = build(ihdr(19, 13, depth, colour, interlaced), *table, chunk(b"IDAT", data), END)
                way = "/interlaced" * interlaced
                yield good(f"png/{COLOURS[colour]} of {depth} bits{way}", content, 19, 13)
    palette = small().quantize(32)
    for name, content in {
        "Pillow's RGB": plain(),
        "Pillow's grey": saved(small().convert("L"), "PNG"),
        "Pillow's black and white": saved(small().convert("1"), "PNG"),
        "Pillow's grey of 16 bits": saved(Image.new("I;16", (WIDTH, HEIGHT), 30_000), "PNG"),
        "Pillow's alpha": saved(translucent(WIDTH, HEIGHT), "PNG"),
        "Pillow's grey and alpha": saved(translucent(WIDTH, HEIGHT).convert("LA"), "PNG"),
        "Pillow's palette": saved(palette, "PNG"),
        "palette with a transparent colour": saved(palette, "PNG", transparency=3),
        "palette with many transparent colours": saved(palette, "PNG", transparency=bytes(range(32))),
        "RGB with a transparent colour": saved(small(), "PNG", transparency=(10, 20, 30)),
        "grey with a transparent shade": saved(small().convert("L"), "PNG", transparency=9),
        "16 bits": deep_png(small()),
        "interlaced RGB": interlaced_png(small()),
        "not compressed": saved(small(), "PNG", compress_level=0),
        **{f"Pillow's grey of {depth} bits": shallow_png(small(), depth) for depth in (1, 2, 4)},
    }.items():
        yield good(f"png/{name}", content, WIDTH, HEIGHT)
    for name, colour, depth, body in [
        ("RGB of 16 bits", RGB, 16, struct.pack(">HHH", 1, 2, 3)),
        ("grey of 16 bits", GREY, 16, b"\0\x07"),
        ("grey of 1 bit", GREY, 1, b"\0\x01"),
        ("grey of 4 bits", GREY, 4, b"\0\x05"),
    ]:
        data = chunk(b"IDAT", zlib.compress(rows(19, 13, depth, colour)))
        content = build(ihdr(19, 13, depth, colour), chunk(b"tRNS", body), data, END)
        yield good(f"png/{name} with a transparent colour", content, 19, 13)


def _iphone_png() -> bytes:
    """Return a PNG as Xcode changes them: a chunk of its own first, BGRA, and no header of zlib."""
    packer = zlib.compressobj(wbits=-15)
    data = packer.compress(rows(19, 13, 8, RGBA)) + packer.flush()
    return build(chunk(b"CgBI", b"P\0 \2"), ihdr(19, 13, 8, RGBA), chunk(b"IDAT", data), END)


def _palette(count: int) -> bytes:
    return chunk(b"PLTE", bytes(3 * i * 7 % 256 for i in range(3 * min(count, 256))))


def _chunks() -> Iterator[Case]:
    photo = plain()
    text = chunk(b"tEXt", b"Comment\0a comment")
    data = next(photo[start + 8 : end - 4] for kind, start, end in parts(photo) if kind == b"IDAT")
    singles = [chunk(b"IDAT", data[i : i + 1]) for i in range(len(data))]
    control, frame_control = (
        chunk(b"acTL", struct.pack(">II", 2, 0)),
        struct.pack(">IIIIHHBB", WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0),
    )
    first = chunk(b"fcTL", struct.pack(">I", 0) + frame_control)
    second = chunk(b"fcTL", struct.pack(">I", 1) + frame_control) + chunk(
        b"fdAT", struct.pack(">I", 2) + data
    )
    bomb = zlib.compress(bytes(30_000_000), 9)
    animated = with_chunks(with_chunks(photo, control, first), second, before=b"IEND")
    hidden = build(
        ihdr(WIDTH, HEIGHT),
        control,
        chunk(b"IDAT", data),
        first,
        second,
        END,
    )
    for name, content in {
        "text": with_chunks(photo, text),
        "text behind the pixels": with_chunks(photo, text, before=b"IEND"),
        "a hundred texts": with_chunks(photo, text * 100),
        "text of 200 kB": with_chunks(photo, chunk(b"tEXt", b"Comment\0" + b"x" * 200_000)),
        "an unknown chunk": with_chunks(photo, chunk(b"prVt", b"private")),
        "gamma": with_chunks(photo, chunk(b"gAMA", struct.pack(">I", 45455))),
        "gamma 0": with_chunks(photo, chunk(b"gAMA", bytes(4))),
        "gamma cut off": with_chunks(photo, chunk(b"gAMA", b"\0")),
        "sRGB": with_chunks(photo, chunk(b"sRGB", b"\0")),
        "chromaticities": with_chunks(photo, chunk(b"cHRM", struct.pack(">8I", *range(1000, 9000, 1000)))),
        "a background": with_chunks(photo, chunk(b"bKGD", bytes(6))),
        "a resolution": with_chunks(photo, chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1))),
        "a resolution of nothing": with_chunks(photo, chunk(b"pHYs", bytes(9))),
        "a profile": saved(small(), "PNG", icc_profile=bytes(3000)),
        "a profile that does not unpack": with_chunks(photo, chunk(b"iCCP", b"name\0\0 no zlib stream")),
        "a profile that is a bomb": with_chunks(photo, chunk(b"iCCP", b"name\0\0" + bomb)),
        "packed text": with_chunks(photo, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"text"))),
        "packed text that is a bomb": with_chunks(photo, chunk(b"zTXt", b"Comment\0\0" + bomb)),
        "packed text that is a bomb, behind the pixels": with_chunks(
            photo, chunk(b"zTXt", b"Comment\0\0" + bomb), before=b"IEND"
        ),
        "a suggested palette for RGB": with_chunks(photo, _palette(16)),
        "pixels in chunks of one byte": build(ihdr(WIDTH, HEIGHT), *singles, END),
        "an empty chunk of pixels": with_chunks(photo, chunk(b"IDAT", b"")),
        "more rows than its header says": build(
            ihdr(19, 13), chunk(b"IDAT", zlib.compress(rows(19, 20, 8, RGB))), END
        ),
        "an animation": animated,
        "an animation that leaves its picture out": hidden,
        "a film behind its end": photo + bytes(3000),
        "a JPEG behind its end": photo + saved(small(), "JPEG"),
        "text behind its end": photo + b"trailing",
    }.items():
        small_one = name == "more rows than its header says"
        yield good(f"png/with {name}", content, *((19, 13) if small_one else (WIDTH, HEIGHT)))
    content = with_chunks(photo, text)
    for kind, _, end in parts(content):
        damaged = content[: end - 1] + bytes([content[end - 1] ^ 1]) + content[end:]
        name = f"png/checksum of {kind.decode()} wrong"
        # 13.2: an invalid ancillary chunk may be skipped, an invalid critical one makes the file invalid.
        ancillary = kind[0] & 0x20
        yield good(name, damaged, WIDTH, HEIGHT) if ancillary else bad(name, damaged, Status.CORRUPT)


def _oriented() -> Iterator[Case]:
    photo = plain()
    for word, order in ORDERS.items():
        for number in range(1, 9):
            about = chunk(b"eXIf", tiff(number, order))
            yield good(f"png/orientation {number}/{word}", with_chunks(photo, about), WIDTH, HEIGHT, number)
    for number in (3, 6, 8):
        content = with_chunks(photo, chunk(b"eXIf", tiff(number)), before=b"IEND")
        yield good(f"png/orientation {number} behind the pixels", content, WIDTH, HEIGHT, number)
    for name, content in {
        "in RGBA": with_chunks(saved(translucent(WIDTH, HEIGHT), "PNG"), chunk(b"eXIf", tiff(6))),
        "in a palette": with_chunks(saved(small().quantize(16), "PNG"), chunk(b"eXIf", tiff(6))),
        "in grey of 4 bits": with_chunks(shallow_png(small(), 4), chunk(b"eXIf", tiff(6))),
        "behind text": with_chunks(photo, chunk(b"tEXt", b"a\0" + bytes(5000)), chunk(b"eXIf", tiff(6))),
        "behind other entries": with_chunks(photo, chunk(b"eXIf", late_directory(6)[6:])),
    }.items():
        yield good(f"png/orientation 6 {name}", content, WIDTH, HEIGHT, 6)
    for name, body in MISLEADING.items():
        content = with_chunks(photo, chunk(b"eXIf", body[6:]))
        yield good(f"png/misleading Exif/{name}", content, WIDTH, HEIGHT)
    for name, content in {
        "in a text": with_chunks(photo, chunk(b"tEXt", b"a\0" + chunk(b"eXIf", tiff(6)))),
        "behind the end": photo + chunk(b"eXIf", tiff(6)),
    }.items():
        yield good(f"png/misleading Exif/{name}", content, WIDTH, HEIGHT)


def _cuts() -> Iterator[Case]:
    about = [chunk(b"tEXt", b"Comment\0text"), chunk(b"eXIf", tiff(6))]
    photo = with_chunks(saved(small().quantize(32), "PNG", transparency=3), *about)
    for kind, start, end in parts(photo):
        for place, at in {
            "before": start,
            "in the length of": start + 2,
            "in the kind of": start + 6,
            "behind the kind of": start + 8,
            "in": (start + end) // 2,
            "before the checksum of": end - 4,
            "in the checksum of": end - 2,
        }.items():
            yield bad(f"png/cut {place} {kind.decode()}", photo[:at], Status.CORRUPT)
    content = plain()
    start, end = next((start, end) for kind, start, end in parts(content) if kind == b"IDAT")
    for tenth in range(1, 10):
        at = start + (end - start) * tenth // 10
        yield bad(f"png/cut at {tenth}/10 of IDAT", content[:at], Status.CORRUPT)


def _broken() -> Iterator[Case]:
    photo = plain()
    found = {kind: photo[start:end] for kind, start, end in parts(photo)}
    data = found[b"IDAT"]
    two = zlib.compress(rows(19, 13, 8, RGB))

    def header(**changed: int) -> bytes:
        values: dict[str, Any] = {
            **{"depth": 8, "colour": RGB, "packing": 0, "filters": 0, "interlace": 0},
            **changed,
        }
        body = struct.pack(">IIBBBBB", 19, 13, *values.values())
        return build(chunk(b"IHDR", body), chunk(b"IDAT", two), END)

    for name, content in {
        "its signature alone": SIGNATURE,
        "no IEND": build(found[b"IHDR"], data),
        "no IDAT": build(found[b"IHDR"], END),
        "no IHDR": build(chunk(b"IDAT", bytes(40)), END),
        "IHDR behind a text": build(chunk(b"tEXt", bytes(30)), found[b"IHDR"], data, END),
        "IHDR behind the pixels": build(chunk(b"IDAT", bytes(40)), found[b"IHDR"], END),
        "IHDR twice": build(found[b"IHDR"], found[b"IHDR"], data, END),
        "IEND twice but no pixels": build(found[b"IHDR"], END, END),
        "width 0": png(0, 13, 8, RGB, 0, bytes(100)),
        "height 0": png(19, 0, 8, RGB, 0, bytes(100)),
        "no sides": png(0, 0, 8, RGB, 0, b""),
        "sides beyond the format's own limit": png(2**32 - 1, 2**32 - 1, 16, RGBA, 0, b""),
        "palette without its table": build(
            ihdr(19, 13, 8, PALETTE), chunk(b"IDAT", zlib.compress(rows(19, 13, 8, PALETTE))), END
        ),
        "palette behind the pixels": build(
            ihdr(19, 13, 8, PALETTE),
            chunk(b"IDAT", zlib.compress(rows(19, 13, 8, PALETTE))),
            _palette(9),
            END,
        ),
        "palette of 2 bytes": build(
            ihdr(19, 13, 8, PALETTE),
            chunk(b"PLTE", b"ab"),
            chunk(b"IDAT", zlib.compress(rows(19, 13, 8, PALETTE))),
            END,
        ),
        "too few rows": build(ihdr(19, 13), chunk(b"IDAT", zlib.compress(rows(19, 10, 8, RGB))), END),
        "no zlib stream": build(ihdr(19, 13), chunk(b"IDAT", b"this is not zlib at all"), END),
        "no pixels in IDAT": build(ihdr(19, 13), chunk(b"IDAT", b""), END),
        "an unknown critical chunk": with_chunks(photo, chunk(b"NEWS", b"what I mean")),
        "a chunk longer than the file": with_chunks(photo, b"\0\xff\xff\xfftEXt"),
        "a chunk of 2**31": with_chunks(photo, b"\xff\xff\xff\xfftEXt"),
        "IHDR of 12 bytes": build(
            chunk(b"IHDR", struct.pack(">IIBBBB", 19, 13, 8, 2, 0, 0)), chunk(b"IDAT", two), END
        ),
        "depth 3": header(depth=3),
        "depth 0": header(depth=0),
        "depth 32": header(depth=32),
        "colour 1": header(colour=1),
        "colour 5": header(colour=5),
        "RGB of 4 bits": header(depth=4),
        "an unknown packing": header(packing=1),
        "an unknown filter method": header(filters=1),
        "an unknown interlacing": header(interlace=2),
        "text behind its signature": SIGNATURE + bytes(16) + b"text",
        "zeros behind its signature": SIGNATURE + bytes(500),
    }.items():
        yield bad(f"png/broken/{name}", content, Status.CORRUPT)
    newlines = photo.replace(b"\r\n", b"\n", 1)
    yield bad("png/broken/line ends changed by a transfer of text", newlines, Status.NOT_AN_IMAGE)
    wrong = chunk(b"IDAT", two[:-1] + bytes([two[-1] ^ 1]))
    for name, content in {
        "a checksum of zlib wrong": build(ihdr(19, 13), wrong, END),
        "an unknown filter": build(
            ihdr(19, 13), chunk(b"IDAT", zlib.compress(b"\x09" + rows(19, 13, 8, RGB)[1:])), END
        ),
        "a colour outside of the palette": build(
            ihdr(19, 13, 8, PALETTE),
            _palette(2),
            chunk(b"IDAT", zlib.compress(rows(19, 13, 8, PALETTE))),
            END,
        ),
        "palette for grey": build(
            ihdr(19, 13, 8, GREY), _palette(4), chunk(b"IDAT", zlib.compress(rows(19, 13, 8, GREY))), END
        ),
        "text between two chunks of pixels": build(
            ihdr(19, 13), chunk(b"IDAT", two[:40]), chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", two[40:]), END
        ),
        "bytes in IEND": build(ihdr(19, 13), chunk(b"IDAT", two), chunk(b"IEND", b"x")),
    }.items():
        yield open_case(f"png/odd/{name}", content)


def _bombs() -> Iterator[Case]:
    pack = zlib.compressobj(9)
    zeros = bytes(3751 * 1000)
    stream = b"".join(pack.compress(zeros) for _ in range(30)) + pack.flush()
    real = build(ihdr(30_000, 30_000, 1, GREY), chunk(b"IDAT", stream), END)
    for name, content in {
        "30000x30000 of 1 bit": real,
        "30000x30000": png(30_000, 30_000, 8, RGB, 0, bytes(90_001 * 20)),
        "2**31-1 on both sides": png(2**31 - 1, 2**31 - 1, 16, RGBA, 0, b""),
        "2**31-1 wide": png(2**31 - 1, 1, 1, GREY, 0, b""),
        "2**31-1 high": png(1, 2**31 - 1, 1, GREY, 0, b""),
        "8000x8000": png(8000, 8000, 8, GREY, 0, b""),
        "interlaced": png(30_000, 30_000, 8, RGB, 1, bytes(1000)),
        "with Exif": with_chunks(png(30_000, 30_000, 8, RGB, 0, b""), chunk(b"eXIf", tiff(6))),
    }.items():
        yield bad(f"png/bomb/{name}", content, Status.TOO_LARGE)

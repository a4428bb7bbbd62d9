"""GIF cases (GIF89a specification)."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence

from PIL import Image, ImageOps

from serving.contract import Status
from tests.corpus.case import Case, bad, good, open_case
from tests.corpus.images import HEIGHT, WIDTH, saved, scene, small

TRAILER = b"\x3b"
TABLE = bytes(i * 37 % 256 for i in range(48))
"""16 colours."""
W, H = 20, 12
"""Sides of the hand-made files."""


def animation() -> bytes:
    frames = [scene().quantize(64), ImageOps.invert(scene()).quantize(64)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


def lzw(indices: Sequence[int], bits: int = 4) -> bytes:
    """Return LZW codes of constant width: the table is cleared before it grows (appendix F)."""
    clear = 1 << bits
    codes = []
    for number, index in enumerate(indices):
        if number % (clear - 2) == 0:
            codes.append(clear)
        codes.append(index)
    codes.append(clear + 1)
    packed = sum(code << (bits + 1) * place for place, code in enumerate(codes))
    return packed.to_bytes((len(codes) * (bits + 1) + 7) // 8, "little")


def sub_blocks(data: bytes, sizes: Sequence[int] = (255,)) -> bytes:
    """Return data in sub-blocks of these sizes, in turn, with the terminator."""
    found, at, turn = [], 0, 0
    while at < len(data):
        piece = data[at : at + sizes[turn % len(sizes)]]
        found.append(bytes([len(piece)]) + piece)
        at, turn = at + len(piece), turn + 1
    return b"".join(found) + b"\0"


def picture(
    width: int = W,
    height: int = H,
    left: int = 0,
    top: int = 0,
    *,
    table: bytes = b"",
    interlaced: bool = False,
    bits: int = 4,
    data: bytes | None = None,
    sizes: Sequence[int] = (255,),
    shift: int = 0,
) -> bytes:
    """Return an image block: descriptor, local colour table, pixels (20 to 22)."""
    packed = (0x83 if table else 0) | (0x40 if interlaced else 0)
    descriptor = b"\x2c" + struct.pack("<HHHHB", left, top, width, height, packed)
    if data is None:
        data = lzw([(i * 3 + i // width + shift) % 16 for i in range(width * height)], bits)
    return descriptor + table + bytes([bits]) + sub_blocks(data, sizes)


def gif(
    *blocks: bytes,
    width: int = W,
    height: int = H,
    version: bytes = b"89a",
    table: bytes = TABLE,
    end: bytes = TRAILER,
) -> bytes:
    """Return a GIF: header, logical screen, 16 colours or none, blocks and trailer (17 to 27)."""
    screen = struct.pack("<HHBBB", width, height, 0xB3 if table else 0x30, 0, 0)
    return b"GIF" + version + screen + table + b"".join(blocks) + end


def control(transparent: int | None = None, delay: int = 5, disposal: int = 0) -> bytes:
    """Return a graphic control extension (23)."""
    packed = disposal << 2 | (transparent is not None)
    return b"\x21\xf9\x04" + struct.pack("<BHB", packed, delay, transparent or 0) + b"\0"


COMMENT = b"\x21\xfe" + sub_blocks(b"a comment, with a comma, " * 20)
LOOP = b"\x21\xff\x0bNETSCAPE2.0" + sub_blocks(b"\x01\0\0")
PLAIN_TEXT = b"\x21\x01\x0c" + struct.pack("<HHHHBBBB", 0, 0, 16, 8, 8, 8, 1, 0) + sub_blocks(b"hello")
UNKNOWN = b"\x21\x55" + sub_blocks(b"unknown")


def cases() -> Iterator[Case]:
    """Yield all GIF cases."""
    yield from _kinds()
    yield from _canvases()
    yield from _cuts()
    yield from _broken()
    yield from _bombs()


def _kinds() -> Iterator[Case]:
    one, other = small().quantize(64), ImageOps.invert(small()).quantize(64)
    transparent = small().quantize(16)
    for name, content in {
        "Pillow's": saved(one, "GIF"),
        "Pillow's grey": saved(small().convert("L"), "GIF"),
        "Pillow's, not interlaced": saved(one, "GIF", interlace=0),
        "Pillow's animation": saved(one, "GIF", save_all=True, append_images=[other], duration=50, loop=0),
        "Pillow's with a transparent colour": saved(transparent, "GIF", transparency=3),
        "Pillow's black and white": saved(small().convert("1"), "GIF"),
    }.items():
        yield good(f"gif/{name}", content, WIDTH, HEIGHT)
    still = picture()
    for name, content in {
        "87a": gif(still, version=b"87a"),
        "89a": gif(still),
        "interlaced": gif(picture(interlaced=True)),
        "a table of its own": gif(picture(table=TABLE[::-1]), table=b""),
        "both tables": gif(picture(table=TABLE[::-1])),
        "a transparent colour": gif(control(3), still),
        "a transparent colour outside of the table": gif(control(200), still),
        "a comment": gif(COMMENT, still),
        "a hundred comments": gif(COMMENT * 100, still),
        "an endless loop": gif(LOOP, still),
        "plain text": gif(PLAIN_TEXT, still),
        "an unknown extension": gif(UNKNOWN, still),
        "an empty extension": gif(b"\x21\xfe\0", still),
        "all extensions": gif(LOOP, COMMENT, UNKNOWN, control(), still, COMMENT),
        "a comment that holds a frame": gif(b"\x21\xfe" + sub_blocks(picture(3, 3) + TRAILER), still),
        "an animation": gif(LOOP, *[control() + picture(shift=i) for i in range(5)]),
        "an animation of parts": gif(control(), still, control(1), picture(4, 4, 8, 8, shift=3)),
        "an animation with disposal": gif(*[control(disposal=i) + picture(shift=i) for i in (1, 2, 3)]),
        "3000 frames": gif(still, *[control() + picture(2, 2, i % 10, 3) for i in range(3000)]),
        "a second frame larger than the canvas": gif(still, picture(60, 60)),
        "a second frame of 65535x65535": gif(still, picture(65535, 65535, data=b"\x50")),
        "a second frame that is broken": gif(still, b"\x2c" + bytes(9) + b"\xff\xff"),
        "a second frame that is cut": gif(still, picture()[:30], end=b""),
        "junk behind the trailer": gif(still) + b"junk" * 100,
        "a photo behind the trailer": gif(still) + saved(small(), "JPEG"),
        "no trailer": gif(still, end=b""),
        "junk instead of the trailer": gif(still, end=b"\xde\xad\xbe\xef"),
        "blocks of one byte": gif(picture(sizes=(1,))),
        "blocks of odd sizes": gif(picture(sizes=(7, 1, 255, 3, 90))),
        "black and white": gif(picture(bits=2, data=lzw([i % 4 for i in range(W * H)], 2)), table=TABLE),
        "8 bits a code": gif(picture(bits=8)),
        "bytes behind the end code": gif(picture(data=lzw([i % 16 for i in range(W * H)]) + bytes(600))),
    }.items():
        yield good(f"gif/{name}", content, W, H)
    random_sizes = [random.Random(5).randint(1, 255) for _ in range(50)]
    large = [(i * i // 50) % 16 for i in range(200 * 150)]
    content = gif(picture(200, 150, data=lzw(large), sizes=random_sizes), width=200, height=150)
    yield good("gif/200x150 in blocks of random sizes", content, 200, 150)
    for name, content in {
        "no table at all": gif(picture(), table=b""),
        "codes of 1 bit": gif(picture(bits=1, data=lzw([i % 4 for i in range(W * H)], 2))),
        "codes of 0 bits": gif(picture(bits=0, data=b"\0\0\0")),
        "version 8xx": gif(picture(), version=b"8xx"),
    }.items():
        yield open_case(f"gif/odd/{name}", content)


def _canvases() -> Iterator[Case]:
    """Yield canvases of all sizes; the canvas is enlarged if the first frame exceeds it."""
    for name, (canvas, sides, place) in {
        "a frame smaller than the canvas": ((30, 25), (10, 8), (0, 0)),
        "a frame in the middle of the canvas": ((30, 25), (10, 8), (12, 9)),
        "a frame in the corner of the canvas": ((30, 25), (10, 8), (20, 17)),
        "a frame wider than the canvas": ((10, 25), (20, 12), (0, 0)),
        "a frame higher than the canvas": ((30, 5), (20, 12), (0, 0)),
        "a frame larger than the canvas": ((5, 5), (20, 12), (0, 0)),
        "a frame half outside of the canvas": ((20, 12), (20, 12), (10, 6)),
        "a frame outside of the canvas": ((20, 12), (20, 12), (40, 30)),
        "a canvas of 0x0": ((0, 0), (20, 12), (0, 0)),
        "a canvas of 0x12": ((0, 12), (20, 12), (0, 0)),
        "a canvas of 1x1": ((1, 1), (20, 12), (0, 0)),
        "one pixel": ((1, 1), (1, 1), (0, 0)),
        "1x3000": ((1, 3000), (1, 3000), (0, 0)),
        "3000x1": ((3000, 1), (3000, 1), (0, 0)),
        "a large canvas with a small frame": ((2000, 1500), (20, 12), (900, 700)),
    }.items():
        content = gif(picture(*sides, *place), width=canvas[0], height=canvas[1])
        width, height = (max(c, p + s) for c, s, p in zip(canvas, sides, place, strict=True))
        yield good(f"gif/{name}", content, width, height)


def _cuts() -> Iterator[Case]:
    """Yield truncated files; a complete first frame decodes, whatever is missing after it."""
    blocks = {
        "header": b"GIF89a",
        "screen": struct.pack("<HHBBB", W, H, 0xB3, 0, 0),
        "table": TABLE,
        "loop": LOOP,
        "comment": COMMENT,
        "control": control(),
        "descriptor": picture()[:10],
        "code size": picture()[10:11],
        "pixels": picture(sizes=(40,))[11:],
    }
    rest = {"second control": control(), "second frame": picture(shift=5), "trailer": TRAILER}
    content = b""
    for name, block in blocks.items():
        if content:
            yield bad(f"gif/cut before the {name}", content, Status.CORRUPT)
            if len(block) > 2:
                middle = content + block[: len(block) // 2]
                yield bad(f"gif/cut in the {name}", middle, Status.CORRUPT)
        content += block
    for name, block in rest.items():
        yield good(f"gif/cut before the {name}", content, W, H)
        if len(block) > 2:
            yield good(f"gif/cut in the {name}", content + block[: len(block) // 2], W, H)
        content += block
    photo = saved(small().quantize(64), "GIF")
    for tenth in range(5, 10):
        at = 20 + (len(photo) - 20) * tenth // 10
        yield bad(f"gif/Pillow's, cut at {tenth}/10", photo[:at], Status.CORRUPT)


def _broken() -> Iterator[Case]:
    for name, content in {
        "header and trailer alone": gif(),
        "extensions alone": gif(LOOP, COMMENT, control()),
        "an unknown block first": gif(b"\x99\x99\x99", picture()),
        "zeros": b"GIF89a" + bytes(500),
        "a text that begins so": b"GIF89a is a format for pictures, and this is a text about it.",
        "a frame without pixels": gif(picture(data=b"")),
        "a frame of 0x0": gif(picture(0, 0, data=b"\x50")),
        "too few pixels": gif(picture(data=lzw([1] * 30))),
        "codes of 9 bits": gif(picture(bits=9, data=lzw([1] * W * H))),
        "codes of 12 bits": gif(picture(bits=12, data=lzw([1] * W * H))),
        "codes of 255 bits": gif(picture(bits=255, data=lzw([1] * W * H))),
        "a code that is not yet in the table": gif(picture(data=b"\xf0\xff\xff\xff" * 40)),
    }.items():
        yield bad(f"gif/broken/{name}", content, Status.CORRUPT)


def _bombs() -> Iterator[Case]:
    # 40,000 sub-blocks without two equal lengths in a row; a sound file has some hundreds of 255 bytes.
    slivers = picture(1500, 1000, data=bytes(60_000), sizes=(1, 2))
    tiny = picture(2, 2)
    for name, content in {
        "a canvas of 65535x65535 with a tiny frame": gif(tiny, width=65535, height=65535),
        "a canvas of 30000x30000 with its frame": gif(
            picture(30_000, 30_000, data=b"\x50"), width=30_000, height=30_000
        ),
        "a frame of 65535x65535 in a tiny canvas": gif(
            picture(65535, 65535, data=b"\x50"), width=2, height=2
        ),
        "a tiny frame far outside": gif(picture(2, 2, 65535, 65535), width=2, height=2),
        "a canvas of 5000x5000": gif(tiny, width=5000, height=5000),
        "a frame of 5000x5000 behind a comment": gif(COMMENT * 50, picture(5000, 5000, data=b"\x50")),
        "a frame in slivers": gif(slivers, width=1500, height=1000),
    }.items():
        yield bad(f"gif/bomb/{name}", content, Status.TOO_LARGE)
    plain = saved(Image.new("P", (2000, 2000)), "GIF")
    yield good("gif/no bomb/2000x2000", plain, 2000, 2000)

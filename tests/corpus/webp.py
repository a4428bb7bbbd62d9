"""WebP cases (RFC 9649)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from PIL import Image

from serving.contract import Status
from tests.corpus.case import Case, bad, good, open_case
from tests.corpus.exif import MISLEADING, ORDERS, exif, late_directory, tiff
from tests.corpus.images import HEIGHT, WIDTH, saved, scene, small, translucent

ICC, ALPHA, EXIF, XMP, ANIMATION = 0x20, 0x10, 0x08, 0x04, 0x02
"""Flags of VP8X."""


def chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def riff(*chunks: bytes) -> bytes:
    """Return the RIFF container with chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def canvas(flags: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """Return the VP8X chunk."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sides)


def parts(content: bytes) -> list[tuple[bytes, int, int]]:
    """Return (type, start, end) of every chunk of a sound WebP."""
    found, at = [], 12
    while at < len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        found.append((content[at : at + 4], at, at + 8 + size + size % 2))
        at = found[-1][2]
    return found


def frames(content: bytes) -> bytes:
    """Return the chunks of pixels and alpha of a sound WebP."""
    return b"".join(content[s:e] for kind, s, e in parts(content) if kind in (b"VP8 ", b"VP8L", b"ALPH"))


def lossy() -> bytes:
    return saved(small(), "WEBP", quality=90)


def lossless() -> bytes:
    return saved(small(), "WEBP", lossless=True)


def cases() -> Iterator[Case]:
    """Yield all WebP cases."""
    yield from _kinds()
    yield from _oriented()
    yield from _cuts()
    yield from _refused()


def _kinds() -> Iterator[Case]:
    still, clear, faded = frames(lossy()), frames(lossless()), translucent(WIDTH, HEIGHT)
    for name, content in {
        "lossy": lossy(),
        "lossless": lossless(),
        "worst quality": saved(small(), "WEBP", quality=0),
        "grey": saved(small().convert("L"), "WEBP"),
        "lossless with alpha": saved(faded, "WEBP", lossless=True, exact=True),
        "lossy with alpha": saved(faded, "WEBP", quality=90, exact=True),
        "lossy with packed alpha": saved(faded, "WEBP", quality=50, alpha_quality=20),
        "lossless with a palette": saved(small().quantize(4).convert("RGB"), "WEBP", lossless=True),
        "extended, lossy": riff(canvas(0), still),
        "extended, lossless": riff(canvas(0), clear),
        "a profile": saved(small(), "WEBP", icc_profile=bytes(301)),
        "a profile, lossless": saved(small(), "WEBP", icc_profile=bytes(301), lossless=True),
        "XMP": riff(canvas(XMP), still, chunk(b"XMP ", b"<x:xmpmeta/>")),
        "a flag of Exif without the chunk": riff(canvas(EXIF), still),
        "an unknown chunk": riff(canvas(0), still, chunk(b"ABCD", b"unknown")),
        "junk behind the container": lossy() + b"junk" * 20,
        "a photo behind the container": lossy() + lossless(),
        "Exif that no flag tells of": riff(canvas(0), still, chunk(b"EXIF", tiff(6))),
        "Exif behind the container": riff(canvas(EXIF), still) + chunk(b"EXIF", tiff(6)),
    }.items():
        yield good(f"webp/{name}", content, WIDTH, HEIGHT)
    for width, height in [(1, 1), (1, 5000), (5000, 1), (2, 3), (16383, 1)]:
        image = Image.new("RGB", (width, height), (200, 100, 50))
        yield good(f"webp/{width}x{height}", saved(image, "WEBP"), width, height)
        yield good(f"webp/{width}x{height}, lossless", saved(image, "WEBP", lossless=True), width, height)
    for name, content in {
        "Exif before the pixels": riff(canvas(EXIF), chunk(b"EXIF", tiff(1)), still),
        "a flag of alpha without alpha": riff(canvas(ALPHA), still),
        "a size of the container that is too large": _resized(lossy(), 1000),
        "a size of the container that is too small": _resized(lossy(), -100),
        "a size of the container of 0": lossy()[:4] + bytes(4) + lossy()[8:],
        "reserved flags": riff(canvas(0xC1), still),
        "two frames": riff(canvas(0), still, still),
        "an ALPH chunk that is broken": riff(canvas(ALPHA), chunk(b"ALPH", b"\x01abc"), still),
    }.items():
        yield open_case(f"webp/odd/{name}", content)


def _resized(content: bytes, more: int) -> bytes:
    size = int.from_bytes(content[4:8], "little") + more
    return content[:4] + struct.pack("<I", size) + content[8:]


def _oriented() -> Iterator[Case]:
    still, clear = frames(lossy()), frames(lossless())
    for word, order in ORDERS.items():
        for number in range(1, 9):
            content = riff(canvas(EXIF), still, chunk(b"EXIF", tiff(number, order)))
            yield good(f"webp/orientation {number}/{word}", content, WIDTH, HEIGHT, number)
    faded = frames(saved(translucent(WIDTH, HEIGHT), "WEBP", quality=90))
    about = chunk(b"EXIF", tiff(6))
    for name, content in {
        "lossless": riff(canvas(EXIF), clear, about),
        "lossy with alpha": riff(canvas(EXIF | ALPHA), faded, about),
        "behind a profile": riff(canvas(EXIF | ICC), chunk(b"ICCP", bytes(333)), still, about),
        "before XMP": riff(canvas(EXIF | XMP), still, about, chunk(b"XMP ", b"<x/>")),
        "behind an unknown chunk": riff(canvas(EXIF), still, chunk(b"ABCD", b"odd"), about),
        "behind JPEG's mark": riff(canvas(EXIF), still, chunk(b"EXIF", exif(6))),
        "behind other entries": riff(canvas(EXIF), still, chunk(b"EXIF", late_directory(6)[6:])),
    }.items():
        yield good(f"webp/orientation 6, {name}", content, WIDTH, HEIGHT, 6)
    for name, body in MISLEADING.items():
        content = riff(canvas(EXIF), still, chunk(b"EXIF", body[6:]))
        yield good(f"webp/misleading Exif/{name}", content, WIDTH, HEIGHT)
    profile = chunk(b"ICCP", chunk(b"EXIF", tiff(6)))
    yield good("webp/misleading Exif/inside a profile", riff(canvas(ICC), profile, still), WIDTH, HEIGHT)


def _cuts() -> Iterator[Case]:
    """Yield truncated files; none decodes, since the size of the container reveals the missing bytes."""
    about = [chunk(b"EXIF", tiff(6)), chunk(b"XMP ", b"<x:xmpmeta/>")]
    faded = frames(saved(translucent(WIDTH, HEIGHT), "WEBP", quality=90))
    for name, content in {
        "lossy": lossy(),
        "lossless": lossless(),
        "extended": riff(canvas(EXIF | XMP | ALPHA), faded, *about),
    }.items():
        for kind, start, end in parts(content):
            word = kind.decode().strip()
            for place, at in {
                "before": start,
                "in the kind of": start + 2,
                "in the size of": start + 6,
                "behind the size of": start + 8,
                "in": (start + end) // 2,
                "before the last bytes of": end - 3,
            }.items():
                yield bad(f"webp/{name}/cut {place} {word}", content[:at], Status.CORRUPT)


def _refused() -> Iterator[Case]:
    still, other = small(), scene(WIDTH, HEIGHT).rotate(180)
    frame = frames(lossy())
    moving = saved(still, "WEBP", save_all=True, append_images=[other], duration=50)
    for name, content in {
        "an animation": moving,
        "an animation, lossless": saved(still, "WEBP", save_all=True, append_images=[other], lossless=True),
        "an animation of 40 frames": saved(
            still, "WEBP", save_all=True, append_images=[still.rotate(9 * i) for i in range(1, 40)], quality=5
        ),
    }.items():
        yield bad(f"webp/{name}", content, Status.UNSUPPORTED_FORMAT, Status.OK)
    for name, content in {
        "an animation that is cut off": moving[: len(moving) // 4],
        "an animation without frames": riff(canvas(ANIMATION), chunk(b"ANIM", bytes(6))),
        "an animation by its flag alone": riff(canvas(ANIMATION), frame),
    }.items():
        yield bad(f"webp/{name}", content, Status.UNSUPPORTED_FORMAT, Status.CORRUPT)
    sides = struct.pack("<HH", 16383, 16383)
    at = frame.index(b"\x9d\x01\x2a") + 3
    for name, content in {
        "16383x16383": riff(frame[:at] + sides + frame[at + 4 :]),
        "16383x16383, lossless": riff(chunk(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(20))),
        "a canvas of 2**24 on both sides": riff(canvas(0, 2**24, 2**24), frame),
        "a canvas of 30000x30000": riff(canvas(ALPHA, 30_000, 30_000), frame),
        "a canvas of 30000x30000 with Exif": riff(
            canvas(EXIF, 30_000, 30_000), frame, chunk(b"EXIF", tiff(6))
        ),
    }.items():
        yield bad(f"webp/bomb/{name}", content, Status.TOO_LARGE)
    for name, content in {
        "its signature alone": riff(),
        "a canvas alone": riff(canvas(0)),
        "a canvas with Exif alone": riff(canvas(EXIF), chunk(b"EXIF", tiff(6))),
        "a canvas smaller than the frame": riff(canvas(0, 20, 20), frame),
        "a canvas larger than the frame": riff(canvas(0, 100, 100), frame),
        "width 0": riff(frame[:at] + b"\0\0" + frame[at + 2 :]),
        "height 0": riff(frame[: at + 2] + b"\0\0" + frame[at + 4 :]),
        "lossy without its start code": riff(frame.replace(b"\x9d\x01\x2a", b"\0\0\0", 1)),
        "lossless of another signature": riff(frames(lossless()).replace(b"\x2f", b"\x2e", 1)),
        "an unknown chunk alone": riff(chunk(b"ABCD", bytes(60))),
        "zeros behind its signature": b"RIFF\xff\0\0\0WEBP" + bytes(247),
        "a chunk longer than the file": riff(frame[:4] + b"\xff\xff\xff\x0f" + frame[8:]),
        "a chunk of 2**32-1": riff(frame[:4] + b"\xff\xff\xff\xff" + frame[8:]),
        "an empty lossy chunk": riff(chunk(b"VP8 ", b"")),
        "an empty lossless chunk": riff(chunk(b"VP8L", b"")),
    }.items():
        yield bad(f"webp/broken/{name}", content, Status.CORRUPT)

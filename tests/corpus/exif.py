"""Valid and invalid EXIF data (Exif 2.32, 4.5.4 and 4.6.4)."""

from __future__ import annotations

import struct
from typing import Any

ORDERS = {"little-endian": "<", "big-endian": ">"}


def exif(
    orientation: int,
    order: str = "<",
    *,
    tag: int = 0x0112,
    kind: int = 3,
    entries: int = 1,
    offset: int = 8,
    mark: bytes = b"",
) -> bytes:
    """Return the body of an APP1 segment with the orientation as its only entry."""
    mark = mark or {"<": b"II", ">": b"MM"}[order]
    value = struct.pack(f"{order}HH", orientation, 0) if kind == 3 else struct.pack(f"{order}I", orientation)
    entry = struct.pack(f"{order}HHI", tag, kind, 1) + value
    header = mark + struct.pack(f"{order}HI", 42, offset)
    return b"Exif\0\0" + header + struct.pack(f"{order}H", entries) + entry + struct.pack(f"{order}I", 0)


def tiff(orientation: int, order: str = "<", **options: Any) -> bytes:
    """Return EXIF data without the six bytes that identify it in a JPEG, as in PNG and WebP."""
    return exif(orientation, order, **options)[6:]


def late_directory(orientation: int, order: str = "<") -> bytes:
    """Return EXIF data with other entries before the orientation, and a gap of 100 bytes after the header."""
    mark = {"<": b"II", ">": b"MM"}[order]
    entries = [(0x010F, 2, 4, b"abc\0"), (0x0110, 2, 4, b"xyz\0")]
    packed = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    packed += struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    body = mark + struct.pack(f"{order}HI", 42, 108) + bytes(100)
    return b"Exif\0\0" + body + struct.pack(f"{order}H", 3) + packed + bytes(4)


MISLEADING: dict[str, bytes] = {
    "orientation 0": exif(0),
    "orientation 9": exif(9),
    "orientation 65535": exif(65535),
    "another tag": exif(6, tag=0x0113),
    "text instead of a number": exif(6, kind=2),
    "a long number beyond 65535": exif(0x10006, kind=4),
    "a long number, big-endian, in its first half": exif(0x60000, ">", kind=4),
    "an unknown byte order": exif(6, mark=b"XX"),
    "little-endian that calls itself big-endian": exif(6, "<", mark=b"MM"),
    "big-endian that calls itself little-endian": exif(6, ">", mark=b"II"),
    "a directory beyond the end": exif(6, offset=2**32 - 1),
    "a directory at half a gigabyte": exif(6, offset=2**29),
    "no entries": exif(6, entries=0),
    "65535 entries, none of them there": exif(6, entries=65535, tag=0x0113),
    "cut after the header": exif(6)[:14],
    "cut inside the entry": exif(6)[:20],
    "nothing behind it": exif(6)[:6],
}
"""EXIF data that must not change the orientation."""

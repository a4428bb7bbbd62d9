"""Cases of other formats than JPEG, PNG, GIF, BMP and WebP: images, other files, and their signatures."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Iterator

from serving.contract import Status
from tests.corpus import gif, webp
from tests.corpus.case import Case, bad, good
from tests.corpus.images import HEIGHT, WIDTH, saved, small, translucent
from tests.corpus.jpeg import jpeg

NOT, UNSUPPORTED = Status.NOT_AN_IMAGE, Status.UNSUPPORTED_FORMAT


def cases() -> Iterator[Case]:
    """Yield all cases of other formats."""
    yield bad("other/empty", b"", Status.EMPTY)
    yield from _images()
    yield from _files()
    yield from _begins()
    yield from _disguised()


def brand(name: bytes, *compatible: bytes, size: int | None = None) -> bytes:
    """Return the ftyp box at the start of ISO media files (ISO/IEC 14496-12, 4.3)."""
    body = b"ftyp" + name + bytes(4) + b"".join(compatible)
    return struct.pack(">I", len(body) + 4 if size is None else size) + body


def _images() -> Iterator[Case]:
    """Yield image formats that the preprocessing does not decode; complete files can be converted before."""
    for name, content in {
        "TIFF": saved(small(), "TIFF"),
        "TIFF, LZW": saved(small(), "TIFF", compression="tiff_lzw"),
        "TIFF, deflate": saved(small(), "TIFF", compression="tiff_deflate"),
        "TIFF, JPEG inside": saved(small(), "TIFF", compression="jpeg"),
        "TIFF, grey": saved(small().convert("L"), "TIFF"),
        "TIFF, alpha": saved(translucent(WIDTH, HEIGHT), "TIFF"),
        "TIFF, CMYK": saved(small().convert("CMYK"), "TIFF"),
        "TIFF, big-endian": _big_endian_tiff(),
        "BigTIFF": saved(small(), "TIFF", big_tiff=True),
        "JPEG 2000": saved(small(), "JPEG2000"),
        "JPEG 2000, without a container": saved(small(), "JPEG2000", no_jp2=True),
        "AVIF": saved(small(), "AVIF"),
    }.items():
        yield bad(f"other/{name}", content, UNSUPPORTED, Status.OK)
    for name, content in {
        "TIFF, header alone": b"II*\0\x08\0\0\0",
        "TIFF, big-endian, header alone": b"MM\0*" + bytes(100),
        "TIFF, cut off": saved(small(), "TIFF")[:600],
        **{
            f"ISO media, brand {name.decode()}": brand(name, b"mif1", b"miaf") + bytes(300)
            for name in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")
        },
        "ISO media of box size 0": brand(b"heic", size=0),
        "ISO media of box size 2**32-1": brand(b"heic", size=2**32 - 1),
        "AVIF, cut off": saved(small(), "AVIF")[:300],
        "JPEG 2000, header alone": b"\0\0\0\x0cjP  \r\n\x87\n",
    }.items():
        yield bad(f"other/{name}", content, UNSUPPORTED, Status.CORRUPT)
    for name, content in {
        "MP4": brand(b"isom", b"iso2", b"avc1", b"mp41") + b"\0\0\0\x08free\0\0\0\x08mdat",
        "MP4 of a phone": brand(b"mp42", b"isom") + bytes(500),
        "QuickTime": brand(b"qt  ") + bytes(300),
        "Canon's raw photos": brand(b"crx ", b"isom") + bytes(300),
        "Photoshop": b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 20, 30, 8, 3) + bytes(200),
        "Photoshop, large": b"8BPS\0\x02" + bytes(6) + struct.pack(">HIIHH", 3, 20, 30, 8, 3) + bytes(200),
        "BigTIFF, big-endian": b"MM\0+\0\x08" + bytes(100),
        "JPEG XL": b"\xff\x0a" + bytes(100),
        "JPEG XL, container": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100),
    }.items():
        yield bad(f"other/{name}", content, UNSUPPORTED)


def _big_endian_tiff() -> bytes:
    """Return a big-endian TIFF of 4x3 RGB pixels in one strip (TIFF 6.0, 6)."""
    bits = 8 + 2 + 10 * 12 + 4
    entries = [
        (256, 3, 1, 4 << 16),
        (257, 3, 1, 3 << 16),
        (258, 3, 3, bits),
        (259, 3, 1, 1 << 16),
        (262, 3, 1, 2 << 16),
        (273, 4, 1, bits + 6),
        (277, 3, 1, 3 << 16),
        (278, 3, 1, 3 << 16),
        (279, 4, 1, 36),
        (284, 3, 1, 1 << 16),
    ]
    table = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    header = b"MM\0*" + struct.pack(">IH", 8, len(entries))
    return header + table + bytes(4) + struct.pack(">HHH", 8, 8, 8) + bytes(range(36))


def _files() -> Iterator[Case]:
    noise = random.Random(11)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.jpeg"), jpeg(small()))
    text = "This is no photo, dear reader. "
    for name, content in {
        "text": text.encode(),
        "text in UTF-16": text.encode("utf-16-le"),
        "text in UTF-16 with its mark": b"\xff\xfe" + text.encode("utf-16-le"),
        "text in UTF-16, big-endian": b"\xfe\xff" + text.encode("utf-16-be"),
        "text with a byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "a newline": b"\n",
        "a space": b" ",
        "HTML": b"<!doctype html><title>404</title><p>Not found",
        "XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "JSON": b'{"error": "not found"}',
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>",
        "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "ZIP": packed.getvalue(),
        "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(40),
        "tar": b"photo.jpeg".ljust(512, b"\0") + jpeg(small()),
        "icon": saved(small(), "ICO"),
        "icon of BMP": saved(small(), "ICO", bitmap_format="bmp"),
        "PPM": saved(small(), "PPM"),
        "TGA": saved(small(), "TGA"),
        "PCX": saved(small(), "PCX"),
        "sound in RIFF": b"RIFF\x24\0\0\0WAVEfmt " + bytes(30),
        "film in RIFF": b"RIFF\x24\0\0\0AVI LIST" + bytes(30),
        "film of Matroska": b"\x1aE\xdf\xa3" + bytes(100),
        "program": b"\x7fELF\x02\x01\x01" + bytes(100),
        "Windows program": b"MZ\x90\0" + bytes(100),
        "Python": b"#!/usr/bin/env python\nprint('hello')\n",
        "base64 of a photo": b"data:image/jpeg;base64,/9j/4AAQSkZJRgABAQ",
        "BigTIFF, reversed": b"MM*\0" + bytes(40),
        "one zero": b"\0",
        "zeros": bytes(1000),
        "a hundred thousand zeros": bytes(100_000),
        "ones": b"\xff" * 1000,
        "end of image alone": b"\xff\xd9",
        **{f"noise {i}": b"\x01" + noise.randbytes(noise.randint(1, 900)) for i in range(12)},
    }.items():
        yield bad(f"other/{name}", content, NOT)


SIGNATURES: dict[str, tuple[bytes, int, Status, int]] = {
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01", 3, Status.CORRUPT, 99),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 8, Status.CORRUPT, 99),
    "GIF": (b"GIF89a\x30\0\x20\0\x83\0\0\0\0\0", 6, Status.CORRUPT, 99),
    "WebP": (b"RIFF\x24\0\0\0WEBPVP8 ", 12, Status.CORRUPT, 99),
    "BMP": (b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0", 2, UNSUPPORTED, 2),
    "TIFF": (b"II*\0\x08\0\0\0\x01\0\0\x01\x03\0\x01\0", 4, UNSUPPORTED, 4),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", 8, UNSUPPORTED, 12),
    "Photoshop": (b"8BPS\0\x01\0\0\0\0\0\0\0\x03\0\0", 4, UNSUPPORTED, 99),
}
"""(16 bytes, length of the signature, status from there on, length from which a reader tries to decode)."""


def _begins() -> Iterator[Case]:
    for name, (content, enough, status, readable) in SIGNATURES.items():
        for length in range(1, 17):
            if name == "GIF" and length in (4, 5):
                continue  # no version yet: a matter of taste
            found = status if length >= enough else NOT
            converted = Status.CORRUPT if length >= readable else None
            yield bad(f"other/{length} bytes of {name}", content[:length], found, converted)


def _disguised() -> Iterator[Case]:
    """Yield files with misleading signatures; only the signature at the very start counts."""
    yield good("other/a PNG named .jpeg", saved(small(), "PNG"), WIDTH, HEIGHT)
    yield good("other/a WebP named .jpeg", webp.lossy(), WIDTH, HEIGHT)
    yield good("other/a GIF named .jpeg", gif.gif(gif.picture()), gif.W, gif.H)
    photos = {
        "JPEG": jpeg(small()),
        "PNG": saved(small(), "PNG"),
        "GIF": gif.gif(gif.picture()),
        "BMP": saved(small(), "BMP"),
        "WebP": webp.lossy(),
    }
    for name, photo in photos.items():
        for what, junk in {
            "a byte order mark": b"\xef\xbb\xbf",
            "a zero": b"\0",
            "a newline": b"\n",
            "HTTP headers": b"HTTP/1.1 200 OK\r\n\r\n",
        }.items():
            yield bad(f"other/{name} behind {what}", junk + photo, NOT)
        yield bad(f"other/{name} without its first byte", photo[1:], NOT)
        yield bad(f"other/{name} in base64", b"/9j/" + photo.hex().encode(), NOT)
        as_text = photo.decode("latin-1").encode()
        if name == "BMP":  # whose header is all ASCII, and which has no checksum
            yield good(f"other/{name} as UTF-8 text", as_text, WIDTH, HEIGHT)
        else:
            status = Status.CORRUPT if name in ("GIF", "WebP") else NOT
            yield bad(f"other/{name} as UTF-8 text", as_text, status)

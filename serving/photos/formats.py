"""Detection of photo formats that the graph cannot decode, by the bytes of their header.

The same rules are in trainer/preprocessing, where they decide which photos get the status
`unsupported_format`; a test compares them.
"""

from __future__ import annotations

HEADER_BYTES = 256
"""Bytes at the beginning of a file by which its format is detected."""

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".webp"),
        *(".heic", ".heif", ".hif", ".avif", ".tif", ".tiff", ".jp2", ".j2k", ".jpx"),
    )
)
"""Suffixes of the formats that are decoded or converted, in lower case."""

_READERS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"RIFF", "WEBP"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
)
"""Signature and Pillow reader of the formats that the graph decodes and `downscale` accepts as well."""

_SIGNATURES = (
    (b"II*\0", "TIFF", "TIFF"),
    (b"MM\0*", "TIFF", "TIFF"),
    (b"II+\0", "BigTIFF", "TIFF"),
    (b"MM\0+", "big-endian BigTIFF", ""),  # which Pillow misreads
    (b"\xff\x4f\xff\x51", "JPEG 2000", "JPEG2000"),  # without a container
    (b"\0\0\0\x0cjP  ", "JPEG 2000", "JPEG2000"),
    (b"8BPS", "Photoshop", ""),
    (b"\0\0\0\x0cJXL ", "JPEG XL", ""),
    (b"\xff\x0a", "JPEG XL", ""),
)
"""Signature, name of the format, and name of the Pillow reader; "" if there is none."""

_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF = {b"avif", b"avis"}
_ANY_CODEC = {b"mif1", b"msf1"}
"""Brands of HEIF that do not state the codec; the compatible brands do (ISO/IEC 23008-12)."""


def detect_unsupported_format(content: bytes) -> str | None:
    """Return the name of the format if the graph reports it as `unsupported_format`, else None.

    The result depends on the same few header bytes as in trainer/preprocessing.
    """
    found = identify_unsupported(content)
    return found and found[0]


def identify_unsupported(content: bytes) -> tuple[str, str] | None:
    """Return (name of the format, Pillow reader or "") if the graph cannot decode the photo, else None."""
    head = content[:HEADER_BYTES].ljust(40, b"\0")
    if head.startswith(b"\x89PNG") and head[12:16] == b"CgBI":  # Xcode's, in which the pixels are not RGB
        return "PNG of iPhone apps (CgBI)", ""
    if find_decoded_reader(head) in ("JPEG", "PNG", "GIF"):  # always decoded otherwise
        return None
    if head.startswith(b"BM"):
        return _identify_bmp(head)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        # Only the extended format (chunk VP8X) can be animated; bit 1 of its flags says whether it is.
        return ("animated WebP", "WEBP") if head[15:16] == b"X" and head[20] & 2 else None
    if head[4:8] == b"ftyp":
        return _identify_iso_media(head)
    return next(((name, reader) for start, name, reader in _SIGNATURES if content.startswith(start)), None)


def _identify_bmp(head: bytes) -> tuple[str, str] | None:
    """Identify BMPs other than those the graph decodes.

    It decodes uncompressed ones of 24 or 32 bits with a BITMAPINFOHEADER or a later header.
    """
    size, bits, compression = (
        int.from_bytes(head[at:end], "little") for at, end in ((14, 18), (28, 30), (30, 34))
    )
    if size < 40:
        return "BMP of OS/2", "BMP"
    if bits <= 8:
        return "BMP with a palette", "BMP"
    if bits in (24, 32) and compression == 0:
        return None
    return f"BMP with {bits} bits per pixel" if compression == 0 else "BMP with bit masks", "BMP"


def _identify_iso_media(head: bytes) -> tuple[str, str]:
    """Identify the format by the brands of the `ftyp` box.

    The major brand is at byte 8, the compatible brands from 16 to the end of the box (ISO/IEC 14496-12,
    4.3).
    """
    end = min(int.from_bytes(head[:4], "big"), len(head))
    major = head[8:12]
    compatible = {head[at : at + 4] for at in range(16, end - 3, 4)}
    if major in _AVIF or (major in _ANY_CODEC and compatible & _AVIF):
        return "AVIF", "AVIF"
    if major in _HEIC:
        return "HEIC", "HEIF"
    brand = major.decode("latin-1").strip()
    return f"ISO media {brand if brand.isascii() and brand.isprintable() else major.hex()}", ""


def is_photo(head: bytes) -> bool:
    """Return whether a file with these HEADER_BYTES is in a format that is decoded or converted."""
    found = identify_unsupported(head)
    return bool(found[1] if found else find_decoded_reader(head))


def find_decoded_reader(content: bytes) -> str:
    """Return the Pillow reader of a photo that the graph decodes, or "" if it is in no known format."""
    return next((reader for start, reader in _READERS if content.startswith(start)), "")

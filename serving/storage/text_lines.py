"""Text files as editors and spreadsheets write them: byte-order marks, UTF-16, and every kind of line end."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, BinaryIO, cast

from serving.errors import InputError

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD_BYTES = 1 << 16

_OTHER_FORMATS = (
    (b"\x1f\x8b", "compressed with gzip", "Unpack it with gunzip."),
    (b"PK\x03\x04", "a ZIP archive, as spreadsheets (.xlsx, .ods) are", "Export it as text, such as CSV."),
    (b"\xd0\xcf\x11\xe0", "a file of old spreadsheets (.xls)", "Export it as text, such as CSV."),
    (b"PAR1", "Parquet", "Call it .parquet."),
)
"""First bytes of files that are taken for text, what they are, and what to do about it."""


def read_lines(file: IO[bytes], where: str) -> Iterator[str]:
    """Yield the lines of a text file with their ends, which are LF, CR LF, or CR where there is no LF.

    Args:
        file: seekable file in UTF-8, or in UTF-16 or UTF-32 as told by its first bytes.
        where: path or address of the file, for errors.

    Raises:
        InputError: a line is not in the file's encoding, or has a null character, which no text has; or the
            file is no text, such as a spreadsheet.
    """
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    for start, what, remedy in _OTHER_FORMATS:
        if head.startswith(start):
            raise InputError(f"{where} is no text: it is {what}.", remedy=remedy)
    encoding = _detect_encoding(head)
    line_end = "\r" if b"\r" in head and b"\n" not in head else "\n"
    # What cannot be decoded is marked, so that the error can name its line.
    mark, errors = (None, "surrogateescape") if encoding == "utf-8-sig" else ("\ufffd", "replace")
    text = io.TextIOWrapper(cast(BinaryIO, file), encoding, errors, line_end)
    try:
        for number, line in enumerate(text, 1):
            if not line.isascii() and (wrong := _find_undecoded(line, mark)):
                name = encoding.removesuffix("-sig").upper()
                raise InputError(
                    f"{where}, line {number}: {wrong} is not {name}.", remedy="Save the file as UTF-8."
                )
            if "\0" in line:
                position = line.index("\0") + 1
                raise InputError(
                    f"{where}, line {number}: character {position} is a null character, which no text has.",
                    remedy="Save the file as text in UTF-8.",
                )
            yield line
    finally:
        with suppress(ValueError):  # the file is closed already
            text.detach()  # else it would close the file


def decode_text(content: bytes, where: str) -> str:
    """Return the content of a text file, decoded as `read_lines` does.

    Raises:
        InputError: a line is not in the file's encoding.
    """
    return "".join(read_lines(io.BytesIO(content), where))


def _find_undecoded(line: str, mark: str | None) -> str:
    """Return the first character that could not be decoded, for the error; "" if all could."""
    if mark:
        return f"character {line.index(mark) + 1}" if mark in line else ""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        return f"byte {len(line[: error.start].encode(errors='surrogateescape')) + 1}"
    return ""


def _detect_encoding(head: bytes) -> str:
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    # Without a mark: the first character of a list or a table is ASCII, so zero bytes are the rest of it.
    if (zeros := head[:4].count(0)) == 3 and (head[0] or head[3]):
        return "utf-32-le" if head[0] else "utf-32-be"
    if zeros == 4:
        return "utf-8-sig"
    if head[1:2] == b"\0" != head[:1]:
        return "utf-16-le"
    return "utf-16-be" if head[:1] == b"\0" != head[1:2] and len(head) > 1 else "utf-8-sig"

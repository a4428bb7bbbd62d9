"""TFRecord files, without TensorFlow.

A record is the length of its data, 8 bytes, and the data, each followed by a checksum of 4 bytes
(tensorflow/core/lib/io/record_writer.h of TensorFlow).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from serving.errors import BundleError

_CHECKSUM_BYTES = 4
_HEADER_BYTES = 8 + _CHECKSUM_BYTES
_MASK_DELTA = 0xA282EAD8
"""Constant by which TensorFlow masks checksums (tsl/lib/hash/crc32c.h of TensorFlow)."""


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file.

    Raises:
        BundleError: it is not a TFRecord file, or is corrupt.
    """
    with path.open("rb") as file:
        while header := file.read(_HEADER_BYTES):
            [length] = struct.unpack("<Q", _verify(path, header, _HEADER_BYTES))
            # The length is verified, so this does not ask for more than was written.
            yield _verify(path, file.read(length + _CHECKSUM_BYTES), length + _CHECKSUM_BYTES)


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write a file of records."""
    with path.open("wb") as file:
        for record in records:
            for data in (struct.pack("<Q", len(record)), record):
                file.write(data + _checksum(data))


def _verify(path: Path, content: bytes, size: int) -> bytes:
    """Return content without the checksum at its end, which must be right."""
    data, stored = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if len(content) != size or stored != _checksum(data):
        raise BundleError(f"{path} is not a TFRecord file, or is corrupt.", remedy="Export the bundle again.")
    return data


def _checksum(data: bytes) -> bytes:
    import google_crc32c

    checksum = google_crc32c.value(data)
    rotated = (checksum >> 15 | checksum << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + _MASK_DELTA) & 0xFFFFFFFF)

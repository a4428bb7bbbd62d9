"""Decompression of request bodies, step by step beside the event loop: a bomb of 1 MB unpacks to 1 GB."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Any

from serving.server.status_error import invalid_argument

_STEP_BYTES = 1 << 20
"""Bytes that are unpacked before another body has its turn; some milliseconds of work."""

_ANY_HEADER = 47
"""Argument of zlib for the header of gzip or of zlib."""

_RAW = -zlib.MAX_WBITS
"""Argument of zlib for data without a header, which some clients send as deflate."""


class Decompression:
    """Decompression of one body.

    Args:
        encoding: value of its header Content-Encoding; "" for none.
        turn: lock that all bodies of a server share, so that each has its turn for a step.

    Raises:
        StatusError: the encoding is not supported.
    """

    def __init__(self, encoding: str, turn: asyncio.Lock) -> None:
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise invalid_argument(
                f"Content-Encoding {encoding[:100]!r} is not supported. Send gzip or none."
            )
        self._is_plain, self._is_deflate = encoding in ("", "identity"), encoding == "deflate"
        self._turn = turn
        self._decompressor: Any = None  # what zlib.decompressobj returns

    async def unpack(self, chunk: bytes) -> AsyncIterator[bytes]:
        """Yield the content of the next bytes of the body, in parts of at most 1 MiB.

        Raises:
            StatusError: the body is damaged.
        """
        if self._is_plain:
            yield chunk
            return
        while chunk:
            is_raw = self._is_deflate and chunk[0] & 0x0F != zlib.DEFLATED
            one = self._decompressor or zlib.decompressobj(_RAW if is_raw else _ANY_HEADER)
            self._decompressor, is_full = one, False
            while chunk or is_full:  # zlib may keep more of a full part
                try:
                    async with self._turn:
                        part = await asyncio.to_thread(one.decompress, chunk, _STEP_BYTES)
                except zlib.error as error:
                    raise invalid_argument(f"The body cannot be decompressed: {error}") from error
                if part:
                    yield part
                chunk, is_full = one.unconsumed_tail, len(part) == _STEP_BYTES
            chunk = one.unused_data
            if one.eof:  # another member of a gzip file may follow
                self._decompressor = None

    def check_end(self) -> None:
        """Check that the body is complete.

        Raises:
            StatusError: it is not.
        """
        if self._decompressor is not None and not self._decompressor.eof:
            raise invalid_argument("The body cannot be decompressed: its end is missing.")

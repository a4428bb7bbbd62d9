"""Decompression of request bodies: encodings, damaged bodies, bounded steps."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import pytest

from serving.server.rest import content_encoding
from serving.server.rest.content_encoding import Decompression
from serving.server.status_error import StatusError

CONTENT = b'{"instances": [' + b", ".join(b"%d" % number for number in range(2_000)) + b"]}"


def unpack(encoding: str, body: bytes, size: int = 1 << 16) -> list[bytes]:
    """Return the parts of a body that arrives in chunks of a size."""

    async def run() -> list[bytes]:
        decompression = Decompression(encoding, asyncio.Lock())
        chunks = [body[start : start + size] for start in range(0, len(body), size)]
        parts = [part for chunk in chunks async for part in decompression.unpack(chunk)]
        decompression.check_end()
        return parts

    return asyncio.run(run())


def compress_raw(content: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(content) + compressor.flush()


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("", CONTENT),
        ("identity", CONTENT),
        ("gzip", gzip.compress(CONTENT)),
        ("GZIP ", gzip.compress(CONTENT)),
        ("gzip", gzip.compress(CONTENT[:99]) + gzip.compress(CONTENT[99:])),
        ("deflate", zlib.compress(CONTENT)),
        ("deflate", compress_raw(CONTENT)),
    ],
)
def test_body_is_unpacked_in_chunks_of_any_size(encoding: str, body: bytes, size: int) -> None:
    assert b"".join(unpack(encoding, body, size)) == CONTENT


def test_a_bomb_is_unpacked_in_steps_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_encoding, "_STEP_BYTES", 1000)
    parts = unpack("gzip", gzip.compress(b"a" * 100_000))
    assert sum(map(len, parts)) == 100_000
    assert max(map(len, parts)) == 1000


@pytest.mark.parametrize("body", [gzip.compress(CONTENT)[:-20], gzip.compress(CONTENT) + b"x", b"\x1f\x8bxy"])
def test_damaged_body_is_an_invalid_argument(body: bytes) -> None:
    with pytest.raises(StatusError, match="The body cannot be decompressed"):
        unpack("gzip", body)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x" * 10_000])
def test_other_encodings_are_an_invalid_argument(encoding: str) -> None:
    with pytest.raises(StatusError, match=r"is not supported\. Send gzip or none") as caught:
        unpack(encoding, b"")
    assert len(str(caught.value.details)) < 200

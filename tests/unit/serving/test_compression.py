"""Decompression of gRPC messages by the server."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError

from serving import protos
from serving.errors import InputError
from serving.server.grpc import compression

COMPRESS = [gzip.compress, zlib.compress]


@pytest.mark.parametrize("compress", COMPRESS)
@pytest.mark.parametrize("content", [b"", b"a", bytes(100_000)])
def test_content_is_decompressed_up_to_the_limit(compress: Callable[[bytes], bytes], content: bytes) -> None:
    body = compress(content)
    assert compression.is_compressed(body)
    assert compression.decompress(body, len(content)) == content
    if content:
        with pytest.raises(InputError, match="message larger than max"):
            compression.decompress(body, len(content) - 1)


def test_messages_of_this_server_are_not_taken_for_compressed() -> None:
    request = protos.PredictRequest(model_spec={"name": "x"}, output_filter=["x"])
    request.inputs["x"].dtype = 1
    for body in (b"", b"\x1f", b"x", b"xx", request.SerializeToString(), protos.Input().SerializeToString()):
        assert not compression.is_compressed(body)


@pytest.mark.parametrize("compress", COMPRESS)
def test_damaged_message_is_an_error(compress: Callable[[bytes], bytes]) -> None:
    body = compress(bytes(range(256)) * 10)
    for damaged in (body[:-1], body[:20], body[:20] + b"\xff" * 20 + body[40:]):
        with pytest.raises(DecodeError):
            compression.decompress(damaged, 1 << 20)


def test_memory_is_bounded_by_the_limit() -> None:
    body = gzip.compress(bytes(100 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            compression.decompress(body, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()

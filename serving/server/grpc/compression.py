"""Decompression of messages, which is done on the thread that parses them and counts their memory.

gRPC would decompress every message when it arrives, before it is known what is in flight: 60 messages of
61 kB, one per connection, took 4.9 GB. With OPTION it leaves them as they are. It then does not say which are
compressed, but their first bytes do, with which no message of this server begins.
"""

from __future__ import annotations

import zlib

from google.protobuf.message import DecodeError

from serving.errors import InputError

OPTION = ("grpc.per_message_decompression", 0)
"""Option of a gRPC server that leaves messages compressed."""

_GZIP = b"\x1f\x8b\x08"
"""Signature of gzip (RFC 1952). As protobuf it would be a tag with wire type 7, which there is not."""

_ZLIB = 0x78
"""First byte of zlib with the window of 32 KiB that gRPC uses (RFC 1950). As protobuf: field 15, a number."""

_DETECT_FORMAT = zlib.MAX_WBITS | 32


def is_compressed(body: bytes) -> bool:
    """Return whether a message is compressed with gzip or zlib ("deflate" in gRPC)."""
    if body[:1] == bytes([_ZLIB]):
        return len(body) > 1 and not int.from_bytes(body[:2], "big") % 31  # the check bits of the header
    return body.startswith(_GZIP)


def decompress(body: bytes, limit: int) -> bytes:
    """Return the content of a compressed message.

    Args:
        body: message for which `is_compressed` is True.
        limit: maximum size of the content in bytes, which is also about the memory that this takes.

    Raises:
        InputError: the content is larger.
        DecodeError: the message is damaged.
    """
    stream = zlib.decompressobj(_DETECT_FORMAT)
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise DecodeError(f"The message cannot be decompressed: {error}") from error
    if len(content) > limit:
        raise InputError(f"Decompressed message larger than max ({limit} bytes).")  # the words of gRPC
    if not stream.eof:
        raise DecodeError("The compressed message ends too early")
    return content

"""Rejection of messages that cannot be parsed, for the services whose messages gRPC itself parses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving.errors import InputError
from serving.server.grpc import compression

_MAX_BYTES = 1 << 16
"""Maximum content of a compressed message; those of these services are a name or a few."""

_MALFORMED = object()
"""Stands for a message that cannot be parsed."""


class MalformedMessageInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Answers a message that cannot be parsed with INVALID_ARGUMENT; grpc.aio would answer UNKNOWN."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Return the handler of a call, with the check before it."""
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:  # unknown, or parsed by the dispatcher
            return handler
        kind = next(
            name for name in ("unary_unary", "unary_stream", "stream_stream") if getattr(handler, name)
        )
        answer = getattr(handler, kind)

        async def check(request: Any, context: Any) -> Any:
            if request is _MALFORMED:
                await _reject(context)
            return await answer(request, context)

        async def check_each(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            async def parsed() -> AsyncIterator[Any]:
                async for request in requests:
                    if request is _MALFORMED:
                        await _reject(context)
                    yield request

            async for response in answer(parsed(), context):
                yield response

        parse = _make_parser(handler.request_deserializer)
        checked: Any = check_each if kind == "stream_stream" else check
        return handler._replace(request_deserializer=parse, **{kind: checked})


def _make_parser(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse_or_mark(body: bytes) -> Any:
        try:
            if compression.is_compressed(body):
                body = compression.decompress(body, _MAX_BYTES)
            return parse(body)
        except (DecodeError, InputError):
            return _MALFORMED

    return parse_or_mark


async def _reject(context: Any) -> None:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The request is not a valid message.")

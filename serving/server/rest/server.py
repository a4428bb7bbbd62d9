"""The HTTP server. Its event loop runs in a thread of its own, and never runs a model."""

from __future__ import annotations

import asyncio
import logging
import socket
from concurrent import futures
from typing import Any, cast

from aiohttp import ClientError, web
from aiohttp.http import HttpProcessingError

from serving.errors import OutputError
from serving.server.config.settings import ServerSettings
from serving.server.connections import find_max_connections
from serving.server.event_loop import EventLoopThread
from serving.server.metrics import Metrics
from serving.server.models.manager import Manager
from serving.server.rest.handler import make_application
from serving.text import get_error_type

GRACE_SECONDS = 5.0
"""Time that requests in flight have to finish once the server stops."""


_MAKE_ROOM_FROM = 0.5
"""Fraction of the maximum number of connections from which old ones are closed for new ones. Of a burst up
to 128 are accepted before the first closed one has ended."""


class RestServer:
    """An HTTP server on an open port; close it with `stop`.

    Attributes:
        port: HTTP port; the one that was picked if the settings say 0.
    """

    def __init__(self, settings: ServerSettings, manager: Manager, metrics: Metrics) -> None:
        """Open the port; requests are answered after `start`.

        Raises:
            OutputError: the port cannot be opened.
        """
        try:
            self._listener = _open_socket(settings.rest_api_port or 0)
        except OSError as error:
            raise OutputError(
                f"Port {settings.rest_api_port} cannot be opened: {error.strerror or error}.",
                remedy="Choose another port with --rest_api_port, or let --rest_api_port -1 pick a free one.",
            ) from error
        self.port = int(self._listener.getsockname()[1])
        self._loop = EventLoopThread("hubhead-rest")
        # Twice as many threads, since some requests are admitted beside a caller that has reached its limit.
        self._pool = futures.ThreadPoolExecutor(
            2 * settings.grpc_max_threads, thread_name_prefix="hubhead-rest"
        )
        app = make_application(settings, manager, metrics, self._pool)
        logger = logging.getLogger(__name__)
        logger.addFilter(_is_no_bad_request)
        self._runner = _Runner(
            app,
            access_log=None,
            logger=logger,
            handle_signals=False,
            shutdown_timeout=GRACE_SECONDS,
            auto_decompress=False,  # which would run on the event loop
            handler_cancellation=True,  # so that the work of a caller that disconnects stops
        )

    def start(self) -> None:
        """Start to answer requests."""
        self._loop.run(self._start())

    def stop(self) -> None:
        """Reject new requests, wait up to 5 seconds for those in flight, and close the port."""
        self._loop.run(self._runner.cleanup())
        self._listener.close()
        self._loop.close()
        self._pool.shutdown(wait=False)

    async def _start(self) -> None:
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()


class _Runner(web.AppRunner):
    """Runner that limits the number of connections: near the limit, the oldest makes room for a new one.

    It is closed at once if it is idle, and otherwise after its request, which clients of HTTP expect.
    """

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self._max_connections = find_max_connections()
        self._ending: set[Any] = set()

    @property
    def server(self) -> Any:
        """Factory of the protocols of new connections."""
        if (server := super().server) is None:
            return None

        def make_protocol() -> asyncio.BaseProtocol:
            connections = server.connections  # the oldest first
            if len(connections) >= self._max_connections:  # and none of those that were asked has ended
                return _ClosingProtocol()
            if len(connections) >= _MAKE_ROOM_FROM * self._max_connections:
                self._ending.intersection_update(connections)
                oldest = next((one for one in connections if one not in self._ending), None)
                if oldest is not None:
                    self._ending.add(oldest)
                    # `close` waits for the request of a connection, and leaves an idle one open.
                    oldest.close() if oldest._current_request else oldest.force_close()
            return server()

        return make_protocol


class _ClosingProtocol(asyncio.Protocol):
    """Protocol that closes its connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close the connection without an answer, which could have to wait for the caller."""
        cast(asyncio.Transport, transport).abort()


def _is_no_bad_request(record: logging.LogRecord) -> bool:
    """Return False for a client's malformed HTTP, such as gRPC on this port: it was answered with 400."""
    malformed = (HttpProcessingError, ClientError, web.RequestPayloadError)
    found = get_error_type(record)
    return not (found and issubclass(found, malformed))


def _open_socket(port: int) -> socket.socket:
    """Return one socket for IPv4 and IPv6 where possible, so that port 0 picks one port for both."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=dual)

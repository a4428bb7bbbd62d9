"""The HTTP port of the server: an event loop of its own in a thread; no model runs on it."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent import futures
from typing import Any

from aiohttp import web

from serving.errors import OutputError
from serving.server.config.settings import ServerSettings
from serving.server.metrics import Metrics
from serving.server.models.manager import Manager
from serving.server.rest.handler import application

GRACE_SECONDS = 5.0
"""How long requests in flight may still take once the server stops."""


class Rest:
    """The HTTP port, opened; close it with `stop`.

    Attributes:
        port: the port, also where the settings said 0.
    """

    def __init__(self, settings: ServerSettings, manager: Manager, metrics: Metrics) -> None:
        """Open the port.

        Raises:
            OutputError: it is taken.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hubhead-rest", daemon=True)
        self._thread.start()
        self._runner: Any = None
        self._pool = futures.ThreadPoolExecutor(settings.grpc_max_threads, thread_name_prefix="hubhead-rest")
        app = application(settings, manager, metrics, self._pool)
        try:
            self.port = self._run(self._open(app, settings))
        except OSError as error:
            self.stop()
            raise OutputError(
                f"Port {settings.rest_api_port} cannot be opened: {error.strerror or error}.",
                remedy="Choose another with --rest_api_port, or a free one with --rest_api_port 0.",
            ) from error

    def stop(self) -> None:
        """Take no more requests, give those in flight 5 seconds, close the port."""
        if self._runner is not None:
            self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown(wait=False)

    async def _open(self, app: web.Application, settings: ServerSettings) -> int:
        listening = _listening(settings.rest_api_port or 0)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=GRACE_SECONDS
        )
        await self._runner.setup()
        await web.SockSite(self._runner, listening).start()
        return int(listening.getsockname()[1])

    async def _close(self) -> None:
        await self._runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _listening(port: int) -> socket.socket:
    """One socket for both kinds of addresses, where there are both, so that port 0 is one port."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))

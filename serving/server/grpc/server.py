"""The gRPC port of the server: an event loop of its own in a thread; no model runs on it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import grpc

from serving import protos
from serving.errors import HubheadError, OutputError
from serving.server.config.settings import ServerSettings
from serving.server.grpc.dispatcher import Calls
from serving.server.grpc.handlers import answers
from serving.server.health import Health
from serving.server.metrics import Metrics
from serving.server.models.manager import Manager

_MAX_STREAMS = 4096
"""Calls that may have begun, those whose message has not come in yet among them."""

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # else a second server shares the port and takes half of the requests
)

T = TypeVar("T")


class GrpcPort:
    """The gRPC port, opened; close it with `stop`.

    Attributes:
        port: the port, also where the settings said 0.
    """

    def __init__(self, settings: ServerSettings, manager: Manager, metrics: Metrics, health: Health) -> None:
        """Open the port; it answers once `start` was called.

        Raises:
            OutputError: it is taken.
        """
        self._calls = Calls(settings.grpc_max_threads, metrics)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hubhead-grpc", daemon=True)
        self._thread.start()
        try:
            self._server, self.port = self._soon(self._open(settings, manager, health)).result()
        except HubheadError:
            self._end()
            raise

    def start(self) -> None:
        """Answer."""
        self._soon(self._server.start()).result()

    def stop(self, seconds: float) -> None:
        """Take no more calls, give those in flight some seconds, close the port."""
        self._soon(self._server.stop(seconds)).result()
        self._end()

    async def _open(self, settings: ServerSettings, manager: Manager, health: Health) -> tuple[Any, int]:
        server = grpc.aio.server(
            options=(*_OPTIONS, *settings.grpc_channel_arguments), maximum_concurrent_rpcs=_MAX_STREAMS
        )
        methods = answers(manager)
        for service in (protos.PREDICTION_SERVICE, protos.MODEL_SERVICE):
            handlers = {
                path.rpartition("/")[2]: self._calls.handler(path.rpartition("/")[2], answer, request)
                for path, (answer, request) in methods.items()
                if path.startswith(f"/{service}/")
            }
            generic = grpc.method_handlers_generic_handler(service, handlers)
            server.add_generic_rpc_handlers((generic,))
        health.add_to(server)
        _add_reflection(server)
        return server, _bind(server, settings)

    def _soon(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _end(self) -> None:
        self._calls.close()
        self._soon(_cancelled()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancelled() -> None:
    """End what is left on this loop."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _add_reflection(server: Any) -> None:
    from grpc_reflection.v1alpha import reflection

    names = (protos.PREDICTION_SERVICE, protos.MODEL_SERVICE, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, protos.pool())


def _bind(server: Any, settings: ServerSettings) -> int:
    address = f"[::]:{settings.port}"
    certificates = settings.certificates
    try:
        if certificates is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(
                address,
                grpc.ssl_server_credentials(
                    [(certificates.server_key.encode(), certificates.server_cert.encode())],
                    certificates.custom_ca.encode() or None,
                    certificates.client_verify,
                ),
            )
    except RuntimeError as error:
        raise _taken(settings.port) from error
    if bound == 0:  # how older releases of grpcio say the same
        raise _taken(settings.port)
    if settings.grpc_socket_path:
        try:
            server.add_insecure_port(f"unix:{settings.grpc_socket_path}")
        except RuntimeError as error:
            raise OutputError(
                f"The socket {settings.grpc_socket_path} cannot be opened: {error}.",
                remedy="Give --grpc_socket_path a place that you may write.",
            ) from error
    return int(bound)


def _taken(port: int) -> OutputError:
    return OutputError(
        f"Port {port} cannot be opened: another program has it, or you may not use it.",
        remedy="Choose another with --port, or a free one with --port 0.",
    )

"""The gRPC server. Its event loop runs in a thread of its own, and never runs a model."""

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
from serving.server.grpc.dispatcher import Dispatcher
from serving.server.grpc.handlers import make_handlers
from serving.server.health import HealthService
from serving.server.metrics import Metrics
from serving.server.models.manager import Manager

_MAX_STREAMS = 4096
"""Maximum number of open calls, including those whose message has not arrived yet."""

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # otherwise a second server could share the port and take half of the requests
)

T = TypeVar("T")


class GrpcServer:
    """A gRPC server on an open port; close it with `stop`.

    Attributes:
        port: gRPC port; the one that was picked if the settings say 0.
    """

    def __init__(
        self, settings: ServerSettings, manager: Manager, metrics: Metrics, health: HealthService
    ) -> None:
        """Open the port; calls are answered after `start`.

        Raises:
            OutputError: the port or the socket cannot be opened.
        """
        self._dispatcher = Dispatcher(settings.grpc_max_threads, metrics)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hubhead-grpc", daemon=True)
        self._thread.start()
        try:
            self._server, self.port = self._run_on_loop(self._open(settings, manager, health)).result()
        except HubheadError:
            self._close_loop()
            raise

    def start(self) -> None:
        """Start to answer calls."""
        self._run_on_loop(self._server.start()).result()

    def stop(self, seconds: float) -> None:
        """Reject new calls, wait up to `seconds` for those in flight, and close the port."""
        self._run_on_loop(self._server.stop(seconds)).result()
        self._close_loop()

    async def _open(
        self, settings: ServerSettings, manager: Manager, health: HealthService
    ) -> tuple[Any, int]:
        server = grpc.aio.server(
            options=(*_OPTIONS, *settings.grpc_channel_arguments), maximum_concurrent_rpcs=_MAX_STREAMS
        )
        methods = make_handlers(manager)
        for service in (protos.PREDICTION_SERVICE, protos.MODEL_SERVICE):
            handlers = {
                path.rpartition("/")[2]: self._dispatcher.make_rpc_handler(
                    path.rpartition("/")[2], handler, request
                )
                for path, (handler, request) in methods.items()
                if path.startswith(f"/{service}/")
            }
            generic = grpc.method_handlers_generic_handler(service, handlers)
            server.add_generic_rpc_handlers((generic,))
        health.add_to(server)
        _add_reflection(server)
        return server, _bind(server, settings)

    def _run_on_loop(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _close_loop(self) -> None:
        self._dispatcher.close()
        self._run_on_loop(_cancel_tasks()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_tasks() -> None:
    """Cancel all other tasks of this loop, and wait until they have ended."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _add_reflection(server: Any) -> None:
    from grpc_reflection.v1alpha import reflection

    names = (protos.PREDICTION_SERVICE, protos.MODEL_SERVICE, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, protos.pool())


def _bind(server: Any, settings: ServerSettings) -> int:
    """Bind the port, and the Unix socket if there is one; return the port.

    Raises:
        OutputError: one of them cannot be opened.
    """
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
        raise _port_error(settings.port) from error
    if bound == 0:  # older releases of grpcio return 0 in place of raising
        raise _port_error(settings.port)
    if settings.grpc_socket_path:
        try:
            server.add_insecure_port(f"unix:{settings.grpc_socket_path}")
        except RuntimeError as error:
            raise OutputError(
                f"The socket {settings.grpc_socket_path} cannot be opened: {error}.",
                remedy="Give --grpc_socket_path a path in a writable directory.",
            ) from error
    return int(bound)


def _port_error(port: int) -> OutputError:
    return OutputError(
        f"Port {port} cannot be opened: it is in use, or its use is not permitted.",
        remedy="Choose another port with --port, or let --port 0 pick a free one.",
    )

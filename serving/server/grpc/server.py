"""The gRPC server. Its event loop runs in a thread of its own, and never runs a model."""

from __future__ import annotations

import socket
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from serving import protos
from serving.errors import HubheadError, InputError, OutputError
from serving.server.config.settings import ServerSettings
from serving.server.connections import find_max_connections
from serving.server.event_loop import EventLoopThread
from serving.server.grpc import compression
from serving.server.grpc.dispatcher import MAX_MESSAGE_BYTES, Dispatcher
from serving.server.grpc.handlers import make_handlers
from serving.server.grpc.malformed import MalformedMessageInterceptor
from serving.server.health import HealthService
from serving.server.metrics import Metrics
from serving.server.models.manager import Manager

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    compression.OPTION,
    ("grpc.max_send_message_length", -1),
    # Otherwise gRPC estimates how much may arrive of a message that nobody reads yet, and on a busy server
    # that becomes all of it: 40 messages of 126 MiB took 5 GiB. A message that is read arrives at full speed;
    # a longer one than this needs another round trip.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 19),
    ("grpc.so_reuseport", 0),  # otherwise a second server could share the port and take half of the requests
)


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
        self._dispatcher = Dispatcher(settings.grpc_max_threads, metrics, manager.has_model)
        self._loop, self._started = EventLoopThread("hubhead-grpc"), False
        try:
            self._server, self.port = self._loop.run(self._open(settings, manager, health))
        except HubheadError:
            self._close()
            raise

    def start(self) -> None:
        """Start to answer calls."""
        self._loop.run(self._server.start())
        self._started = True

    def stop(self, seconds: float) -> None:
        """Reject new calls, wait up to `seconds` for those in flight, and close the port."""
        self._loop.run(self._stop(seconds))
        self._close()

    async def _stop(self, seconds: float) -> None:
        if not self._started:  # gRPC closes the port only of a server that was started
            await self._server.start()
            seconds = 0
        await self._server.stop(seconds)

    async def _open(
        self, settings: ServerSettings, manager: Manager, health: HealthService
    ) -> tuple[Any, int]:
        connections = ("grpc.max_allowed_incoming_connections", find_max_connections())
        server = grpc.aio.server(
            interceptors=[MalformedMessageInterceptor()],
            options=(*_OPTIONS, connections, *settings.grpc_channel_arguments),
        )
        for path, (handler, request_class) in make_handlers(manager).items():
            _, service, method = path.split("/")
            handlers = {method: self._dispatcher.make_rpc_handler(method, handler, request_class)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        health.add_to(server)
        names = (protos.PREDICTION_SERVICE, protos.MODEL_SERVICE, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server, protos.pool())
        return server, _bind(server, settings)

    def _close(self) -> None:
        self._dispatcher.close()
        self._loop.close()


def _bind(server: Any, settings: ServerSettings) -> int:
    """Bind the port, and the Unix socket if there is one; return the port.

    Raises:
        OutputError: one of them cannot be opened.
        InputError: the certificates cannot be used.
    """
    address, tls = f"[::]:{settings.port}", settings.certificates
    try:
        if tls is None:
            bound = server.add_insecure_port(address)
        else:
            pair = (tls.server_key.encode(), tls.server_cert.encode())
            authority = tls.custom_ca.encode() or None
            credentials = grpc.ssl_server_credentials([pair], authority, tls.client_verify)
            bound = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        if tls is not None and _can_open(settings.port):
            raise InputError(
                "The server_key, server_cert or custom_ca of --ssl_config_file cannot be used: one is not "
                "valid PEM, or the key is not that of the certificate.",
                remedy="Check them with openssl, such as: openssl x509 -in server.crt -noout -text",
            ) from error
        raise OutputError(
            f"Port {settings.port} cannot be opened: it is in use, or its use is not permitted.",
            remedy="Choose another port with --port, or let --port 0 pick a free one.",
        ) from error
    if settings.grpc_socket_path:
        try:
            server.add_insecure_port(f"unix:{settings.grpc_socket_path}")
        except RuntimeError as error:
            raise OutputError(
                f"The socket {settings.grpc_socket_path} cannot be opened: {error}.",
                remedy="Give --grpc_socket_path a path in a writable directory.",
            ) from error
    return int(bound)


def _can_open(port: int) -> bool:
    """Return whether a TCP port can be opened now."""
    try:
        with socket.create_server(("", port)):
            return True
    except OSError:
        return False

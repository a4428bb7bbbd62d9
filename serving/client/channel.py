"""Connection settings: target, TLS, keepalive, load balancing, headers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from serving.errors import InputError

if TYPE_CHECKING:
    from serving.client.async_client import AsyncClient
    from serving.client.client import Client

Headers: TypeAlias = Mapping[str, str] | Callable[[], Mapping[str, str]]
"""Metadata of every call, or a function that returns it before each call, such as a fresh token."""

Pem: TypeAlias = bytes | str | os.PathLike[str]
"""PEM text, or path of a PEM file."""

DEFAULT_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", -1),  # gRPC's default is 4 MiB, a handful of photos
    ("grpc.max_send_message_length", -1),
    # Round robin over all pods of a headless service; gRPC's default sends everything to the first one.
    # New pods are found when a connection ends, which the server's max_connection_age ensures (GOAWAY).
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.initial_reconnect_backoff_ms", 100),  # a server that is starting up is found quickly
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Keepalive pings detect a connection that died silently while a call waits on it. Servers close
    # connections that ping without data more than twice in 5 minutes; max_pings_without_data respects that.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 2),
)


@dataclass(frozen=True)
class Tls:
    """TLS settings of a connection.

    Attributes:
        ca: CA certificates to verify the server with; None for the ones that gRPC ships.
        certificate: certificate chain of this client, for servers that require one (mTLS).
        key: private key of `certificate`.
        server_name: host name to expect in the server's certificate, if it differs from the target's.
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InputError(
                f"A client {'key' if self.certificate is None else 'certificate'} was given without its "
                f"{'certificate' if self.certificate is None else 'private key'}.",
                remedy="Give certificate and key, or neither.",
            )

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the settings as gRPC channel credentials.

        Raises:
            InputError: a PEM file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            _read_pem(self.ca), _read_pem(self.key), _read_pem(self.certificate)
        )


@dataclass(frozen=True)
class ClientConfig:
    """Server, model, version and connection settings of a client; can be pickled.

    Attributes:
        target: gRPC target of the server, such as host:port.
        model: name under which the server serves the model; "" until it is known.
        version: version to ask; None for the one that the server chooses.
        label: version label to ask; None for no label.
        timeout: deadline of each request in seconds, retries included.
        headers: metadata of every call.
        tls: TLS settings; None for plain text.
    """

    target: str
    model: str = ""
    version: int | None = None
    label: str | None = None
    timeout: float = 10.0
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: Tls | None = None

    def client(self, **settings: Any) -> Client:
        """Open a blocking client; `settings` are more arguments of `Client`."""
        from serving.client.client import Client

        return Client(**self._arguments(), **settings)

    def async_client(self, **settings: Any) -> AsyncClient:
        """Open an asyncio client; `settings` are more arguments of `AsyncClient`."""
        from serving.client.async_client import AsyncClient

        return AsyncClient(**self._arguments(), **settings)

    def _arguments(self) -> dict[str, Any]:
        return {attribute.name: getattr(self, attribute.name) for attribute in fields(self)}


def channel_options(tls: Tls | None) -> list[tuple[str, Any]]:
    """Return the gRPC channel options for these TLS settings."""
    server_name = [("grpc.ssl_target_name_override", tls.server_name)] if tls and tls.server_name else []
    return [*DEFAULT_OPTIONS, *server_name]


def open_channel(target: str, tls: Tls | None) -> grpc.Channel:
    """Open a channel to any gRPC target: host:port, dns:///name:port, unix:path, ipv4:a:p,b:p.

    Raises:
        InputError: a PEM file cannot be read.
    """
    if tls is None:
        return grpc.insecure_channel(target, options=channel_options(None))
    return grpc.secure_channel(target, tls.credentials(), options=channel_options(tls))


def open_async_channel(target: str, tls: Tls | None) -> grpc.aio.Channel:
    """Open an asyncio channel; call it in the event loop that will use the channel."""
    if tls is None:
        return grpc.aio.insecure_channel(target, options=channel_options(None))
    return grpc.aio.secure_channel(target, tls.credentials(), options=channel_options(tls))


def encode_headers(headers: Headers) -> tuple[tuple[str, str], ...]:
    """Return headers as gRPC metadata.

    Raises:
        InputError: a name or a value is not valid in HTTP/2.
    """
    current = headers() if callable(headers) else headers
    for name, value in current.items():
        plain = name.replace("-", "").replace("_", "").replace(".", "")
        if not (plain.isascii() and plain.isalnum()) or name.startswith("grpc-") or name.endswith("-bin"):
            raise InputError(
                f"{name!r} is not a valid header name.",
                remedy="Use letters, digits, '-', '_' and '.'; 'grpc-...' and '...-bin' are reserved.",
            )
        if not (value.isascii() and value.isprintable()):
            raise InputError(
                f"The value of header {name!r} is not printable ASCII.",
                remedy="Encode it, for example with base64 or percent-encoding.",
            )
    return tuple((name.lower(), value) for name, value in current.items())


def _read_pem(given: Pem | None) -> bytes | None:
    if given is None or isinstance(given, bytes):
        return given
    if isinstance(given, str) and given.lstrip().startswith("-----BEGIN"):
        return given.encode()
    try:
        return Path(given).read_bytes()
    except OSError as error:
        raise InputError(
            f"The PEM file {os.fspath(given)} cannot be read: {error.strerror}.",
            remedy="Give the path of a readable PEM file, or the PEM text itself.",
        ) from error

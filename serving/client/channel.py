"""How the server is reached: address, encryption, keepalive, headers."""

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
"""Metadata sent with every call, or a function asked for it before each, as tokens expire."""

Pem: TypeAlias = bytes | str | os.PathLike[str]
"""PEM text, or the path of its file."""

OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", -1),  # gRPC's own default is 4 MiB, a handful of photos
    ("grpc.max_send_message_length", -1),
    # Every pod behind a headless service takes its turn, not the first one alone. New pods are found
    # when a connection ends, which the server's max_connection_age sees to.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.initial_reconnect_backoff_ms", 100),  # a server that is just starting is found at once
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A connection that died without a word is noticed while a call waits on it. Servers end those
    # that ping without data more often than twice in 5 minutes, which max_pings_without_data heeds.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 2),
)


@dataclass(frozen=True)
class Tls:
    """An encrypted connection.

    Attributes:
        ca: certificates that the server's is checked with; None: those that gRPC brings.
        certificate: this client's certificate chain, where the server wants one (mTLS).
        key: its private key.
        server_name: the name in the server's certificate, where it is not that of the address.
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InputError(
                "A client certificate and its private key go together; one of them is missing.",
                remedy="Give both, or neither.",
            )

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC calls the same.

        Raises:
            InputError: a file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            _read_pem(self.ca), _read_pem(self.key), _read_pem(self.certificate)
        )


@dataclass(frozen=True)
class ClientConfig:
    """The server, the model and the version that a client asks, and how it reaches them; can be pickled.

    Attributes:
        target: the server's gRPC target, such as host:port.
        model: the name that the server knows the model by; "" until it is known.
        version: ask for this version; None: the one that the server chooses.
        label: ask for the version with this version label.
        timeout: seconds that each request may take, its retries included.
        headers: metadata of every call.
        tls: an encrypted connection; None: plain text.
    """

    target: str
    model: str = ""
    version: int | None = None
    label: str | None = None
    timeout: float = 10.0
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: Tls | None = None

    def client(self, **settings: Any) -> Client:
        """Open a blocking client; `settings` are further arguments of `Client`."""
        from serving.client.client import Client

        return Client(**self._arguments(), **settings)

    def async_client(self, **settings: Any) -> AsyncClient:
        """Open a client for asyncio; `settings` are further arguments of `AsyncClient`."""
        from serving.client.async_client import AsyncClient

        return AsyncClient(**self._arguments(), **settings)

    def _arguments(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}


def options(tls: Tls | None) -> list[tuple[str, Any]]:
    """The channel's options."""
    names = [("grpc.ssl_target_name_override", tls.server_name)] if tls and tls.server_name else []
    return [*OPTIONS, *names]


def open_channel(target: str, tls: Tls | None) -> grpc.Channel:
    """A channel to any gRPC target: host:port, dns:///name:port, unix:path, ipv4:a:p,b:p.

    Raises:
        InputError: a file of certificates cannot be read.
    """
    if tls is None:
        return grpc.insecure_channel(target, options=options(None))
    return grpc.secure_channel(target, tls.credentials(), options=options(tls))


def open_async_channel(target: str, tls: Tls | None) -> grpc.aio.Channel:
    """The same for asyncio, in whose loop it is called."""
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options(None))
    return grpc.aio.secure_channel(target, tls.credentials(), options=options(tls))


def metadata(headers: Headers) -> tuple[tuple[str, str], ...]:
    """Headers as gRPC takes them.

    Raises:
        InputError: a name or a value that HTTP/2 does not carry.
    """
    found = headers() if callable(headers) else headers
    for name, value in found.items():
        plain = name.replace("-", "").replace("_", "").replace(".", "")
        if not (plain.isascii() and plain.isalnum()) or name.startswith("grpc-") or name.endswith("-bin"):
            raise InputError(
                f"{name!r} cannot be the name of a header.",
                remedy="Use letters, digits, '-', '_' and '.'; gRPC's own names and -bin are not taken.",
            )
        if not (value.isascii() and value.isprintable()):
            raise InputError(f"The value of header {name!r} is not printable ASCII.")
    return tuple((name.lower(), value) for name, value in found.items())


def _read_pem(given: Pem | None) -> bytes | None:
    if given is None or isinstance(given, bytes):
        return given
    if isinstance(given, str) and given.lstrip().startswith("-----BEGIN"):
        return given.encode()
    try:
        return Path(given).read_bytes()
    except OSError as error:
        raise InputError(
            f"The certificate file {os.fspath(given)} cannot be read: {error.strerror}."
        ) from error

"""Connection settings: target, TLS, keepalive, load balancing, headers."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from serving.client.concurrency import MAX_CONCURRENCY
from serving.client.grpc_errors import is_local, split_target
from serving.client.photos import MAX_BYTES, MAX_PHOTOS
from serving.client.retry import Retry
from serving.errors import InputError, check_fields
from serving.storage.text_lines import decode_text

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

MAX_TIMEOUT_SECONDS = 1e9
"""Largest timeout; gRPC takes later deadlines, such as that of an infinite timeout, for passed ones."""


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
        check_fields(self)
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
class SecretHeaders:
    """Headers that are read before each call from files and the environment, for `ClientConfig.headers`.

    It is pickled without their values, and a file that holds another token from then on is read again.

    Attributes:
        files: files with one header per line, NAME=VALUE.
        variable: environment variable with such lines; "" for none.
        given: other headers; they are pickled.
    """

    files: tuple[str, ...] = ()
    variable: str = ""
    given: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __call__(self) -> dict[str, str]:
        """Return the headers.

        Raises:
            InputError: a file cannot be read, the variable is not set here, or a line is no header.
        """
        found = dict(self.given)
        if self.variable:
            text = os.environ.get(self.variable)
            if text is None:
                raise InputError(
                    f"The environment variable {self.variable} with the headers is not set in this process.",
                    remedy="Set it for every worker, or give a file that every worker can read.",
                )
            found |= _parse_headers(text, f"the environment variable {self.variable}")
        for file in self.files:
            try:
                text = decode_text(Path(file).read_bytes(), file)
            except OSError as error:
                raise InputError(
                    f"The file {file} with the headers cannot be read: {error}.",
                    remedy="Give a text file with NAME=VALUE per line, which every worker can read.",
                ) from error
            found |= _parse_headers(text, file)
        return found


def _parse_headers(text: str, where: str) -> dict[str, str]:
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, value = line.strip().partition("=")
        if name and not equals:  # without the line, which may be a secret
            raise InputError(f"Line {number} of {where} is not NAME=VALUE.", remedy="Write NAME=VALUE.")
        if name:
            found[name.strip()] = value.strip()
    return found


@dataclass(frozen=True)
class ClientConfig:
    """Settings of a client; can be pickled where its headers can.

    Attributes:
        target: host:port of the server's gRPC port, or any gRPC target; `dns:///name:port` of a headless
            service spreads the requests over all of its pods (round robin).
        model: name under which the server serves the model; "" until it is known.
        version: version to ask; None for the one that the server chooses, which is its newest.
        label: version label to ask, such as "canary".
        canary: fraction of the requests, 0 to 1, that goes to the version labelled "canary"; the others go
            to `label`, or to "stable" if `label` is None. While no version has that label, all requests go
            to the others.
        timeout: deadline of each request in seconds, retries included; None for no deadline.
        retry: number of attempts and backoff if the server is unavailable or overloaded;
            Retry(attempts=1) never retries.
        tls: TLS settings, with or without a client certificate; None for plain text.
        headers: metadata of every call, or a function that returns it before each call.
        max_photos: photos per request; lowered if the server states a smaller maximum batch size.
        max_bytes: bytes of photos per request; a larger photo is sent in a request of its own.
        max_concurrency: upper bound of requests in flight while many photos are sent; the number adapts to
            the server's latency (serving/client/concurrency.py).
        convert: True to convert formats that the model does not decode (HEIC, AVIF, TIFF, ...) before they
            are sent (serving/photos/converter.py).
        downscale: True to downscale photos much larger than the model's input to twice that size before
            they are sent, as JPEGs; `python -m tests.bench.client` measures what that changes.

    Raises:
        InputError: settings that exclude each other or are out of range.
    """

    target: str
    model: str = ""
    version: int | None = None
    label: str | None = None
    canary: float = 0.0
    timeout: float | None = 10.0
    retry: Retry = field(default_factory=Retry)
    tls: Tls | None = None
    headers: Headers = field(default_factory=dict, repr=False)  # may contain a token; see SecretHeaders
    max_photos: int = MAX_PHOTOS
    max_bytes: int = MAX_BYTES
    max_concurrency: int = MAX_CONCURRENCY
    convert: bool = True
    downscale: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        other = "a canary fraction" if self.canary else f"label {self.label!r}"
        if self.version is not None and (self.canary or self.label is not None):
            raise InputError(
                f"Both version {self.version} and {other} were given.", remedy="Give one of the two."
            )
        if not 0 <= self.canary <= 1:
            raise InputError(
                f"The canary fraction is {self.canary}, which is not between 0 and 1.",
                remedy="Give the fraction of the requests, such as 0.05 for 5 %.",
            )
        in_time = self.timeout is None or 0 < self.timeout <= MAX_TIMEOUT_SECONDS
        if not (0 < self.max_photos <= sys.maxsize and 0 < self.max_bytes <= sys.maxsize and in_time):
            raise InputError(
                f"max_photos is {self.max_photos}, max_bytes {self.max_bytes} and timeout {self.timeout}.",
                remedy=f"Give values above 0, of at most 63 bits, and a timeout up to "
                f"{MAX_TIMEOUT_SECONDS:g} s or None.",
            )
        if self.version is not None and not 0 <= self.version < 2**63:
            raise InputError(f"The version is {self.version}.", remedy="Give a number from 0 to 2^63 - 1.")
        encode_headers({} if callable(self.headers) else self.headers)  # reported here, not at the first call


def make_config(target: str | ClientConfig, settings: Mapping[str, Any]) -> ClientConfig:
    """Return the settings of a client from the arguments of its constructor.

    Raises:
        TypeError: unknown settings, no model, or settings beside a ClientConfig.
        InputError: see `ClientConfig`.
    """
    if not isinstance(target, ClientConfig):
        if not settings.get("model"):
            raise TypeError("A client needs a model: Client('localhost:8500', model='food').")
        return ClientConfig(target, **settings)
    if settings:
        raise TypeError(f"Put {', '.join(settings)} into the ClientConfig: dataclasses.replace(config, ...).")
    return target


def open_channel(api: Any, config: ClientConfig) -> Any:
    """Open the channel of a client.

    Args:
        api: module `grpc` for a grpc.Channel, or `grpc.aio` for its asyncio counterpart, which belongs to the
            running event loop.
        config: settings of the client.

    Raises:
        InputError: a PEM file cannot be read.
    """
    tls, options = config.tls, [*DEFAULT_OPTIONS]
    if is_local(split_target(config.target)[0]):  # a proxy's localhost is another machine
        options.append(("grpc.enable_http_proxy", 0))
    if tls is None:
        return api.insecure_channel(config.target, options=options)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return api.secure_channel(config.target, tls.credentials(), options=options)


def check_target(config: ClientConfig) -> None:
    """Check that the target names a host and a port, which may be missing for TLS: gRPC's is 443.

    Raises:
        InputError: it does not.
    """
    target, (host, port) = config.target, split_target(config.target)
    found = ""
    if re.match(r"\w+://", target) and not target.startswith(("dns://", "unix://", "xds://")):
        found = "is a URL"
    elif (host, port) == ("", ""):
        return  # a socket path, or a name that another service resolves
    elif not host or "/" in host or host.split() != [host]:
        found = "has no host name"
    elif port is None:
        found = "" if config.tls else "has no port"
    elif not (port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        found = f"has the port {port!r}, which is not a number from 1 to 65535"
    if found:
        raise InputError(
            f"The server address {re.sub('//.*@', '//', target)!r} {found}.",  # without a password
            remedy="Give host and gRPC port, such as localhost:8500, without http://.",
        )


def encode_headers(headers: Headers) -> tuple[tuple[str, str], ...]:
    """Return headers as gRPC metadata.

    Raises:
        InputError: a name or a value is not valid in HTTP/2.
    """
    current = headers() if callable(headers) else headers
    if not all(isinstance(text, str) for item in current.items() for text in item):
        raise InputError("A header is not a text.", remedy="Give names and values as str.")
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

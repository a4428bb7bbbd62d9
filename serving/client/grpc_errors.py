"""Translation of gRPC errors to the classes of serving/errors.py, each with a remedy.

Status codes alone do not tell all cases apart. The texts matched here are those of TensorFlow Serving
and of gRPC itself. The cause of a failed connection is named where gRPC's text, the target or the environment
shows it.
"""

from __future__ import annotations

import ipaddress
import os
import re

import grpc

from serving.contract import PhotoRejection, Status
from serving.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NotAllowed,
    Overloaded,
    ServerError,
    ServerUnavailable,
    TooLarge,
)

Code = grpc.StatusCode

_QUEUE_FULL = "The batch scheduling queue"
_MESSAGE_TOO_LARGE = re.compile(r"message larger than max|exceeds.* maximum size", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile(r"\bOOM\b|out of memory|failed to allocate", re.IGNORECASE)
_CONNECTION_LOST = re.compile(r"RST_STREAM|Stream removed", re.IGNORECASE)
_LOCALLY_CANCELLED = ("Channel closed", "Locally cancelled")
_BATCH_SIZE = re.compile(r"Task size \d+ is larger than maximum input batch size (\d+)")

_SCHEME = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|google-c2p):")
"""Schemes of gRPC targets (gRPC Name Resolution)."""

_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")
"""Variables that gRPC takes a proxy from, and the hosts without one, in its order."""

_CONNECTION_CAUSES = (
    (
        re.compile(r"Expected SETTINGS frame|http1\.x|Failed parsing HTTP/2", re.IGNORECASE),
        "That port speaks HTTP/1.1, as the REST port does: give the gRPC port, usually 8500.",
    ),
    (
        re.compile("WRONG_VERSION_NUMBER"),
        "That port does not speak TLS: connect without TLS, or give the port that does.",
    ),
    (
        re.compile("Hostname Verification"),
        "The server's certificate is for another host name: connect by that name, or give it as "
        "Tls(server_name=...).",
    ),
    (
        re.compile("CERTIFICATE_VERIFY_FAILED|certificate", re.IGNORECASE),
        "The server's certificate cannot be verified: give its CA with --tls_ca (Tls(ca=...)).",
    ),
    (
        re.compile("handshake", re.IGNORECASE),
        "The TLS handshake failed: check --tls_ca, --tls_cert and --tls_key.",
    ),
    (
        re.compile("(failing|failed to connect).*(Socket closed|reset|broken|End of TCP)", re.IGNORECASE),
        "The port closes every connection, as the REST port does, or one that requires TLS: give the gRPC "
        "port, usually 8500, and --tls, or --tls_cert if the server requires a client certificate.",
    ),
    (
        re.compile("errors resolving|DNS resolution failed|Domain name not found", re.IGNORECASE),
        "The host name cannot be resolved: check --server.",
    ),
)
"""Patterns in gRPC's descriptions of failed connections, and the causes that they show."""


def parse_max_batch_size(error: ServerError) -> int | None:
    """Return the server's maximum batch size, if the error states it, else None."""
    match = _BATCH_SIZE.search(error.details)
    return int(match[1]) if match else None


def is_overload(error: grpc.RpcError) -> bool:
    """Return whether an error means overload: the server rejected the call, or missed the deadline."""
    kind = _translate(error.code(), error.details() or "", "")[0]
    return kind in (Overloaded, DeadlineExceeded)


def code_name(number: int) -> str:
    """Return the name of a gRPC status code, or "UNKNOWN" for a number that gRPC does not define."""
    return next((code.name for code in Code if code.value[0] == number), Code.UNKNOWN.name)


def to_rejection(error: ServerError) -> PhotoRejection:
    """Return the rejection of a photo on which the server fails even alone."""
    status = Status.TOO_LARGE if isinstance(error, TooLarge) else Status.FAILED
    return PhotoRejection(status, error.details or error.what)


def to_server_error(error: grpc.RpcError, target: str, model: str, *, late: bool = False) -> ServerError:
    """Return the error of serving/errors.py for a failed call; no other code decides on the class.

    Args:
        error: error that gRPC raised.
        target: gRPC target of the server.
        model: name of the model.
        late: True if the deadline has passed. A server whose clock is slightly ahead then cancels the call
            before gRPC reports DEADLINE_EXCEEDED.
    """
    code: grpc.StatusCode = error.code()
    details: str = error.details() or ""
    if late and code is Code.CANCELLED:
        code, details = Code.DEADLINE_EXCEEDED, "Deadline Exceeded"
    kind, what, remedy = _translate(code, details, model)
    if kind in (ServerUnavailable, DeadlineExceeded):
        remedy = _explain_connection_error(details, target, remedy)
    where = f"model {model!r} at {target}"
    return kind(f"{what} ({where}): {details or code.name}.", remedy=remedy, code=code.name, details=details)


def _translate(code: Code, details: str, model: str) -> tuple[type[ServerError], str, str]:
    """Return the error class, a description and a remedy."""
    match code:
        case Code.UNAVAILABLE if details.startswith(_QUEUE_FULL):
            remedy = "Try again later, or send fewer concurrent requests."
            return Overloaded, "The server's queue is full", remedy
        case Code.CANCELLED if not details.startswith(_LOCALLY_CANCELLED):
            # As a server does with its calls when it stops, such as at the deletion of a pod.
            return ServerUnavailable, "The server cancelled the call", "Try again later."
        case Code.INTERNAL | Code.UNKNOWN if _CONNECTION_LOST.search(details):
            return ServerUnavailable, "The connection to the server was lost", "Try again later."
        case Code.UNAVAILABLE:
            remedy = f"Start one with: hubhead serve --model_base_path MODELS/{model}"
            return ServerUnavailable, "No model server answers", remedy
        case Code.RESOURCE_EXHAUSTED if _MESSAGE_TOO_LARGE.search(details):
            remedy = (
                "Send fewer photos per request (max_photos), or start the server with a larger "
                "grpc.max_receive_message_length."
            )
            return TooLarge, "The request exceeds the server's maximum message size", remedy
        case Code.RESOURCE_EXHAUSTED if _OUT_OF_MEMORY.search(details):
            return ServerError, "The server ran out of memory", "Send fewer photos per request (max_photos)."
        case Code.RESOURCE_EXHAUSTED:
            remedy = "Try again later, or send fewer concurrent requests."
            return Overloaded, "The server is overloaded", remedy
        case Code.DEADLINE_EXCEEDED:
            remedy = "Raise --timeout (Client(timeout=...)), or send fewer photos per request."
            return DeadlineExceeded, "The server did not respond before the deadline", remedy
        case Code.NOT_FOUND:
            remedy = "Check --model_name, or serve the model with: hubhead serve --model_base_path DIR"
            return ModelNotFound, "The server has no such model or version", remedy
        case Code.INVALID_ARGUMENT if details.startswith("Unrecognized servable version label"):
            remedy = "Assign the label in the server's model configuration, or omit it."
            return ModelNotFound, "The server has no such version label", remedy
        case Code.INVALID_ARGUMENT if _BATCH_SIZE.search(details):
            remedy = "Send fewer photos per request (max_photos)."
            return TooLarge, "The request exceeds the server's maximum batch size", remedy
        case Code.INVALID_ARGUMENT | Code.FAILED_PRECONDITION:
            remedy = "Use a model made by hubhead, by the same release as this client."
            return InvalidRequest, "The server rejected the request", remedy
        case Code.UNIMPLEMENTED:
            remedy = "Give the gRPC port of a TensorFlow Serving server, usually 8500."
            return ServerError, "The server does not implement this method", remedy
        case Code.UNAUTHENTICATED | Code.PERMISSION_DENIED:
            remedy = "Send the credentials that it requires with --header, or a client certificate."
            return NotAllowed, "The server denied access", remedy
        case Code.CANCELLED:
            return Cancelled, "The call was cancelled", ""
        case _:
            return ServerError, f"The call failed with {code.name}", "See the server's log."


def split_target(target: str) -> tuple[str, str | None]:
    """Return host and port of a gRPC target: HOST:PORT, [IPV6]:PORT, or one with dns:, ipv4: or ipv6: before.

    The port is None if there is none. Of several addresses the first is returned. Targets of other schemes,
    such as socket paths, have neither: both are "".
    """
    scheme, rest = _SCHEME.match(target), target
    if scheme:
        if scheme[1] not in ("dns", "ipv4", "ipv6"):
            return "", ""
        rest = target[scheme.end() :].split(",")[0]
        rest = rest[2:].partition("/")[2] if rest.startswith("//") else rest
    bracketed = re.fullmatch(r"\[(.*)\](?::(.*))?", rest)
    if bracketed:
        return bracketed[1], bracketed[2]
    host, colon, port = rest.partition(":")
    return (host, port if colon else None) if ":" not in port else (rest, None)


def is_local(host: str) -> bool:
    """Return whether a host name or IP address is this machine's own: localhost, loopback or 0.0.0.0."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    return address.is_loopback or address.is_unspecified


def _find_proxy(target: str) -> str | None:
    """Return the environment variable that gives gRPC a proxy for a target, or None; the rules are gRPC's."""
    host = split_target(target)[0]
    exempt = next(filter(None, map(os.environ.get, _NO_PROXY_VARIABLES)), "").replace(" ", "").split(",")
    if not host or is_local(host) or host.endswith(tuple(filter(None, exempt))):
        return None
    return next(filter(os.environ.get, _PROXY_VARIABLES), None)


def _explain_connection_error(details: str, target: str, remedy: str) -> str:
    """Return the remedy for the cause of a failed connection; the given one if none can be seen."""
    for pattern, found in _CONNECTION_CAUSES:
        if pattern.search(details):
            remedy = found
            break
    proxy = _find_proxy(target)
    if proxy:
        remedy += f" The connection goes through the proxy of {proxy}; no_proxy exempts a server from it."
    if split_target(target)[1] is None:
        remedy += " The address has no port, so that gRPC uses port 443."
    return remedy

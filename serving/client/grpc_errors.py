"""What a failed call means: its class of serving/errors.py, and what helps against it.

The texts are those of TensorFlow Serving and of gRPC itself; both are part of the protocol in so far
as nothing else tells the cases apart.
"""

from __future__ import annotations

import re

import grpc

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
_QUEUE_TIMEOUT = "Run() timeout exceeded while waiting in batching queue"
_MESSAGE_TOO_LARGE = re.compile(r"message larger than max|exceeds.* maximum size", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile(r"\bOOM\b|out of memory|failed to allocate", re.IGNORECASE)
_BATCH_SIZE = re.compile(r"Task size \d+ is larger than maximum input batch size (\d+)")


def parse_max_batch_size(error: ServerError) -> int | None:
    """The largest batch that the server takes, where its refusal names it."""
    found = _BATCH_SIZE.search(error.details)
    return int(found[1]) if found else None


def is_overload(error: grpc.RpcError) -> bool:
    """Whether the server had too much to do, or took too long."""
    kind = _reading(error.code(), error.details() or "", "", "")[0]
    return kind in (Overloaded, DeadlineExceeded)


def to_server_error(error: grpc.RpcError, target: str, model: str, *, late: bool = False) -> ServerError:
    """The class of serving/errors.py that a failed call means; the one place that decides it.

    Args:
        error: of the call.
        target: of the server.
        model: that was asked.
        late: whether the deadline has passed: a server whose clock is a moment ahead cancels the call then.
    """
    code: grpc.StatusCode = error.code()
    details: str = error.details() or ""
    if late and code is Code.CANCELLED:
        code, details = Code.DEADLINE_EXCEEDED, "Deadline Exceeded"
    kind, what, remedy = _reading(code, details, target, model)
    where = f"asked for model {model!r} at {target}"
    return kind(f"{what} ({where}): {details or code.name}.", remedy=remedy, code=code.name, details=details)


def _reading(code: Code, details: str, target: str, model: str) -> tuple[type[ServerError], str, str]:
    """(class, what happened, remedy)."""
    match code:
        case Code.UNAVAILABLE if details.startswith(_QUEUE_FULL):
            return Overloaded, "The server's queue is full", "Try again later, or with fewer calls at once."
        case Code.UNAVAILABLE:
            remedy = f"Start one with: hubhead serve --model_base_path MODELS/{model}"
            return ServerUnavailable, f"No model server answers at {target}", remedy
        case Code.RESOURCE_EXHAUSTED if _MESSAGE_TOO_LARGE.search(details):
            remedy = (
                "Send less at once, or raise grpc.max_receive_message_length where the server is started."
            )
            return TooLarge, "The request is larger than the server takes", remedy
        case Code.RESOURCE_EXHAUSTED if _OUT_OF_MEMORY.search(details):
            return ServerError, "The server ran out of memory", "Send fewer photos at once (max_photos)."
        case Code.RESOURCE_EXHAUSTED:
            return Overloaded, "The server is overloaded", "Try again later, or with fewer calls at once."
        case Code.DEADLINE_EXCEEDED:
            remedy = "Allow more with --timeout (Client(timeout=...)), or send fewer photos at once."
            return DeadlineExceeded, "No answer in time", remedy
        case Code.NOT_FOUND:
            remedy = "Check --model_name, or serve the model with: hubhead serve --model_base_path DIR"
            return ModelNotFound, "The server has no such model or version", remedy
        case Code.INVALID_ARGUMENT if details.startswith("Unrecognized servable version label"):
            remedy = "Assign the label in the server's model configuration, or ask without one."
            return ModelNotFound, "The server has no such version label", remedy
        case Code.INVALID_ARGUMENT if _BATCH_SIZE.search(details):
            remedy = "Send fewer photos at once (max_photos)."
            return TooLarge, "The request has more rows than the server takes", remedy
        case Code.INVALID_ARGUMENT | Code.FAILED_PRECONDITION:
            remedy = "Ask for a model that hubhead made, of a release like this one."
            return InvalidRequest, "The server refuses the request", remedy
        case Code.UNIMPLEMENTED:
            remedy = "Give the gRPC port of a TensorFlow Serving server, usually 8500."
            return ServerError, f"What answers at {target} does not know this call", remedy
        case Code.UNAUTHENTICATED | Code.PERMISSION_DENIED:
            remedy = "Send the credentials that it wants with --header, or a client certificate."
            return NotAllowed, "The server does not let this caller in", remedy
        case Code.CANCELLED:
            return Cancelled, "The call was given up", ""
        case _:
            return ServerError, f"The call failed with {code.name}", "See the server's own log."

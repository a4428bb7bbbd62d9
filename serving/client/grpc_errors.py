"""Translation of gRPC errors to the classes of serving/errors.py, each with a remedy.

Status codes alone do not tell all cases apart. The texts matched here are those of TensorFlow Serving
and of gRPC itself.
"""

from __future__ import annotations

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
_BATCH_SIZE = re.compile(r"Task size \d+ is larger than maximum input batch size (\d+)")


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
    where = f"model {model!r} at {target}"
    return kind(f"{what} ({where}): {details or code.name}.", remedy=remedy, code=code.name, details=details)


def _translate(code: Code, details: str, model: str) -> tuple[type[ServerError], str, str]:
    """Return the error class, a description and a remedy."""
    match code:
        case Code.UNAVAILABLE if details.startswith(_QUEUE_FULL):
            remedy = "Try again later, or send fewer concurrent requests."
            return Overloaded, "The server's queue is full", remedy
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

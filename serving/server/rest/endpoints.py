"""Endpoints of the REST API: blocking functions, which run on threads."""

from __future__ import annotations

import functools
import time
from contextlib import ExitStack
from typing import TypeAlias

import grpc

from serving import protos
from serving.server.callers import Caller, TurnLock
from serving.server.models.manager import Manager
from serving.server.models.servable import Servable
from serving.server.rest import messages
from serving.server.rest.body_parser import BodyParser
from serving.server.rest.paths import ApiRequest
from serving.server.status_error import StatusError, cancelled

JsonResponse: TypeAlias = tuple[str, int | None]
"""A JSON body, and the version of the model that answered; None if no model was used."""


def answer_in_turn(
    turn: TurnLock,
    parser: BodyParser,
    manager: Manager,
    api_request: ApiRequest,
    body: bytearray,
    deadline: float,
    caller: Caller,
) -> JsonResponse:
    """Answer a request with a heavy body, which `parser` parses while `turn` is held.

    The other parameters are those of `answer_request`. The model is looked up first, as parsing takes long.

    Raises:
        StatusError: as for `answer_request`, or the caller has left.
        TimeoutError: parsing takes until after the deadline.
    """
    with manager.use(api_request.spec) as servable:
        with turn.hold(caller.name, _seconds_left(deadline)) as held:
            if not held:
                raise timeout_error()
            if caller.has_left:
                raise cancelled()
            seconds = _seconds_left(deadline)
            request, rows = parser.parse(api_request, body, servable.signatures, seconds, caller)
        return _answer(servable, api_request.verb, request, rows, deadline, caller)


def answer_request(
    manager: Manager, api_request: ApiRequest, body: bytes | bytearray, deadline: float, caller: Caller
) -> JsonResponse:
    """Answer one request.

    Args:
        manager: models of the server.
        api_request: what the path asks for.
        body: body of the request.
        deadline: time.monotonic() by which the request must be answered.
        caller: sender of the request.

    Raises:
        StatusError: the model is unknown, the request does not match it, or the deadline has passed.
    """
    _seconds_left(deadline)  # the request may have waited for a thread until after its deadline
    verb, spec = api_request.verb, api_request.spec
    if verb == "status":
        return messages.format_status(manager.get_status(spec)), None
    if verb == "metadata":
        with manager.use(spec) as servable:
            return messages.format_metadata(servable.get_metadata()), servable.version
    with ExitStack() as used:
        # As in TensorFlow Serving, a body that cannot be parsed is reported before an unknown model.
        get_servable = functools.cache(lambda: used.enter_context(manager.use(spec)))
        request, rows = messages.parse_request(
            verb, spec, body, lambda name: get_servable().signatures.get(name)
        )
        return _answer(get_servable(), verb, request, rows, deadline, caller)


def _answer(
    servable: Servable, verb: str, request: protos.Message, rows: bool, deadline: float, caller: Caller
) -> JsonResponse:
    """Return the response to a parsed request; `rows` is as for `messages.format_predictions`.

    Raises:
        StatusError: the request does not match the signature, the deadline passed, or the model failed.
    """
    seconds, version = _seconds_left(deadline), servable.version
    if verb == "classify":
        return messages.format_classifications(servable.classify(request, seconds, caller).result), version
    if verb == "regress":
        return messages.format_regressions(servable.regress(request, seconds, caller).result), version
    response = servable.predict(request, seconds, caller)
    return messages.format_predictions(response.outputs, rows=rows), version


def _seconds_left(deadline: float) -> float:
    """Return the seconds until a deadline.

    Raises:
        StatusError: it has passed.
    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise timeout_error()
    return seconds


def timeout_error() -> StatusError:
    """Return the error for a request that exceeds --rest_api_timeout_in_ms."""
    return StatusError(
        grpc.StatusCode.DEADLINE_EXCEEDED, "The request exceeded the time limit, --rest_api_timeout_in_ms."
    )

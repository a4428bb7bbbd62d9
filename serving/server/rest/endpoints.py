"""Endpoints of the REST API: blocking functions, which run on threads."""

from __future__ import annotations

import time
from typing import TypeAlias

import grpc

from serving import protos
from serving.server import memory
from serving.server.callers import Caller, TurnLock
from serving.server.models import inference
from serving.server.models.manager import Manager
from serving.server.models.servable import Servable
from serving.server.rest import messages
from serving.server.rest.json_tensors import Json
from serving.server.rest.paths import ApiRequest
from serving.server.status_error import StatusError, cancelled, invalid_argument

JsonResponse: TypeAlias = tuple[str, int | None]
"""A JSON body, and the version of the model that answered; None if no model was used."""


def answer_in_turn(
    turn: TurnLock,
    manager: Manager,
    api_request: ApiRequest,
    body: bytes | bytearray,
    deadline: float,
    caller: Caller,
) -> JsonResponse:
    """Answer a request with a heavy body while `turn` is held; other parameters as for `answer_request`.

    Raises:
        StatusError: as for `answer_request`, or the caller has left.
    """
    with turn.hold(caller.name, _seconds_left(deadline)) as held:
        if not held:
            raise timeout_error()
        if caller.has_left:
            raise cancelled()
        with memory.pause_collection():
            return answer_request(manager, api_request, body, deadline, caller)


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
    if api_request.verb == "status":
        return messages.format_status(manager.get_status(api_request.spec)), None
    if api_request.verb == "metadata":
        with manager.use(api_request.spec) as servable:
            return messages.format_metadata(servable.get_metadata()), servable.version
    content = messages.parse_body(body)
    api_request.spec.signature_name = messages.get_signature_name(content)
    if api_request.verb == "predict":
        return _predict(manager, api_request.spec, content, deadline, caller)
    request_class, answer, format_result = {
        "classify": (protos.ClassificationRequest, Servable.classify, messages.format_classifications),
        "regress": (protos.RegressionRequest, Servable.regress, messages.format_regressions),
    }[api_request.verb]
    request = request_class(model_spec=api_request.spec, input=messages.parse_examples(content))
    with manager.use(api_request.spec) as servable:
        response = answer(servable, request, _seconds_left(deadline), caller)
        return format_result(response.result), servable.version


def _predict(
    manager: Manager, spec: protos.Message, content: dict[str, Json], deadline: float, caller: Caller
) -> JsonResponse:
    with manager.use(spec) as servable:
        name = inference.get_signature_key(spec)
        signature = servable.find_signature(name)
        if signature is None:
            raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
        if not signature.inputs:
            raise invalid_argument(
                f"Failed to get input map for signature: {spec.signature_name or 'DEFAULT'}"
            )
        inputs, rows = messages.parse_predict_inputs(content, signature.inputs)
        request = protos.PredictRequest(model_spec=spec, inputs=inputs)
        response = servable.predict(request, _seconds_left(deadline), caller)
        return messages.format_predictions(response.outputs, rows=rows), servable.version


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

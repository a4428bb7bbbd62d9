"""What the REST API answers: blocking functions, for threads."""

from __future__ import annotations

import time
from dataclasses import dataclass

import grpc

from serving import contract, protos
from serving.server.models.manager import Manager
from serving.server.rest import messages
from serving.server.rest.json_tensors import Json
from serving.server.rest.paths import Asked
from serving.server.status_error import Refusal, invalid


@dataclass(frozen=True)
class Answer:
    """A body of JSON.

    Attributes:
        text: the body.
        version: the version that answered; None where none was asked.
    """

    text: str
    version: int | None = None


def answer(manager: Manager, asked: Asked, body: bytes | bytearray, deadline: float) -> Answer:
    """Answer one request.

    Args:
        manager: the models.
        asked: what its path says.
        body: what was sent with it.
        deadline: when it has to be answered, by time.monotonic.

    Raises:
        Refusal: there is no such model, or the request does not fit it.
    """
    _left(deadline)  # a thread may have become free too late
    if asked.verb == "status":
        return Answer(messages.status(manager.status(asked.spec)))
    if asked.verb == "metadata":
        with manager.use(asked.spec) as servable:
            return Answer(messages.metadata(servable.metadata()), servable.version)
    content = messages.document(body)
    asked.spec.signature_name = messages.signature_name(content)
    if asked.verb == "predict":
        return _predict(manager, asked.spec, content, deadline)
    examples = messages.examples(content)
    with manager.use(asked.spec) as servable:
        if asked.verb == "classify":
            request = protos.ClassificationRequest(model_spec=asked.spec, input=examples)
            response = servable.classify(request, _left(deadline))
            return Answer(messages.classified(response.result), servable.version)
        request = protos.RegressionRequest(model_spec=asked.spec, input=examples)
        response = servable.regress(request, _left(deadline))
        return Answer(messages.regressed(response.result), servable.version)


def _predict(manager: Manager, spec: protos.Message, content: dict[str, Json], deadline: float) -> Answer:
    with manager.use(spec) as servable:
        name = spec.signature_name or contract.SERVING_DEFAULT
        signature = servable.signature(name)
        if signature is None:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        if not signature.inputs:
            raise invalid(f"Failed to get input map for signature: {spec.signature_name or 'DEFAULT'}")
        inputs, rows = messages.predict_inputs(content, signature.inputs)
        request = protos.PredictRequest(model_spec=spec, inputs=inputs)
        response = servable.predict(request, _left(deadline))
        return Answer(messages.predicted(response.outputs, rows=rows), servable.version)


def _left(deadline: float) -> float:
    """Seconds until a deadline."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise late()
    return left


def late() -> Refusal:
    """--rest_api_timeout_in_ms has passed."""
    return Refusal(
        grpc.StatusCode.DEADLINE_EXCEEDED, "The request's time, --rest_api_timeout_in_ms, is over."
    )

"""PredictionService and ModelService as generic gRPC handlers over our own messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from serving import protos
from serving.server.refusal import Refusal, invalid
from serving.server.servable import check_metadata_fields
from serving.server.versions import Versions

_ENDLESS_SECONDS = 1e8
"""gRPC gives a caller without a deadline centuries."""

Answer = Callable[[protos.Message, float | None], protos.Message]


def handlers(versions: Versions) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """What to register with a gRPC server."""

    def predict(request: protos.Message, seconds: float | None) -> protos.Message:
        with versions.use(request.model_spec) as servable:
            return servable.predict(request, seconds)

    def metadata(request: protos.Message, _: float | None) -> protos.Message:
        check_metadata_fields(request.metadata_field)
        with versions.use(request.model_spec) as servable:
            return servable.metadata()

    def status(request: protos.Message, _: float | None) -> protos.Message:
        return model_status(versions, request.model_spec)

    answers = {
        protos.PREDICT: (predict, protos.PredictRequest),
        protos.GET_MODEL_METADATA: (metadata, protos.GetModelMetadataRequest),
        protos.GET_MODEL_STATUS: (status, protos.GetModelStatusRequest),
    }
    return [
        grpc.method_handlers_generic_handler(
            service,
            {
                path.rpartition("/")[2]: _handler(answer, request)
                for path, (answer, request) in answers.items()
                if path.startswith(f"/{service}/")
            },
        )
        for service in (protos.PREDICTION_SERVICE, protos.MODEL_SERVICE)
    ]


def model_status(versions: Versions, spec: protos.Message) -> protos.Message:
    """Answer a GetModelStatusRequest; a version label in it is ignored, as in TensorFlow Serving.

    Raises:
        Refusal: another model, or a version that was never seen.
    """
    states = versions.states() if spec.name == versions.name else {}
    if spec.HasField("version"):
        version = spec.version.value
        if version not in states:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Could not find version {version} of model {spec.name}")
        states = {version: states[version]}
    if not states:
        raise Refusal(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
    response = protos.GetModelStatusResponse()
    for version, state in states.items():
        entry = response.model_version_status.add(version=version, state=state.state)
        if state.error:
            entry.status.error_code = grpc.StatusCode.UNKNOWN.value[0]
            entry.status.error_message = state.error
    return response


def _handler(answer: Answer, request_class: protos.Message) -> grpc.RpcMethodHandler[Any, Any]:
    def handle(request: protos.Message, context: grpc.ServicerContext) -> protos.Message:
        try:
            if not request.HasField("model_spec"):
                raise invalid("Missing ModelSpec")
            left = context.time_remaining()
            return answer(request, left if left is not None and left < _ENDLESS_SECONDS else None)
        except Refusal as refusal:
            context.abort(refusal.code, refusal.details)

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=request_class.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )

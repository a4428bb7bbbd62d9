"""PredictionService and ModelService as generic gRPC handlers over our own messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from serving import protos
from serving.server import config, inference
from serving.server.manager import Manager
from serving.server.metrics import Metrics
from serving.server.refusal import Refusal, invalid

_ENDLESS_SECONDS = 1e8
"""gRPC gives a caller without a deadline centuries."""

_COUNTED = ("Predict", "Classify", "Regress")
"""TensorFlow Serving counts no other over gRPC."""

_log = logging.getLogger(__name__)

Answer = Callable[[protos.Message, Any], protos.Message]
"""From a request and its gRPC context to the response."""


def handlers(manager: Manager, metrics: Metrics) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """What to register with a gRPC server."""

    def predict(request: protos.Message, context: Any) -> protos.Message:
        _check_spec(request)
        with manager.use(request.model_spec) as servable:
            return servable.predict(request, _seconds(context))

    def classify(request: protos.Message, context: Any) -> protos.Message:
        _check_spec(request)
        with manager.use(request.model_spec) as servable:
            return servable.classify(request, _seconds(context))

    def regress(request: protos.Message, context: Any) -> protos.Message:
        _check_spec(request)
        with manager.use(request.model_spec) as servable:
            return servable.regress(request, _seconds(context))

    def multi_inference(request: protos.Message, context: Any) -> protos.Message:
        spec = request.tasks[0].model_spec if request.tasks else protos.ModelSpec()
        with manager.use(spec) as servable:
            return inference.multi_inference(servable, request, _seconds(context))

    def metadata(request: protos.Message, _: Any) -> protos.Message:
        _check_spec(request)
        inference.check_metadata_fields(request.metadata_field)
        with manager.use(request.model_spec) as servable:
            return servable.metadata()

    def status(request: protos.Message, _: Any) -> protos.Message:
        _check_spec(request)
        return manager.status(request.model_spec)

    def reload(request: protos.Message, context: Any) -> protos.Message:
        return reload_config(manager, request, given_up=lambda: not context.is_active())

    answers = {
        protos.PREDICT: (predict, protos.PredictRequest),
        protos.CLASSIFY: (classify, protos.ClassificationRequest),
        protos.REGRESS: (regress, protos.RegressionRequest),
        protos.MULTI_INFERENCE: (multi_inference, protos.MultiInferenceRequest),
        protos.GET_MODEL_METADATA: (metadata, protos.GetModelMetadataRequest),
        protos.GET_MODEL_STATUS: (status, protos.GetModelStatusRequest),
        protos.RELOAD_CONFIG: (reload, protos.ReloadConfigRequest),
    }
    return [
        grpc.method_handlers_generic_handler(
            service,
            {
                path.rpartition("/")[2]: _handler(path.rpartition("/")[2], answer, request, metrics)
                for path, (answer, request) in answers.items()
                if path.startswith(f"/{service}/")
            },
        )
        for service in (protos.PREDICTION_SERVICE, protos.MODEL_SERVICE)
    ]


def reload_config(
    manager: Manager, request: protos.Message, *, given_up: Callable[[], bool] = lambda: False
) -> protos.Message:
    """Answer a ReloadConfigRequest: serve the models that it lists, and no others.

    Raises:
        Refusal: the configuration is not allowed, or a model in it does not load.
    """
    if request.config.WhichOneof("config") != "model_config_list":
        raise Refusal(
            grpc.StatusCode.FAILED_PRECONDITION,
            "Cannot transition to requested config. It is only legal to transition from one "
            "ModelConfigList to another.",
        )
    manager.configure(config.models(request.config), given_up)
    _log.info("reloaded by request: %s", ", ".join(model.name for model in manager.settings))
    return protos.ReloadConfigResponse()


def _check_spec(request: protos.Message) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def _seconds(context: Any) -> float | None:
    """How long the caller still waits; None: for ever."""
    left = context.time_remaining()
    return left if left is not None and left < _ENDLESS_SECONDS else None


def _handler(
    api: str, answer: Answer, request_class: protos.Message, metrics: Metrics
) -> grpc.RpcMethodHandler[Any, Any]:
    def handle(request: protos.Message, context: grpc.ServicerContext) -> protos.Message:
        start, status = time.perf_counter(), "OK"
        try:
            return answer(request, context)
        except Refusal as refusal:
            status = refusal.code.name
            context.abort(refusal.code, refusal.details)
        finally:
            if api in _COUNTED:
                seconds = time.perf_counter() - start
                metrics.request(request.model_spec.name, api, "GRPC", status, seconds)

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=request_class.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )

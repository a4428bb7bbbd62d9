"""Handlers of the RPCs of PredictionService and ModelService."""

from __future__ import annotations

import logging
from collections.abc import Callable

import grpc

from serving import protos
from serving.server.config import files
from serving.server.grpc.dispatcher import CallContext, Handler
from serving.server.models import inference
from serving.server.models.manager import Manager
from serving.server.status_error import StatusError, invalid_argument

_log = logging.getLogger(__name__)


def make_handlers(manager: Manager) -> dict[str, tuple[Handler, protos.Message]]:
    """Return the handler and the request class of each RPC, by its path."""

    def predict(request: protos.Message, context: CallContext) -> protos.Message:
        _check_model_spec(request)
        with manager.use(request.model_spec) as servable:
            return servable.predict(request, context.seconds_left)

    def classify(request: protos.Message, context: CallContext) -> protos.Message:
        _check_model_spec(request)
        with manager.use(request.model_spec) as servable:
            return servable.classify(request, context.seconds_left)

    def regress(request: protos.Message, context: CallContext) -> protos.Message:
        _check_model_spec(request)
        with manager.use(request.model_spec) as servable:
            return servable.regress(request, context.seconds_left)

    def multi_inference(request: protos.Message, context: CallContext) -> protos.Message:
        spec = request.tasks[0].model_spec if request.tasks else protos.ModelSpec()
        with manager.use(spec) as servable:
            return servable.multi_inference(request, context.seconds_left)

    def metadata(request: protos.Message, _: CallContext) -> protos.Message:
        _check_model_spec(request)
        inference.check_metadata_fields(request.metadata_field)
        with manager.use(request.model_spec) as servable:
            return servable.get_metadata()

    def status(request: protos.Message, _: CallContext) -> protos.Message:
        _check_model_spec(request)
        return manager.get_status(request.model_spec)

    def reload(request: protos.Message, context: CallContext) -> protos.Message:
        return reload_config(manager, request, is_cancelled=context.cancelled.is_set)

    return {
        protos.PREDICT: (predict, protos.PredictRequest),
        protos.CLASSIFY: (classify, protos.ClassificationRequest),
        protos.REGRESS: (regress, protos.RegressionRequest),
        protos.MULTI_INFERENCE: (multi_inference, protos.MultiInferenceRequest),
        protos.GET_MODEL_METADATA: (metadata, protos.GetModelMetadataRequest),
        protos.GET_MODEL_STATUS: (status, protos.GetModelStatusRequest),
        protos.RELOAD_CONFIG: (reload, protos.ReloadConfigRequest),
    }


def reload_config(
    manager: Manager, request: protos.Message, *, is_cancelled: Callable[[], bool] = lambda: False
) -> protos.Message:
    """Answer a ReloadConfigRequest: serve exactly the models that it lists.

    Args:
        manager: models of the server.
        request: the ReloadConfigRequest.
        is_cancelled: function that returns True once the caller has cancelled the call.

    Raises:
        StatusError: the configuration is not allowed, or no version of a model in it loads.
    """
    if request.config.WhichOneof("config") != "model_config_list":
        raise StatusError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "Cannot transition to requested config. It is only legal to transition from one "
            "ModelConfigList to another.",
        )
    manager.configure(files.parse_models(request.config), is_cancelled)
    _log.info(
        "configuration reloaded by request; models: %s", ", ".join(model.name for model in manager.settings)
    )
    return protos.ReloadConfigResponse()


def _check_model_spec(request: protos.Message) -> None:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")

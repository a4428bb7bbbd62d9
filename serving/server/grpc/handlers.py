"""What the methods of PredictionService and ModelService answer."""

from __future__ import annotations

import logging
from collections.abc import Callable

import grpc

from serving import protos
from serving.server.config import files
from serving.server.grpc.dispatcher import Answer, Caller
from serving.server.models import inference
from serving.server.models.manager import Manager
from serving.server.status_error import Refusal, invalid

_log = logging.getLogger(__name__)


def answers(manager: Manager) -> dict[str, tuple[Answer, protos.Message]]:
    """How each method is answered, and the class of its request, by its path."""

    def predict(request: protos.Message, caller: Caller) -> protos.Message:
        _check_spec(request)
        with manager.use(request.model_spec) as servable:
            return servable.predict(request, caller.seconds)

    def classify(request: protos.Message, caller: Caller) -> protos.Message:
        _check_spec(request)
        with manager.use(request.model_spec) as servable:
            return servable.classify(request, caller.seconds)

    def regress(request: protos.Message, caller: Caller) -> protos.Message:
        _check_spec(request)
        with manager.use(request.model_spec) as servable:
            return servable.regress(request, caller.seconds)

    def multi_inference(request: protos.Message, caller: Caller) -> protos.Message:
        spec = request.tasks[0].model_spec if request.tasks else protos.ModelSpec()
        with manager.use(spec) as servable:
            return servable.multi_inference(request, caller.seconds)

    def metadata(request: protos.Message, _: Caller) -> protos.Message:
        _check_spec(request)
        inference.check_metadata_fields(request.metadata_field)
        with manager.use(request.model_spec) as servable:
            return servable.metadata()

    def status(request: protos.Message, _: Caller) -> protos.Message:
        _check_spec(request)
        return manager.status(request.model_spec)

    def reload(request: protos.Message, caller: Caller) -> protos.Message:
        return reload_config(manager, request, given_up=caller.gone.is_set)

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
    manager.configure(files.models(request.config), given_up)
    _log.info("reloaded by request: %s", ", ".join(model.name for model in manager.settings))
    return protos.ReloadConfigResponse()


def _check_spec(request: protos.Message) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")

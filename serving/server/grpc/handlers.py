"""Handlers of the RPCs of PredictionService and ModelService."""

from __future__ import annotations

import logging
from collections.abc import Callable

from serving import protos
from serving.server.callers import Caller
from serving.server.config import files
from serving.server.grpc.dispatcher import CallContext, Handler
from serving.server.models import inference
from serving.server.models.manager import Manager
from serving.server.models.servable import Servable
from serving.server.status_error import failed_precondition, invalid_argument

_log = logging.getLogger(__name__)


def make_handlers(manager: Manager) -> dict[str, tuple[Handler, protos.Message]]:
    """Return the handler and the request class of each RPC, by its path."""

    def infer(answer: Callable[[Servable, protos.Message, float | None, Caller], protos.Message]) -> Handler:
        """Return a handler that answers a request by a method of the version that it names."""

        def handle(request: protos.Message, context: CallContext) -> protos.Message:
            with manager.use(_get_model_spec(request)) as servable:
                return answer(servable, request, context.seconds_left, context.caller)

        return handle

    def metadata(request: protos.Message, _: CallContext) -> protos.Message:
        spec = _get_model_spec(request)
        inference.check_metadata_fields(request.metadata_field)
        with manager.use(spec) as servable:
            return servable.get_metadata()

    def status(request: protos.Message, _: CallContext) -> protos.Message:
        return manager.get_status(_get_model_spec(request))

    def reload(request: protos.Message, context: CallContext) -> protos.Message:
        """Serve exactly the models that a ReloadConfigRequest lists."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise failed_precondition(
                "Cannot transition to requested config. It is only legal to transition from one "
                "ModelConfigList to another."
            )
        manager.configure(files.parse_models(request.config), lambda: context.caller.has_left)
        names = ", ".join(model.name for model in manager.settings)
        _log.info("configuration reloaded by request; models: %s", names)
        return protos.ReloadConfigResponse()

    return {
        protos.PREDICT: (infer(Servable.predict), protos.PredictRequest),
        protos.CLASSIFY: (infer(Servable.classify), protos.ClassificationRequest),
        protos.REGRESS: (infer(Servable.regress), protos.RegressionRequest),
        protos.MULTI_INFERENCE: (infer(Servable.multi_inference), protos.MultiInferenceRequest),
        protos.GET_MODEL_METADATA: (metadata, protos.GetModelMetadataRequest),
        protos.GET_MODEL_STATUS: (status, protos.GetModelStatusRequest),
        protos.RELOAD_CONFIG: (reload, protos.ReloadConfigRequest),
    }


def _get_model_spec(request: protos.Message) -> protos.Message:
    """Return the ModelSpec of a request; that of its first task for a MultiInferenceRequest.

    Raises:
        StatusError: a request of another kind has none.
    """
    if isinstance(request, protos.MultiInferenceRequest):
        return request.tasks[0].model_spec if request.tasks else protos.ModelSpec()
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    return request.model_spec

"""A server with its two doors, and its model."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from serving import protos, runtime
from serving.server import RunningServer, ServerSettings, start
from serving.server.config.settings import ModelSettings
from serving.server.models.servable import Loader
from tests.conformance.conformance_model import Toys
from tests.conformance.requests import Rpc
from tests.support.fake_model import LIMIT

_RESPONSES = {
    protos.PREDICT: "PredictResponse",
    protos.CLASSIFY: "ClassificationResponse",
    protos.REGRESS: "RegressionResponse",
    protos.MULTI_INFERENCE: "MultiInferenceResponse",
    protos.GET_MODEL_METADATA: "GetModelMetadataResponse",
    protos.GET_MODEL_STATUS: "GetModelStatusResponse",
    protos.RELOAD_CONFIG: "ReloadConfigResponse",
}


@dataclass(frozen=True)
class Answer:
    """What REST said."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class World:
    """A running server.

    Attributes:
        channel: to its gRPC port.
        toys: the models without TensorFlow that it has loaded.
    """

    server: RunningServer
    channel: grpc.Channel
    toys: Toys

    def rpc(self, call: Rpc, timeout: float = LIMIT) -> Any:
        path, request = call
        response = getattr(protos, _RESPONSES[path])
        method = self.channel.unary_unary(path, type(request).SerializeToString, response.FromString)
        return method(request, timeout=timeout)

    def refused(self, call: Rpc, timeout: float = LIMIT) -> tuple[str, str]:
        """Code and text of a call that has to fail."""
        try:
            answer = self.rpc(call, timeout)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        raise AssertionError(f"answered: {answer}")

    def http(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("localhost", self.server.rest_port, timeout=LIMIT)
        try:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, content, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.getheaders()))
        finally:
            connection.close()

    def post(self, verb: str = "predict", where: str = "", **body: Any) -> Answer:
        """To the model toy."""
        return self.http("POST", f"/v1/models/toy{where}:{verb}", body)


@contextmanager
def world(*models: tuple[str, Path], tensorflow: bool = False, **more: Any) -> Iterator[World]:
    """A server of some models, whose newest version is labelled stable."""
    more.setdefault("file_system_poll_wait_seconds", 0.05)
    configured = tuple(
        ModelSettings(name, base, labels={"stable": max(int(child.name) for child in base.iterdir())})
        for name, base in models
    )
    settings = ServerSettings(
        models=configured,
        port=0,
        rest_api_port=0,
        allow_version_labels_for_unavailable_models=True,
        **more,
    )
    toys = Toys()
    loader: Loader = runtime.load if tensorflow else toys
    with (
        start(settings, loader=loader) as server,
        grpc.insecure_channel(
            f"localhost:{server.port}", options=[("grpc.max_receive_message_length", -1)]
        ) as channel,
    ):
        yield World(server, channel, toys)

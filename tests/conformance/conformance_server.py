"""A server with its gRPC and REST ports, and access to its models."""

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
from tests.conformance.conformance_model import ConformanceModelLoader
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
class HttpResponse:
    """A response of the REST API."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class ConformanceServer:
    """A running server and ways to call it.

    Attributes:
        running: the server.
        channel: channel to its gRPC port.
        loader: loader of its models without TensorFlow.
    """

    running: RunningServer
    channel: grpc.Channel
    loader: ConformanceModelLoader

    def call(self, call: Rpc, timeout: float = LIMIT) -> Any:
        """Make a gRPC call and return its response."""
        path, request = call
        response = getattr(protos, _RESPONSES[path])
        method = self.channel.unary_unary(path, type(request).SerializeToString, response.FromString)
        return method(request, timeout=timeout)

    def call_expecting_error(self, call: Rpc, timeout: float = LIMIT) -> tuple[str, str]:
        """Make a gRPC call that must fail; return the status code and details."""
        try:
            response = self.call(call, timeout)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        raise AssertionError(f"expected an error, got: {response}")

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> HttpResponse:
        """Make an HTTP request and return its response."""
        connection = http.client.HTTPConnection("localhost", self.running.rest_port, timeout=LIMIT)
        try:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, content, dict(headers or {}))
            response = connection.getresponse()
            return HttpResponse(response.status, response.read(), dict(response.getheaders()))
        finally:
            connection.close()

    def post(self, verb: str = "predict", version_path: str = "", **body: Any) -> HttpResponse:
        """POST a body to an endpoint of the model toy."""
        return self.request("POST", f"/v1/models/toy{version_path}:{verb}", body)


@contextmanager
def start_conformance_server(
    *models: tuple[str, Path], tensorflow: bool = False, **more: Any
) -> Iterator[ConformanceServer]:
    """Start a server of some models; the newest version of each has the label stable."""
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
    fake_loader = ConformanceModelLoader()
    loader: Loader = runtime.load if tensorflow else fake_loader
    with (
        start(settings, loader=loader) as server,
        grpc.insecure_channel(
            f"localhost:{server.port}", options=[("grpc.max_receive_message_length", -1)]
        ) as channel,
    ):
        yield ConformanceServer(server, channel, fake_loader)

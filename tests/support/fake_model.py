"""Fake model for tests of the server, without TensorFlow: y = 2x, and SavedModel directories for it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from serving import contract, protos, runtime
from serving.bundle import BundleMetadata
from serving.errors import BundleError
from serving.protos import tensors

if TYPE_CHECKING:
    from serving.server import RunningServer

LIMIT = 30.0
"""Time limit of any wait in these tests, in seconds."""

REQUEST_TYPES = {
    protos.PREDICT: "PredictRequest",
    protos.CLASSIFY: "ClassificationRequest",
    protos.REGRESS: "RegressionRequest",
    protos.MULTI_INFERENCE: "MultiInferenceRequest",
    protos.GET_MODEL_METADATA: "GetModelMetadataRequest",
    protos.GET_MODEL_STATUS: "GetModelStatusRequest",
    protos.RELOAD_CONFIG: "ReloadConfigRequest",
}
"""Names of the requests of TensorFlow Serving's methods, by the path of the method."""


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail after LIMIT."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {LIMIT:g} s"
        time.sleep(0.01)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@dataclass
class FakeModel:
    """y = 2x once `gate` is set; counts calls, rows and concurrent calls. Negative x raises a RunError."""

    threads: int = 2
    engine: str = "tensorflow"
    gate: threading.Event = field(default_factory=threading.Event)
    calls: int = 0
    rows: int = 0
    running: int = 0
    max_running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self, signature: str) -> None:
        """Do nothing, as all is loaded."""

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        with self.lock:
            self.calls += 1
            self.rows += len(np.atleast_1d(inputs["x"]))
            self.running += 1
            self.max_running = max(self.max_running, self.running)
        try:
            assert self.gate.wait(LIMIT)
            if np.any(inputs["x"] < 0):
                raise runtime.RunError("x is negative" + "!" * 2000, "OUT_OF_RANGE")
            with np.errstate(over="ignore"):  # any bytes may arrive; a warning is an error in the tests
                return {"y": np.asarray(inputs["x"] * 2)}
        finally:
            with self.lock:
                self.running -= 1


def write_fake_model(directory: Path) -> Path:
    """Write a SavedModel directory with the signature of FakeModel, and publish it by a rename."""
    saved = protos.SavedModel(saved_model_schema_version=1)
    graph = saved.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    for alias, infos in (("x", "inputs"), ("y", "outputs")):
        info = getattr(graph.signature_def[contract.SERVING_DEFAULT], infos)[alias]
        info.name, info.dtype = f"{alias}:0", protos.DataType.Value("DT_FLOAT")
        info.tensor_shape.dim.add(size=-1)
    staged = directory.with_name(f".{directory.name}")
    staged.mkdir(parents=True)
    (staged / contract.SAVED_MODEL_FILE).write_bytes(saved.SerializeToString())
    staged.rename(directory)
    return directory


def write_bundle_metadata(directory: Path) -> None:
    """Make a SavedModel directory a bundle of hubhead; the server then takes its rows to be independent."""
    (directory / "assets").mkdir(exist_ok=True)
    BundleMetadata([], {"fingerprint": "0" * 64, "dimension": 1}, {}).write(directory)


class FakeModelLoader:
    """Loads one FakeModel per version directory; a directory with a file `broken` fails to load.

    Attributes:
        models: loaded models by version number.
        gated: whether the gates of new models start closed.
        attempts: number of loads, failed ones included.
    """

    def __init__(self, *, gated: bool = False) -> None:
        self.models: dict[int, FakeModel] = {}
        self.gated = gated
        self.attempts = 0

    def __call__(self, path: Path) -> FakeModel:
        self.attempts += 1
        if (path / "broken").exists():
            raise BundleError("broken on purpose")
        model = self.models.setdefault(int(path.name), FakeModel())
        if not self.gated:
            model.gate.set()
        return model


def get_current_version(server: RunningServer) -> int | None:
    """Return the newest version that a server serves of its first model."""
    return next(iter(server.manager.models.values())).current


def call_double(channel: grpc.Channel, *values: float, timeout: float = LIMIT) -> Any:
    """Send a PredictRequest to the model named double; return the response."""
    request = protos.PredictRequest()
    request.model_spec.name = "double"
    request.inputs["x"].CopyFrom(tensors.encode(np.array(values, np.float32)))
    call = channel.unary_unary(
        protos.PREDICT, protos.PredictRequest.SerializeToString, protos.PredictResponse.FromString
    )
    return call(request, timeout=timeout)

"""A model without TensorFlow whose signatures cover every row of protocol.toml."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from serving import contract, protos, runtime
from serving.errors import BundleError
from tests.support.fake_model import LIMIT

Tensors = Mapping[str, Any]


def _read_feature_x(inputs: Tensors) -> list[float]:
    """Return feature x of each serialized example."""
    examples = [protos.Example.FromString(row) for row in inputs["inputs"]]
    return [example.features.feature["x"].float_list.value[0] for example in examples]


def _classify(inputs: Tensors) -> Tensors:
    values = np.array([[x, -x, x / 2] for x in _read_feature_x(inputs)], np.float32)
    return {"classes": np.array([[b"a", b"b", b"c"]] * len(values), object), "scores": values}


def _upper(inputs: Tensors) -> Tensors:
    loud = inputs["words"].copy()
    for index, word in np.ndenumerate(loud):
        loud[index] = word.upper()
    return {"shouted": loud, "shouted_bytes": loud}


def _fail(inputs: Tensors) -> Tensors:
    raise runtime.RunError("as asked", inputs["code"][0].decode())


FLOAT, STRING, INT, BOOL, HALF = "DT_FLOAT", "DT_STRING", "DT_INT32", "DT_BOOL", "DT_HALF"

SIGNATURES: dict[str, tuple[dict[str, str], dict[str, str], Callable[[Tensors], Tensors]]] = {
    "serving_default": ({"x": FLOAT}, {"y": FLOAT}, lambda inputs: {"y": inputs["x"] * 2}),
    "ab": ({"a": FLOAT, "b": FLOAT}, {"sum": FLOAT}, lambda inputs: {"sum": inputs["a"] + inputs["b"]}),
    "both": ({"x": FLOAT}, {"y": FLOAT, "z": FLOAT}, lambda inputs: {"y": inputs["x"], "z": inputs["x"] + 1}),
    "text": ({"words": STRING}, {"shouted": STRING, "shouted_bytes": STRING}, _upper),
    "half": ({"h": HALF}, {"h": HALF}, lambda inputs: {"h": inputs["h"]}),
    "make_half": ({"x": FLOAT}, {"h": HALF}, lambda inputs: {"h": inputs["x"].astype(np.float16)}),
    "whole": ({"i": INT}, {"i": INT}, lambda inputs: {"i": inputs["i"]}),
    "total": ({"x": FLOAT}, {"total": FLOAT}, lambda inputs: {"total": np.asarray(inputs["x"].sum())}),
    "shares": ({"x": FLOAT}, {"y": FLOAT}, lambda inputs: {"y": inputs["x"] / inputs["x"].sum()}),
    "short": ({"x": FLOAT}, {"y": FLOAT}, lambda inputs: {"y": inputs["x"][:1]}),
    "scaled": ({"x": FLOAT, "by": FLOAT}, {"y": FLOAT}, lambda inputs: {"y": inputs["x"] * inputs["by"]}),
    "fails": ({"code": STRING}, {"y": FLOAT}, _fail),
    "classify": ({"inputs": STRING}, {"classes": STRING, "scores": FLOAT}, _classify),
    "regress": (
        {"inputs": STRING},
        {"outputs": FLOAT},
        lambda inputs: {"outputs": np.array(_read_feature_x(inputs), np.float32)},
    ),
    "regress_column": (
        {"inputs": STRING},
        {"outputs": FLOAT},
        lambda inputs: {"outputs": np.array(_read_feature_x(inputs), np.float32)[:, None]},
    ),
}

METHODS = {
    "classify": "tensorflow/serving/classify",
    "regress": "tensorflow/serving/regress",
    "regress_column": "tensorflow/serving/regress",
}


@dataclass
class ConformanceModel:
    """A model that runs SIGNATURES once `gate` is set, and records its calls."""

    threads: int = 1
    engine: str = "tensorflow"
    gate: threading.Event = field(default_factory=threading.Event)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def prepare(self, signature: str) -> None:
        """Do nothing, as all is loaded."""

    def run(self, signature: str, inputs: Tensors) -> Tensors:
        self.calls.append((signature, dict(inputs)))
        assert self.gate.wait(LIMIT)
        try:
            outputs = SIGNATURES[signature][2](inputs)
        except (TypeError, ValueError, IndexError, DecodeError) as error:  # as in serving.runtime
            raise runtime.RunError(str(error), "INVALID_ARGUMENT") from error
        return {alias: np.asarray(values) for alias, values in outputs.items()}


class ConformanceModelLoader:
    """Loads one ConformanceModel per directory; a directory with a file `broken` fails to load."""

    def __init__(self) -> None:
        self.models: dict[Path, ConformanceModel] = {}

    def __call__(self, path: Path) -> ConformanceModel:
        if (path / "broken").exists():
            raise BundleError("broken on purpose")
        model = self.models.setdefault(path, ConformanceModel())
        model.gate.set()
        return model

    @property
    def only(self) -> ConformanceModel:
        """The only model that was loaded."""
        (model,) = self.models.values()
        return model


def write_conformance_model(directory: Path) -> Path:
    """Write a SavedModel directory that declares SIGNATURES, and publish it by a rename."""
    saved = protos.SavedModel(saved_model_schema_version=1)
    graph = saved.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    for name, (inputs, outputs, _) in SIGNATURES.items():
        signature = graph.signature_def[name]
        signature.method_name = METHODS.get(name, "tensorflow/serving/predict")
        for infos, declared in ((signature.inputs, inputs), (signature.outputs, outputs)):
            for alias, dtype in declared.items():
                infos[alias].name, infos[alias].dtype = f"{alias}:0", protos.DataType.Value(dtype)
                if alias != "total":
                    infos[alias].tensor_shape.dim.add(size=-1)
    graph.signature_def["scaled"].defaults["by"].CopyFrom(
        protos.TensorProto(dtype=1, float_val=[10], tensor_shape={"dim": [{"size": 1}]})
    )
    graph.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = "NoOp"
    staged = directory.with_name(f".{directory.name}")
    staged.mkdir(parents=True)
    (staged / contract.SAVED_MODEL_FILE).write_bytes(saved.SerializeToString())
    staged.rename(directory)
    return directory

"""A model without TensorFlow that has something to ask for every row of protocol.toml."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serving import contract, protos, runtime
from serving.errors import BundleError
from tests.support.fake_model import LIMIT

Tensors = Mapping[str, Any]


def _examples(inputs: Tensors) -> list[float]:
    """Feature x of each example."""
    examples = [protos.Example.FromString(row) for row in inputs["inputs"]]
    return [example.features.feature["x"].float_list.value[0] for example in examples]


def _classified(inputs: Tensors) -> Tensors:
    values = np.array([[x, -x, x / 2] for x in _examples(inputs)], np.float32)
    return {"classes": np.array([[b"a", b"b", b"c"]] * len(values), object), "scores": values}


def _shouted(inputs: Tensors) -> Tensors:
    loud = np.array([word.upper() for word in inputs["words"]] or [], object)
    return {"shouted": loud, "shouted_bytes": loud}


def _fails(inputs: Tensors) -> Tensors:
    raise runtime.RunError("as asked", inputs["code"][0].decode())


FLOAT, STRING, INT, BOOL, HALF = "DT_FLOAT", "DT_STRING", "DT_INT32", "DT_BOOL", "DT_HALF"

SIGNATURES: dict[str, tuple[dict[str, str], dict[str, str], Callable[[Tensors], Tensors]]] = {
    "serving_default": ({"x": FLOAT}, {"y": FLOAT}, lambda found: {"y": found["x"] * 2}),
    "ab": ({"a": FLOAT, "b": FLOAT}, {"sum": FLOAT}, lambda found: {"sum": found["a"] + found["b"]}),
    "both": ({"x": FLOAT}, {"y": FLOAT, "z": FLOAT}, lambda found: {"y": found["x"], "z": found["x"] + 1}),
    "text": ({"words": STRING}, {"shouted": STRING, "shouted_bytes": STRING}, _shouted),
    "half": ({"h": HALF}, {"h": HALF}, lambda found: {"h": found["h"]}),
    "make_half": ({"x": FLOAT}, {"h": HALF}, lambda found: {"h": found["x"].astype(np.float16)}),
    "whole": ({"i": INT}, {"i": INT}, lambda found: {"i": found["i"]}),
    "total": ({"x": FLOAT}, {"total": FLOAT}, lambda found: {"total": np.asarray(found["x"].sum())}),
    "shares": ({"x": FLOAT}, {"y": FLOAT}, lambda found: {"y": found["x"] / found["x"].sum()}),
    "short": ({"x": FLOAT}, {"y": FLOAT}, lambda found: {"y": found["x"][:1]}),
    "scaled": ({"x": FLOAT, "by": FLOAT}, {"y": FLOAT}, lambda found: {"y": found["x"] * found["by"]}),
    "fails": ({"code": STRING}, {"y": FLOAT}, _fails),
    "classify": ({"inputs": STRING}, {"classes": STRING, "scores": FLOAT}, _classified),
    "regress": (
        {"inputs": STRING},
        {"outputs": FLOAT},
        lambda found: {"outputs": np.array(_examples(found), np.float32)},
    ),
    "regress_column": (
        {"inputs": STRING},
        {"outputs": FLOAT},
        lambda found: {"outputs": np.array(_examples(found), np.float32)[:, None]},
    ),
}

METHODS = {
    "classify": "tensorflow/serving/classify",
    "regress": "tensorflow/serving/regress",
    "regress_column": "tensorflow/serving/regress",
}


@dataclass
class Toy:
    """Runs SIGNATURES after `gate` is open, and keeps what it was asked."""

    threads: int = 1
    gate: threading.Event = field(default_factory=threading.Event)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def run(self, signature: str, inputs: Tensors) -> Tensors:
        self.calls.append((signature, dict(inputs)))
        assert self.gate.wait(LIMIT)
        return SIGNATURES[signature][2](inputs)


class Toys:
    """A loader of Toys, one a directory; a directory with a file `broken` does not load."""

    def __init__(self) -> None:
        self.models: dict[Path, Toy] = {}

    def __call__(self, path: Path) -> Toy:
        if (path / "broken").exists():
            raise BundleError("broken on purpose")
        model = self.models.setdefault(path, Toy())
        model.gate.set()
        return model

    @property
    def only(self) -> Toy:
        (model,) = self.models.values()
        return model


def write_toy(directory: Path) -> Path:
    """A SavedModel directory that declares SIGNATURES; published by a rename."""
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

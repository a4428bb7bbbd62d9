"""Variables of a bundle's SavedModel, read and written by TensorFlow's C library."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import protos
from serving.errors import BundleError
from serving.protos import tensors
from serving.runtime import subgraph
from serving.runtime.c_api import GraphSession
from serving.runtime.errors import RunError, output_errors


def read_checkpoint(directory: Path) -> dict[str, NDArray[Any]]:
    """Return the variables of the SavedModel in a directory by their names in the checkpoint.

    Raises:
        BundleError: they cannot be read.
    """
    names, dtypes = _list_variables(subgraph.read_graph(directory))
    graph = protos.GraphDef()
    _add_inputs(graph, {"prefix": tensors.DT_STRING, "names": tensors.DT_STRING, "slices": tensors.DT_STRING})
    node = graph.node.add(name="restore", op="RestoreV2", input=["prefix", "names", "slices"])
    node.attr["dtypes"].list.type.extend(dtypes)
    fetches = [f"restore:{index}" for index in range(len(names))]
    try:
        found = _run(graph, directory, names, {}, fetches)
    except RunError as error:
        raise BundleError(
            f"The variables of {directory} cannot be read: {error}.", remedy="Export the bundle again."
        ) from error
    return dict(zip((name.decode() for name in names), found, strict=True))


def write_checkpoint(directory: Path, variables: Mapping[str, NDArray[Any]]) -> None:
    """Write variables by their names in the checkpoint, for the SavedModel in a directory.

    Raises:
        OSError, OutputError: they cannot be written.
    """
    (directory / "variables").mkdir()
    dtypes = [
        tensors.DT_STRING if value.dtype.kind in "OS" else tensors.find_dtype_number(value.dtype)
        for value in variables.values()
    ]
    graph = protos.GraphDef()
    _add_inputs(graph, {"prefix": tensors.DT_STRING, "names": tensors.DT_STRING, "slices": tensors.DT_STRING})
    inputs = [f"x{index}" for index in range(len(dtypes))]
    _add_inputs(graph, dict(zip(inputs, dtypes, strict=True)))
    node = graph.node.add(name="save", op="SaveV2", input=["prefix", "names", "slices", *inputs])
    node.attr["dtypes"].list.type.extend(dtypes)
    values = dict(zip(inputs, variables.values(), strict=True))
    with output_errors(directory):
        _run(graph, directory, [name.encode() for name in variables], values, [], ["save"])


def _list_variables(graph: protos.Message) -> tuple[list[bytes], list[int]]:
    """Return names and dtypes of the variables that a SavedModel saves (the op SaveV2)."""
    names, dtypes = [], []
    for function in graph.graph_def.library.function:
        nodes = {node.name: node for node in function.node_def}
        for node in (node for node in nodes.values() if node.op == "SaveV2"):
            constant = nodes[node.input[1].partition(":")[0]].attr["value"].tensor
            names += tensors.decode(constant, "names").tolist()
            dtypes += node.attr["dtypes"].list.type
    return names, dtypes


def _add_inputs(graph: protos.Message, dtypes: Mapping[str, int]) -> None:
    for name, dtype in dtypes.items():
        graph.node.add(name=name, op="Placeholder").attr["dtype"].type = dtype


def _run(
    graph: protos.Message,
    directory: Path,
    names: Sequence[bytes],
    values: Mapping[str, NDArray[Any]],
    fetches: Sequence[str],
    targets: Sequence[str] = (),
) -> list[NDArray[Any]]:
    prefix = os.fsencode(directory / "variables" / "variables")
    feeds = {"prefix": np.array(prefix, object), "names": names, "slices": [b""] * len(names), **values}
    return GraphSession(graph.SerializeToString(), threads=1).run(feeds, fetches, targets)

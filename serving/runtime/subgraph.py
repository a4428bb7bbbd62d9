"""Signatures of a SavedModel, loaded without the rest: a decoder or a head without its backbone.

Loading a whole bundle takes seconds and hundreds of MB, nearly all of it for TensorFlow's Python package and
the backbone. Here only the subgraph that the signatures need is extracted, with the functions that it calls,
and runs in TensorFlow's C library. Its kernels are the same as in TensorFlow Serving.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from serving import contract, protos
from serving.process import call_alone_first, cores
from serving.protos import tensors
from serving.runtime.c_api import GraphSession
from serving.runtime.errors import RunError, make_load_error, make_signature_error, repeat_cancelled

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})


class Subgraph:
    """Some signatures of a SavedModel, which can be run from any number of threads.

    Args:
        path: directory of a version.
        names: names of the signatures.
        threads: number of ops that run at a time, by default the cores this process may use; 0 for the
            threads of the callers (serving.runtime.c_api).
        graph: what `read_graph` returned for the directory, if it was read before.
        float16_inputs: names of float32 inputs that are given as float16. The graph casts them, which is
            exact, and several times as fast as NumPy does.

    Raises:
        BundleError: the directory is not a SavedModel, or has no such signature.
        InputError: TensorFlow is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        names: Collection[str],
        threads: int | None = None,
        graph: protos.Message | None = None,
        float16_inputs: Collection[str] = (),
    ) -> None:
        meta = graph or read_graph(path)
        if missing := [name for name in names if name not in meta.signature_def]:
            raise make_signature_error(path, missing[0], meta.signature_def)
        definitions = [meta.signature_def[name] for name in names]
        wanted = [
            _node_name(info.name)
            for definition in definitions
            for info in (*definition.inputs.values(), *definition.outputs.values())
        ]
        restore, file = meta.saver_def.restore_op_name, meta.saver_def.filename_tensor_name
        prefix = str(Path(path) / "variables" / "variables")
        try:
            subgraph = _extract_subgraph(meta.graph_def, [*wanted, restore, _node_name(file)])
            feeds = [
                {
                    key: _cast_from_float16(subgraph, info.name) if key in float16_inputs else info.name
                    for key, info in definition.inputs.items()
                }
                for definition in definitions
            ]
            session = GraphSession(subgraph.SerializeToString(), cores() if threads is None else threads)
            session.run({file: np.array(os.fsencode(prefix), object)}, targets=[restore])
        except RunError as error:
            raise make_load_error(path, error) from error
        except KeyError as error:
            missing_node = RunError(f"its graph has no node {error}.", "NOT_FOUND")
            raise make_load_error(path, missing_node) from error
        self._functions = {
            name: _make_function(session, inputs, definition.outputs)
            for name, inputs, definition in zip(names, feeds, definitions, strict=True)
        }

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Run a signature.

        Args:
            signature: name of the signature.
            inputs: values by input name.

        Returns:
            Values by output name; strings are object arrays of bytes.

        Raises:
            RunError: an op failed.
        """
        return self._functions[signature](inputs)


def _make_function(
    session: GraphSession, inputs: Mapping[str, str], infos: Mapping[str, protos.Message]
) -> Callable[[Mapping[str, Any]], dict[str, NDArray[Any]]]:
    outputs = {key: info.name for key, info in infos.items()}
    run = call_alone_first(repeat_cancelled(session.run))

    def call(values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        found = run({inputs[key]: values[key] for key in inputs}, tuple(outputs.values()))
        return dict(zip(outputs, found, strict=True))

    return call


def read_graph(path: str | os.PathLike[str]) -> protos.Message:
    """Return the MetaGraphDef for serving of a SavedModel.

    Raises:
        BundleError: the directory is not a SavedModel.
    """
    try:
        content = (Path(path) / contract.SAVED_MODEL_FILE).read_bytes()
        saved = protos.SavedModel.FromString(content)
        for graph in saved.meta_graphs:
            if "serve" in graph.meta_info_def.tags:
                return graph
        raise ValueError("it has no graph with the tag serve.")
    except (OSError, ValueError, DecodeError) as error:
        raise make_load_error(path, error) from error


def _node_name(tensor: str) -> str:
    return tensor.partition(":")[0]


def _extract_subgraph(graph: protos.Message, wanted: Iterable[str]) -> protos.Message:
    """Return a GraphDef of the wanted nodes, all nodes they depend on, and the functions these call."""
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    # An input is "node", "node:output" or, for a control dependency, "^node".
    needed = _find_reachable(
        wanted, lambda name: {_node_name(source.lstrip("^")) for source in nodes[name].input}
    )
    # Functions call functions in turn.
    called = _find_reachable(
        _find_called_functions(nodes[name] for name in needed) & functions.keys(),
        lambda name: _find_called_functions(functions[name].node_def) & functions.keys(),
    )
    subgraph = protos.GraphDef(
        versions=graph.versions,
        node=[node for name, node in nodes.items() if name in needed],
        library={"function": [function for name, function in functions.items() if name in called]},
    )
    _call_functions_by_name(subgraph)
    return subgraph


def _cast_from_float16(graph: protos.Message, tensor: str) -> str:
    """Replace a float32 placeholder by a cast of a new float16 one; return the name of its tensor."""
    node = next(node for node in graph.node if node.name == _node_name(tensor))
    placeholder = graph.node.add(name=f"{node.name}/float16", op="Placeholder")
    placeholder.attr["dtype"].type = tensors.DT_HALF
    node.op, node.input[:] = "Cast", [placeholder.name]
    kind = node.attr["dtype"].type
    node.attr.clear()
    node.attr["SrcT"].type, node.attr["DstT"].type = tensors.DT_HALF, kind
    return f"{placeholder.name}:0"


def _call_functions_by_name(graph: protos.Message) -> None:
    """Replace the ops that place a function on devices and optimize it for them by plain calls of it.

    Such an op spends seconds at its first call, to no use on a CPU. An op that is named like a function calls
    it (tensorflow/core/framework/function.proto).
    """
    functions = {function.signature.name: function for function in graph.library.function}
    for node in graph.node:
        _call_by_name(node)
    for function in functions.values():
        # Within functions an output is "node:name:index", with the name that the called function gives it.
        renamed = {}
        for node in function.node_def:
            if _call_by_name(node):
                outputs = functions[node.op].signature.output_arg
                for index, output in enumerate(outputs):
                    renamed[f"{node.name}:output:{index}"] = f"{node.name}:{output.name}:0"
        for node in function.node_def:
            node.input[:] = [renamed.get(source, source) for source in node.input]
        for name, source in function.ret.items():
            function.ret[name] = renamed.get(source, source)


def _call_by_name(node: protos.Message) -> bool:
    if node.op not in _CALLS:
        return False
    node.op = node.attr["f"].func.name
    node.attr.clear()
    return True


def _find_reachable(names: Iterable[str], following: Callable[[str], set[str]]) -> set[str]:
    """Return these names, the names that follow them, and so on."""
    pending, found = set(names), set[str]()
    while pending:
        found |= pending
        pending = set[str]().union(*map(following, pending)) - found
    return found


def _find_called_functions(nodes: Iterable[protos.Message]) -> set[str]:
    """Return the names of the functions in the attributes of ops."""
    found = set()
    for value in (value for node in nodes for value in node.attr.values()):
        if value.HasField("func"):
            found.add(value.func.name)
        found |= {function.name for function in value.list.func}
    return found

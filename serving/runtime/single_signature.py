"""One signature of a SavedModel without the rest of it: a head without its backbone.

Loading a bundle whole takes seconds and some 400 MB, nearly all of them the backbone's. What one
signature needs is cut out of the graph, with the functions that it calls, and runs in a
session, whose kernels are those of `serving.runtime`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from serving import contract
from serving.errors import BundleError
from serving.process import cores
from serving.runtime.tensorflow_import import import_tensorflow

Run = Callable[[Mapping[str, Any]], dict[str, NDArray[Any]]]


def load(path: str | os.PathLike[str], name: str, threads: int | None = None) -> Run:
    """A function that runs a signature, from any number of threads at once.

    Args:
        path: a version directory.
        name: of the signature.
        threads: callers that run at once; default: the cores this process may use.

    Returns:
        Inputs by name to outputs by name.

    Raises:
        BundleError: the directory is no SavedModel, or has no such signature.
    """
    tf = import_tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((Path(path) / contract.SAVED_MODEL_FILE).read_bytes())
        meta = next(graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags)
        signature = meta.signature_def.get(name)
    except (OSError, StopIteration, ValueError) as error:
        raise _unusable(path, error) from error
    except Exception as error:  # protobuf's own class differs by its implementation
        if type(error).__name__ != "DecodeError":
            raise
        raise _unusable(path, error) from error
    if signature is None:
        raise BundleError(
            f"{path} has no signature {name!r}.", remedy=f"It has: {', '.join(meta.signature_def)}."
        )
    inputs = {key: info.name for key, info in signature.inputs.items()}
    outputs = {key: info.name for key, info in signature.outputs.items()}
    restore, file = meta.saver_def.restore_op_name, meta.saver_def.filename_tensor_name
    part = _cut_out(
        meta.graph_def, [*map(_node, [*inputs.values(), *outputs.values()]), restore, _node(file)]
    )
    graph = tf.Graph()
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=1, inter_op_parallelism_threads=threads or cores()
    )
    try:
        with graph.as_default():
            tf.import_graph_def(part, name="")
        session = tf.compat.v1.Session(graph=graph, config=config)
        session.run(restore, {file: str(Path(path) / "variables" / "variables")})
    except (ValueError, tf.errors.OpError) as error:
        raise _unusable(path, error) from error
    call = session.make_callable(list(outputs.values()), feed_list=list(inputs.values()))

    def run(values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(outputs, call(*(values[key] for key in inputs)), strict=True))

    return run


def _unusable(path: str | os.PathLike[str], error: Exception) -> BundleError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return BundleError(f"{path} cannot be loaded as a SavedModel: {first}", remedy="Export the bundle again.")


def _node(tensor: str) -> str:
    return tensor.partition(":")[0]


def _cut_out(graph: Any, wanted: Iterable[str]) -> Any:
    """The nodes that lead to those wanted, and the functions that are called on the way."""
    import tensorflow as tf

    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    part = tf.compat.v1.GraphDef()
    part.versions.CopyFrom(graph.versions)
    open_nodes, seen, calls = list(wanted), set[str](), set[str]()
    while open_nodes:
        name = open_nodes.pop()
        if name in seen:
            continue
        seen.add(name)
        part.node.append(nodes[name])
        calls |= _called(nodes[name])
        open_nodes += [given.lstrip("^").partition(":")[0] for given in nodes[name].input]
    taken = set[str]()
    while calls := calls - taken:
        name = calls.pop()
        taken.add(name)
        part.library.function.append(functions[name])
        for node in functions[name].node_def:
            calls |= _called(node) & functions.keys()
    return part


def _called(node: Any) -> set[str]:
    """The functions that an op names in its attributes."""
    found = set()
    for value in node.attr.values():
        if value.HasField("func"):
            found.add(value.func.name)
        found |= {function.name for function in value.list.func}
    return found

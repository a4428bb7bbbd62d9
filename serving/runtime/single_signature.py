"""One signature of a SavedModel, loaded without the rest: a head without its backbone.

Loading a whole bundle takes seconds and about 400 MB, nearly all of it for the backbone. Here only the
subgraph that a signature needs is extracted, with the functions that it calls, and runs in a session. Its
kernels are the same as in `serving.runtime`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from serving import contract
from serving.process import cores
from serving.runtime.model import make_load_error, make_signature_error
from serving.runtime.tensorflow_import import import_tensorflow

Run = Callable[[Mapping[str, Any]], dict[str, NDArray[Any]]]


def load(path: str | os.PathLike[str], name: str, threads: int | None = None, graph: Any = None) -> Run:
    """Load one signature as a function, which can be called from any number of threads.

    Args:
        path: directory of a version.
        name: name of the signature.
        threads: number of concurrent callers; by default the cores this process may use.
        graph: what `read_graph` returned for the directory, if it was read before.

    Returns:
        Function from inputs by name to outputs by name.

    Raises:
        BundleError: the directory is not a SavedModel, or has no such signature.
    """
    tf = import_tensorflow()
    meta = graph or read_graph(path)
    signature = meta.signature_def.get(name)
    if signature is None:
        raise make_signature_error(path, name, meta.signature_def)
    inputs = {key: info.name for key, info in signature.inputs.items()}
    outputs = {key: info.name for key, info in signature.outputs.items()}
    restore, file = meta.saver_def.restore_op_name, meta.saver_def.filename_tensor_name
    subgraph = _extract_subgraph(
        meta.graph_def, [*map(_node_name, [*inputs.values(), *outputs.values()]), restore, _node_name(file)]
    )
    tf_graph = tf.Graph()
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=1, inter_op_parallelism_threads=threads or cores()
    )
    try:
        with tf_graph.as_default():
            tf.import_graph_def(subgraph, name="")
        session = tf.compat.v1.Session(graph=tf_graph, config=config)
        session.run(restore, {file: str(Path(path) / "variables" / "variables")})
    except (ValueError, tf.errors.OpError) as error:
        raise make_load_error(path, error) from error
    call = session.make_callable(list(outputs.values()), feed_list=list(inputs.values()))

    def run(values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(outputs, call(*(values[key] for key in inputs)), strict=True))

    return run


def read_graph(path: str | os.PathLike[str]) -> Any:
    """Return the MetaGraphDef for serving of a SavedModel.

    Raises:
        BundleError: the directory is not a SavedModel.
    """
    import_tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((Path(path) / contract.SAVED_MODEL_FILE).read_bytes())
        return next(graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags)
    except (OSError, StopIteration, ValueError, DecodeError) as error:
        raise make_load_error(path, error) from error


def _node_name(tensor: str) -> str:
    return tensor.partition(":")[0]


def _extract_subgraph(graph: Any, wanted: Iterable[str]) -> Any:
    """Return a GraphDef of the wanted nodes, all nodes they depend on, and the functions these call."""
    import tensorflow as tf

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
    return tf.compat.v1.GraphDef(
        versions=graph.versions,
        node=[node for name, node in nodes.items() if name in needed],
        library={"function": [function for name, function in functions.items() if name in called]},
    )


def _find_reachable(names: Iterable[str], following: Callable[[str], set[str]]) -> set[str]:
    """Return these names, the names that follow them, and so on."""
    pending, found = set(names), set[str]()
    while pending:
        found |= pending
        pending = set[str]().union(*map(following, pending)) - found
    return found


def _find_called_functions(nodes: Iterable[Any]) -> set[str]:
    """Return the names of the functions in the attributes of ops."""
    found = set()
    for value in (value for node in nodes for value in node.attr.values()):
        if value.HasField("func"):
            found.add(value.func.name)
        found |= {function.name for function in value.list.func}
    return found

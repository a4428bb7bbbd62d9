"""What a SavedModel computes, as one number: the same wherever it lies and whenever it was exported."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from serving.contract import SAVED_MODEL_FILE


def fingerprint(path: str) -> str:
    """Hex sha256 over a SavedModel's variables (name, type, shape, value), assets and graph.

    Copies have equal fingerprints, and so have two exports of one model by one TensorFlow: names that
    TensorFlow numbers anew in each process, gradient registrations and traces are left out. Any changed
    weight or operation changes it.

    Raises:
        OSError, ValueError, tf.errors.OpError: the SavedModel is damaged.
    """
    digest = hashlib.sha256()
    for parts in (_variables(path), _assets(path), _graphs(path)):
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def _variables(path: str) -> Iterator[bytes]:
    import numpy as np
    import tensorflow as tf

    checkpoint = f"{path}/variables/variables"
    if not tf.io.gfile.exists(f"{checkpoint}.index"):
        return
    reader = tf.train.load_checkpoint(checkpoint)
    for name, shape in sorted(reader.get_variable_to_shape_map().items()):
        # A string that describes the objects and holds no value.
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH":
            value = np.asarray(reader.get_tensor(name))
            yield f"{name} {value.dtype} {shape}".encode()
            yield value.tobytes()


def _assets(path: str) -> Iterator[bytes]:
    import tensorflow as tf

    directory = f"{path}/assets"
    for name in sorted(tf.io.gfile.listdir(directory)) if tf.io.gfile.isdir(directory) else ():
        yield name.encode()
        yield _read(f"{directory}/{name}")


def _graphs(path: str) -> Iterator[bytes]:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        saved_model = saved_model_pb2.SavedModel.FromString(_read(f"{path}/{SAVED_MODEL_FILE}"))
    except DecodeError as error:
        raise ValueError(f"{SAVED_MODEL_FILE} is damaged: {error}") from error
    for meta_graph in saved_model.meta_graphs:
        names = [function.signature.name for function in meta_graph.graph_def.library.function]
        digest = _digests(meta_graph.graph_def.library.function)
        yield from sorted(digest(name).encode() for name in names)
        yield from (digest(name).encode() for name in _call(meta_graph.object_graph_def))
        yield from (_bytes(node, digest) for node in meta_graph.graph_def.node)


def _digests(functions: Iterable[Any]) -> Callable[[str], str]:
    """Function of the graph -> hex digest of what it does, its name left out; other names stay."""
    by_name = {function.signature.name: function for function in functions}
    digests: dict[str, str] = {}

    def digest(name: str) -> str:
        if name in by_name and name not in digests:
            digests[name] = ""  # what a function that calls itself finds
            function = by_name[name]
            content = b"".join(_bytes(node, digest) for node in function.node_def)
            function.signature.name = ""
            function.ClearField("node_def")
            function.ClearField("arg_attr")  # names captured variables by number
            content += function.SerializeToString(deterministic=True)
            digests[name] = hashlib.sha256(content).hexdigest()
        return digests.get(name, name)

    return digest


def _bytes(node: Any, digest: Callable[[str], str]) -> bytes:
    """An operation's bytes, the functions it calls named by their digest; the node is changed."""
    node.ClearField("experimental_debug_info")
    node.attr.pop("_gradient_op_type", None)
    node.op = digest(node.op)
    for value in node.attr.values():
        for function in [value.func] if value.HasField("func") else value.list.func:
            function.name = digest(function.name)
    return bytes(node.SerializeToString(deterministic=True))


def _call(objects: Any) -> Iterator[str]:
    """Names of the functions behind the root's `__call__`."""
    for child in objects.nodes[0].children if objects.nodes else ():
        if child.local_name == "__call__":
            yield from objects.nodes[child.node_id].function.concrete_functions


def _read(path: str) -> bytes:
    import tensorflow as tf

    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()

"""Fingerprint of what a SavedModel computes, independent of its path and of the time of its export."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving.contract import SAVED_MODEL_FILE
from serving.errors import OutputError
from serving.runtime.tensorflow_import import import_tensorflow
from serving.storage.files import is_remote, write


def compute_fingerprint(path: str) -> str:
    """Return the hex SHA-256 of a SavedModel's variables (name, type, shape, value), assets and graph.

    Copies have the same fingerprint, and so do two exports of a model by the same TensorFlow: names that
    TensorFlow numbers per process, gradient registrations and traces are excluded. Every changed weight
    or operation changes the fingerprint.

    Raises:
        OSError, ValueError, tf.errors.OpError: the SavedModel is damaged.
    """
    import_tensorflow()
    digest = hashlib.sha256()
    for parts in (_read_variables(path), _read_assets(path), _read_graphs(path)):
        for part in parts:
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def read_fingerprint(path: str, cache: Path) -> str:
    """Return `compute_fingerprint`, from the cache if no file of the SavedModel has changed since.

    Args:
        path: directory of the SavedModel.
        cache: cache directory.

    Raises:
        OSError, ValueError, tf.errors.OpError: the SavedModel is damaged.
    """
    if is_remote(path):
        return compute_fingerprint(path)
    top = Path(path).resolve()
    found = [(file, file.stat()) for file in sorted(top.rglob("*")) if file.is_file()]
    state = [(str(file), info.st_size, info.st_mtime_ns, info.st_ctime_ns) for file, info in found]
    record = cache / "fingerprints" / hashlib.sha256(repr(state).encode()).hexdigest()
    if record.is_file():
        return record.read_text()
    fingerprint = compute_fingerprint(path)
    with suppress(OutputError):  # a cache that is read-only, which may have all else that is needed
        write(str(record), fingerprint.encode())
    return fingerprint


def _read_variables(path: str) -> Iterator[bytes]:
    import numpy as np
    import tensorflow as tf

    checkpoint = f"{path}/variables/variables"
    if not tf.io.gfile.exists(f"{checkpoint}.index"):
        return
    reader = tf.train.load_checkpoint(checkpoint)
    for name, shape in sorted(reader.get_variable_to_shape_map().items()):
        # This entry describes the objects and has no value of a variable.
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH":
            value = np.asarray(reader.get_tensor(name))
            yield f"{name} {value.dtype} {shape}".encode()
            yield value.tobytes()


def _read_assets(path: str) -> Iterator[bytes]:
    import tensorflow as tf

    directory = f"{path}/assets"
    for name in sorted(tf.io.gfile.listdir(directory)) if tf.io.gfile.isdir(directory) else ():
        yield name.encode()
        yield _read(f"{directory}/{name}")


def _read_graphs(path: str) -> Iterator[bytes]:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        saved_model = saved_model_pb2.SavedModel.FromString(_read(f"{path}/{SAVED_MODEL_FILE}"))
    except DecodeError as error:
        raise ValueError(f"{SAVED_MODEL_FILE} is damaged: {error}") from error
    for meta_graph in saved_model.meta_graphs:
        names = [function.signature.name for function in meta_graph.graph_def.library.function]
        digest = _make_digest(meta_graph.graph_def.library.function)
        yield from sorted(digest(name).encode() for name in names)
        yield from (digest(name).encode() for name in _list_call_functions(meta_graph.object_graph_def))
        yield from (_serialise_node(node, digest) for node in meta_graph.graph_def.node)


def _make_digest(functions: Iterable[Any]) -> Callable[[str], str]:
    """Return a function that maps the name of a graph function to the digest of its content.

    Other names are returned unchanged.
    """
    by_name = {function.signature.name: function for function in functions}
    digests: dict[str, str] = {}

    def digest(name: str) -> str:
        if name in by_name and name not in digests:
            digests[name] = ""  # ends the recursion for a function that calls itself
            function = by_name[name]
            content = b"".join(_serialise_node(node, digest) for node in function.node_def)
            function.signature.name = ""
            function.ClearField("node_def")
            function.ClearField("arg_attr")  # contains numbered names of captured variables
            content += function.SerializeToString(deterministic=True)
            digests[name] = hashlib.sha256(content).hexdigest()
        return digests.get(name, name)

    return digest


def _serialise_node(node: Any, digest: Callable[[str], str]) -> bytes:
    """Return an operation's bytes with called functions named by their digest; the node is modified."""
    node.ClearField("experimental_debug_info")
    node.attr.pop("_gradient_op_type", None)
    node.op = digest(node.op)
    for value in node.attr.values():
        for function in [value.func] if value.HasField("func") else value.list.func:
            function.name = digest(function.name)
    return bytes(node.SerializeToString(deterministic=True))


def _list_call_functions(objects: Any) -> Iterator[str]:
    """Yield the names of the concrete functions of the root's `__call__`."""
    for child in objects.nodes[0].children if objects.nodes else ():
        if child.local_name == "__call__":
            yield from objects.nodes[child.node_id].function.concrete_functions


def _read(path: str) -> bytes:
    import tensorflow as tf

    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()

"""Frozen graphs of TensorFlow 1 (GraphDef, .pb) as backbones: converted once, in the cache, to a SavedModel.

A frozen graph has no signature, so the user names the tensor of the photos and that of the features. Only
the operations between them are kept.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.contract import SAVED_MODEL_FILE
from serving.errors import InputError
from serving.runtime.errors import output_errors
from serving.runtime.tensorflow_import import import_tensorflow
from serving.text import first_line
from trainer.backbones.interface import InputOptions
from trainer.dataset.download import ProgressLogger, create_once, sha256

RECIPE = "1"
"""Version of the SavedModel that `convert` writes; increment it when the conversion changes."""

NOT_GRAPHS = (SAVED_MODEL_FILE, "tfhub_module.pb")
"""Files that end in .pb and are part of a SavedModel."""

_VARIABLES = ("Variable", "VariableV2", "VarHandleOp")


def is_frozen_graph(handle: str) -> bool:
    """Return true if a handle is a file of a frozen graph, by its name."""
    path = Path(handle)
    return path.suffix == ".pb" and path.name not in NOT_GRAPHS and path.is_file()


def reject_tensors(handle: str, options: InputOptions) -> None:
    """Raise InputError if tensors are named for a backbone that is not a frozen graph."""
    if options.input_tensor or options.output_tensor:
        raise InputError(
            f"--input_tensor and --output_tensor name tensors of a frozen graph; {handle} is none.",
            remedy="Give a file that ends in .pb, or remove them.",
        )


def prepare(
    handle: str, cache: Path, options: InputOptions, *, progress: ProgressLogger
) -> tuple[str, InputOptions]:
    """Convert a frozen graph to a SavedModel in the cache.

    Returns:
        Directory of the SavedModel, and the options as they are.

    Raises:
        InputError: a tensor is not named or not in the graph, or the graph is damaged or not frozen.
        OutputError: the cache cannot be written.
    """
    file, source, target = Path(handle), options.input_tensor, options.output_tensor
    if not source or not target:
        raise InputError(
            f"{handle} is a frozen graph, which does not say where photos go in and features come out.",
            remedy="Name both with --input_tensor and --output_tensor; for Inception of 2015 they are "
            "ResizeBilinear:0 and pool_3:0.",
        )
    key = [RECIPE, sha256(file), source, target]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    directory = cache / "backbones" / "graph" / digest[:32]
    if not directory.is_dir():
        graph = _read_graph(file)
        first, last = _complete_name(source, graph, handle), _complete_name(target, graph, handle)
        with create_once(directory) as staged:
            export(graph, first, last, staged)
    if not (options.value_range or options.preprocessing):
        progress(
            f"{handle} does not state the pixel values of {source}: they are scaled to 0 to 1. If it expects "
            "others, set --preprocessing or --value_range"
        )
        options = replace(options, value_range=(0.0, 1.0))
    return str(directory), options


def export(graph: Any, source: str, target: str, directory: Path) -> None:
    """Write the part of a graph between two tensors as a callable SavedModel.

    Args:
        graph: GraphDef.
        source: name of the tensor of photos [N,H,W,3].
        target: name of the tensor of features, [N,D] or feature maps [N,H,W,D], which are averaged.
        directory: directory to write.
    """
    import tensorflow as tf

    dtype, height, width = _describe_input(graph, source)
    part = _extract(graph, source, target)

    @tf.function(
        input_signature=[tf.TensorSpec([None, height, width, 3], dtype, name="inputs")], autograph=False
    )
    def call(inputs: Any) -> Any:
        (features,) = tf.graph_util.import_graph_def(
            part, input_map={source: inputs}, return_elements=[target], name=""
        )
        if features.shape.rank == 4:
            features = tf.reduce_mean(features, [1, 2])
        return tf.cast(features, tf.float32)

    root = tf.train.Checkpoint()
    root.__call__ = call
    try:
        call.get_concrete_function()
    except (ValueError, KeyError, tf.errors.OpError) as error:
        raise InputError(
            f"The operations from {source} to {target} cannot run on photos: {first_line(error)}",
            remedy="Name a tensor of decoded photos, [N,H,W,3], and one of features behind it.",
        ) from error
    with output_errors(directory):
        tf.saved_model.save(root, str(directory))


def _read_graph(file: Path) -> Any:
    """Return the GraphDef of a file, with operations that TensorFlow 2 no longer runs replaced."""
    import_tensorflow()
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework import graph_pb2

    graph = graph_pb2.GraphDef()
    try:
        graph.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise InputError(
            f"{file} is not a readable GraphDef: {first_line(error)}",
            remedy="It may be truncated: copy it again. A text file (.pbtxt) is not supported.",
        ) from error
    return _replace_removed_operations(graph)


def _complete_name(name: str, graph: Any, handle: str) -> str:
    """Return the name of a tensor with its output number.

    Raises:
        InputError: the graph does not have that operation.
    """
    operation, _, number = name.partition(":")
    names = [node.name for node in graph.node]
    if operation in names and (not number or number.isdecimal()):
        return f"{operation}:{number or 0}"
    close = difflib.get_close_matches(operation, names, n=3)
    suggested = close or [node.name for node in graph.node if node.op == "Placeholder"] or names[-3:]
    raise InputError(
        f"The graph {handle} has no tensor {name}.",
        remedy=f"Did you mean {' or '.join(f'{one}:0' for one in suggested)}?" if suggested else "",
    )


def _iter_inputs(node: Any) -> Iterator[str]:
    """Yield the names of the operations that a node reads from or waits for."""
    for name in node.input:
        yield name.removeprefix("^").partition(":")[0]


def _find_needed(graph: Any, target: str, stop: str = "") -> set[str]:
    """Return the operations that a tensor depends on, without those before the operation `stop`."""
    nodes = {node.name: node for node in graph.node}
    found: set[str] = set()
    open_names = [target.partition(":")[0]]
    while open_names:
        name = open_names.pop()
        if name not in found and name in nodes:
            found.add(name)
            open_names += [] if name == stop else list(_iter_inputs(nodes[name]))
    return found


def _select(graph: Any, names: Iterable[str]) -> Any:
    """Return a GraphDef with some of the operations."""
    from tensorflow.core.framework import graph_pb2

    wanted = set(names)
    part = graph_pb2.GraphDef(versions=graph.versions, library=graph.library)
    part.node.extend(node for node in graph.node if node.name in wanted)
    for node in part.node:
        node.device = ""
        # Colocation may name a removed operation, and recorded shapes the batch size of one.
        for attribute in ("_class", "_output_shapes"):
            node.attr.pop(attribute, None)
    return part


def _extract(graph: Any, source: str, target: str) -> Any:
    """Return the operations between two tensors, with a placeholder in place of the first operation.

    Raises:
        InputError: the second tensor does not depend on the first one, or on variables or another input.
    """
    operation = source.partition(":")[0]
    part = _select(graph, _find_needed(graph, target, operation))
    by_name = {node.name: node for node in part.node}
    if operation not in by_name or operation == target.partition(":")[0]:
        raise InputError(
            f"{target} does not depend on {source}.", remedy="Check --input_tensor and --output_tensor."
        )
    first = by_name.pop(operation)
    for node in by_name.values():
        if node.op in _VARIABLES:
            raise InputError(
                f"The graph is not frozen: {node.name} is a variable.",
                remedy="Freeze it with its checkpoint, or give the SavedModel that it was made from.",
            )
        if node.op == "Placeholder":
            raise InputError(
                f"{target} also depends on the input {node.name}, which is not a photo.",
                remedy="Name a tensor that depends on the photos alone.",
            )
    dtype = _find_dtype(first)
    first.Clear()
    first.name, first.op = operation, "Placeholder"
    first.attr["dtype"].type = dtype.as_datatype_enum
    return part


def _find_dtype(node: Any) -> Any:
    """Return the type of a node's first output."""
    import tensorflow as tf

    for name in ("dtype", "DstT", "T"):
        if name in node.attr and node.op not in ("ResizeBilinear", "ResizeBicubic"):
            return tf.dtypes.as_dtype(node.attr[name].type)
    return tf.float32


def _describe_input(graph: Any, source: str) -> tuple[Any, int | None, int | None]:
    """Return the type of the input, and its height and width; None where the graph does not state them."""
    import tensorflow as tf

    operation = source.partition(":")[0]
    dtype = next(_find_dtype(node) for node in graph.node if node.name == operation)
    try:
        with tf.Graph().as_default() as imported:
            tf.graph_util.import_graph_def(_select(graph, _find_needed(graph, source)), name="")
            shape = imported.get_tensor_by_name(source).shape
    except (ValueError, KeyError, tf.errors.OpError):  # such as an operation that decodes another format
        return dtype, None, None
    return (dtype, *(shape[1:3] if shape.rank == 4 else (None, None)))


_BATCH_NORM = "BatchNormWithGlobalNormalization"
"""Operation of graphs of 2015, Inception among them, that functions of TensorFlow 2 reject."""


def _replace_removed_operations(graph: Any) -> Any:
    """Return the graph with each batch normalisation of 2015 as the arithmetic that it stands for."""
    if all(node.op != _BATCH_NORM for node in graph.node):
        return graph
    from tensorflow.core.framework import graph_pb2

    result = graph_pb2.GraphDef(versions=graph.versions, library=graph.library)
    for node in graph.node:
        if node.op == _BATCH_NORM:
            _add_batch_norm(result, node)
        else:
            result.node.append(node)
    return result


def _add_batch_norm(graph: Any, node: Any) -> None:
    """Append (t - mean) / sqrt(variance + epsilon) [* gamma] + beta to a graph, as t * scale + offset."""
    import tensorflow as tf

    values, mean, variance, beta, gamma = node.input[:5]

    def add(name: str, op: str, *inputs: str) -> str:
        full = f"{node.name}/{name}" if name else node.name
        added = graph.node.add(name=full, op=op, input=inputs)
        added.attr["T"].type = tf.float32.as_datatype_enum
        return full

    epsilon = graph.node.add(name=f"{node.name}/epsilon", op="Const")
    epsilon.attr["dtype"].type = tf.float32.as_datatype_enum
    value = tf.make_tensor_proto(node.attr["variance_epsilon"].f, tf.float32)
    epsilon.attr["value"].tensor.CopyFrom(value)
    scale = add("rsqrt", "Rsqrt", add("variance", "Add", variance, epsilon.name))
    if node.attr["scale_after_normalization"].b:
        scale = add("scale", "Mul", scale, gamma)
    offset = add("offset", "Sub", beta, add("mean", "Mul", mean, scale))
    add("", "Add", add("product", "Mul", values, scale), offset)

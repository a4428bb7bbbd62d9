"""SavedModels of TensorFlow 1 whose signatures TensorFlow Serving's own tests and issues use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Tensors: TypeAlias = Mapping[str, Any]
Signatures: TypeAlias = Mapping[str, tuple[str, Tensors, Tensors]]
"""Method name, inputs and outputs by signature key."""

PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


def save_model(
    directory: Path,
    build: Callable[[Any], Signatures],
    *,
    as_scalars: bool = False,
    as_text: bool = False,
    more_tags: tuple[str, ...] = (),
) -> Path:
    """Write a SavedModel of TensorFlow 1 and return its directory.

    Args:
        directory: directory to create.
        build: function that builds the graph with `tf.compat.v1`, and returns its signatures.
        as_scalars: declare all inputs and outputs as scalars, whatever their shapes in the graph, as the
            model half_plus_three of TensorFlow Serving does.
        as_text: write saved_model.pbtxt.
        more_tags: tags of a second graph, with the same signatures under the prefix "other_"; () for none.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        signatures = build(v1)
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        builder = v1.saved_model.Builder(str(directory))
        main_op = v1.tables_initializer()

        def info(tensor: Any) -> Any:
            declared = v1.saved_model.build_tensor_info(tensor)
            if as_scalars:
                declared.tensor_shape.Clear()
            return declared

        definitions = {
            key: v1.saved_model.build_signature_def(
                {alias: info(tensor) for alias, tensor in inputs.items()},
                {alias: info(tensor) for alias, tensor in outputs.items()},
                method,
            )
            for key, (method, inputs, outputs) in signatures.items()
        }
        if more_tags:
            others = {f"other_{key}": definition for key, definition in definitions.items()}
            builder.add_meta_graph_and_variables(session, more_tags, others, main_op=main_op)
            builder.add_meta_graph(["serve"], definitions)  # the main op is in a collection of the graph
        else:
            builder.add_meta_graph_and_variables(session, ["serve"], definitions, main_op=main_op)
        builder.save(as_text)
    return directory


def half_plus_two(v1: Any) -> Signatures:
    """Return signatures of x / 2 + 2 and x2 / 2 + 3, each pair with an input of its own."""
    half, two, three = (v1.get_variable(name, initializer=value) for name, value in _CONSTANTS)
    examples = v1.placeholder("string", [None], "examples")
    others = v1.placeholder("string", [None], "other_examples")
    x = v1.io.parse_example(examples, {"x": v1.io.FixedLenFeature([1], "float32")})["x"]
    x2 = v1.io.parse_example(others, {"x2": v1.io.FixedLenFeature([1], "float32", [0.0])})["x2"]
    y, y2 = v1.identity(half * x + two), v1.identity(half * x2 + three)
    return {
        "serving_default": (PREDICT, {"x": x}, {"y": y}),
        "regress_x_to_y": (REGRESS, {"inputs": examples}, {"outputs": y}),
        "classify_x_to_y": (CLASSIFY, {"inputs": examples}, {"scores": y}),
        "regress_x2_to_y3": (REGRESS, {"inputs": others}, {"outputs": y2}),
        "classify_x2_to_y3": (CLASSIFY, {"inputs": others}, {"scores": y2}),
    }


def half_plus_three(v1: Any) -> Signatures:
    """Return signatures of x / 2 + 3: one feeds examples, the other their parsed feature [N,1]."""
    half, _, three = (v1.get_variable(name, initializer=value) for name, value in _CONSTANTS)
    examples = v1.placeholder("string", [None], "examples")
    x = v1.identity(v1.io.parse_example(examples, {"x": v1.io.FixedLenFeature([1], "float32")})["x"], "x")
    y = v1.identity(half * x + three, "y")
    return {
        "serving_default": (PREDICT, {"x": x}, {"y": y}),
        "regress": (REGRESS, {"inputs": examples}, {"outputs": y}),
    }


_CONSTANTS = (("half", 0.5), ("two", 2.0), ("three", 3.0))


def scalars(v1: Any) -> Signatures:
    """Return signatures with inputs and outputs of rank 0: numbers, strings, and a sum over rows."""
    number, text = v1.placeholder("float32", [], "number"), v1.placeholder("string", [], "text")
    rows = v1.placeholder("float32", [None], "rows")
    return {
        "serving_default": (PREDICT, {"x": number}, {"y": 2 * number}),
        "text": (PREDICT, {"x": text}, {"y": v1.strings.join([text, "!"])}),
        "sum": (PREDICT, {"x": rows}, {"sum": v1.reduce_sum(rows), "x": v1.identity(rows)}),
        "scale": (PREDICT, {"x": rows, "by": number}, {"y": rows * number}),
        "pi": (PREDICT, {}, {"y": v1.constant(3.25)}),
    }


def unnamed_arguments(v1: Any) -> Signatures:
    """Return a signature whose inputs cannot be passed to a function of Python by name."""
    x, y = v1.placeholder("float32", [None], "x"), v1.placeholder("float32", [None], "y")
    return {"serving_default": (PREDICT, {"self": x, "name": y}, {"z": x - y})}

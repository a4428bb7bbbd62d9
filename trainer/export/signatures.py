"""Signatures of the SavedModel: photo bytes to embedding, and embedding to labels.

Nothing in the graph depends on the head. Its weights, labels and settings are variables of open
shape, so one trace serves every head of a backbone, and a new head is a new checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving import contract
from serving.errors import BundleError
from serving.runtime.errors import output_errors
from trainer.backbones import interface, pixel_values
from trainer.backbones.hub import Backbone
from trainer.evaluation.novelty import Novelty
from trainer.export import checkpoint, onnx_backbone
from trainer.heads import Head, Scaling
from trainer.preprocessing import (
    Augmentation,
    Preprocessing,
    decode_photos,
    is_usable,
    random_views,
    status_names,
)

_MAX_FLOAT16 = 65504.0

_MAX_CONSTANT_BYTES = 1 << 30
"""Size of a backbone's weights up to which they become constants of the graph, whose limit is 2 GB."""

_SEEDS = 2**31 - 1


def hash_sources() -> str:
    """Return the SHA-256, in hex, of the graph's sources, so that a changed graph is traced again."""
    preprocessing = sorted((Path(__file__).parents[1] / "preprocessing").glob("*.py"))
    modules = [interface.__file__, pixel_values.__file__, onnx_backbone.__file__]
    sources = [Path(__file__), *map(Path, modules), *preprocessing]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def save(
    backbone: Backbone,
    preprocessing: Preprocessing,
    directory: Path,
    *,
    with_head: bool = True,
    augmentation: Augmentation | None = None,
) -> None:
    """Trace the signatures and write the SavedModel, with a placeholder head of two labels.

    Args:
        backbone: the network.
        preprocessing: preprocessing settings.
        directory: directory of the SavedModel.
        with_head: False writes signature `embed` alone.
        augmentation: for training only: `embed` then takes a random view of each photo, drawn from the
            variable `view` and the photo's bytes.
    """
    import tensorflow as tf

    root = tf.train.Checkpoint(view=tf.Variable(0, dtype=tf.int32, trainable=False))
    d = backbone.dimension
    zeros = np.zeros((d, 2), np.float32)
    placeholder = Head(Scaling(zeros[:, 0], zeros[:, 0] + 1), zeros, zeros[0], temperature=1.0)
    values = make_head_variables(placeholder, ["", ""], threshold=0.0, top_k=1, novelty=None)
    open_shapes = {
        "kernel": [d, None],
        "bias": [None],
        "hidden_kernel": [d, None],
        "hidden_bias": [None],
        "hidden_output": [None, None],
        "novelty_directions": [d, None],
        "labels": [None],
    }
    for name, value in values.items():
        setattr(root, name, tf.Variable(value, shape=open_shapes.get(name), trainable=False))
    network = _freeze_backbone(backbone, root)
    decode = _make_decode_function(preprocessing, augmentation, root)
    signatures = _make_signatures(decode, network, backbone, preprocessing, root)
    headless = {name: signatures[name] for name in (contract.EMBED, contract.DECODE)}
    # Gradients of activations such as swish cannot be saved with a frozen graph, and serving needs none.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with output_errors(directory):
        tf.saved_model.save(
            root, str(directory), signatures=signatures if with_head else headless, options=options
        )
    if content := onnx_backbone.convert(network, backbone.image_size):
        (directory / contract.ONNX_FILE).parent.mkdir(exist_ok=True)
        (directory / contract.ONNX_FILE).write_bytes(content)


def _freeze_backbone(backbone: Backbone, root: Any) -> Callable[[Any], Any]:
    """Return the backbone as one function that all signatures call, its weights frozen into constants.

    With constants TensorFlow folds the normalisations into the convolutions, here and in
    TensorFlow Serving on CPUs. A SavedModel's graph may not be larger than 2 GB, so the largest
    backbones keep variables.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = tf.TensorSpec([None, *backbone.image_size, 3], tf.float32)
    concrete = tf.function(backbone.apply, autograph=False).get_concrete_function(spec)
    size = sum(variable.shape.num_elements() * variable.dtype.size for variable in concrete.variables)
    if size > _MAX_CONSTANT_BYTES:
        root.backbone = backbone.module
        return backbone.apply
    constant = convert_variables_to_constants_v2(concrete)
    return lambda pixels: constant(pixels)[0]


def _make_decode_function(
    preprocessing: Preprocessing, augmentation: Augmentation | None, root: Any
) -> Callable[[Any], tuple[Any, ...]]:
    """Return the function image_bytes string [N] -> pixels uint8 [N,H,W,3], status, height, width int32 [N].

    It is traced once, and called by all signatures that take photo bytes.
    """
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def decode(image_bytes: Any) -> tuple[Any, ...]:
        with tf.device("CPU"):
            views = None
            if augmentation:
                drawn = tf.cast(tf.strings.to_hash_bucket_fast(image_bytes, _SEEDS), tf.int32)
                views = random_views(tf.stack([drawn, tf.fill(tf.shape(drawn), root.view)], 1), augmentation)
            return decode_photos(image_bytes, preprocessing, views=views)

    return decode


def _make_embed_function(
    decode: Callable[[Any], tuple[Any, ...]], network: Callable[[Any], Any], dimension: int
) -> Callable[[Any], tuple[Any, ...]]:
    """Return the function image_bytes string [N] -> embedding float32 [N,D], status, height, width."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def embed(image_bytes: Any) -> tuple[Any, ...]:
        pixels, status, height, width = decode(image_bytes)
        return _embed_pixels(network, pixels, dimension), status, height, width

    return embed


def _name_outputs(status: Any, height: Any, width: Any) -> dict[str, Any]:
    return {contract.STATUS: status_names(status), contract.HEIGHT: height, contract.WIDTH: width}


def _embed_pixels(network: Callable[[Any], Any], pixels: Any, dimension: int) -> Any:
    """Return embeddings float32 [N,D] of pixels uint8 [N,H,W,3], at the precision of the embedding store.

    The graph rounds them to float16 itself, so that a stored embedding equals a fresh one in every
    path. An empty batch is padded with a blank photo, since the oneDNN kernels reject it.
    """
    import tensorflow as tf

    count = tf.shape(pixels)[0]
    missing = tf.maximum(1 - count, 0)
    padded = tf.pad(pixels, [[0, missing], [0, 0], [0, 0], [0, 0]])
    padded.set_shape([None, *pixels.shape[1:]])
    embedding = network(tf.cast(padded, tf.float32) / 255.0)[:count]
    half = tf.cast(tf.clip_by_value(embedding, -_MAX_FLOAT16, _MAX_FLOAT16), tf.float16)
    return tf.ensure_shape(tf.cast(half, tf.float32), [None, dimension])


def _make_signatures(
    decode: Callable[[Any], tuple[Any, ...]],
    network: Callable[[Any], Any],
    backbone: Backbone,
    preprocessing: Preprocessing,
    root: Any,
) -> dict[str, Any]:
    """Return all signatures by name; none is traced before it is saved."""
    import tensorflow as tf

    def takes(name: str, shape: Sequence[int | None], dtype: Any) -> Any:
        return tf.function(input_signature=[tf.TensorSpec(shape, dtype, name=name)], autograph=False)

    embed = _make_embed_function(decode, network, backbone.dimension)

    @takes(contract.IMAGE_BYTES, [None], tf.string)
    def decode_bytes(image_bytes: Any) -> dict[str, Any]:
        pixels, status, height, width = decode(image_bytes)
        return {contract.PIXELS: pixels, **_name_outputs(status, height, width)}

    @takes(contract.IMAGE_BYTES, [None], tf.string)
    def embed_photos(image_bytes: Any) -> dict[str, Any]:
        embedding, status, height, width = embed(image_bytes)
        return {contract.EMBEDDING: embedding, **_name_outputs(status, height, width)}

    @takes(contract.IMAGE_BYTES, [None], tf.string)
    def serving_default(image_bytes: Any) -> dict[str, Any]:
        embedding, status, _, _ = embed(image_bytes)
        return _make_answer(root, embedding, status)

    @takes(contract.IMAGE_BYTES, [None], tf.string)
    def probabilities(image_bytes: Any) -> dict[str, Any]:
        embedding, status, _, _ = embed(image_bytes)
        return {
            contract.PROBABILITIES: _classify(root, embedding)[0],
            contract.STATUS: status_names(status),
        }

    @takes(contract.PIXELS, [None, preprocessing.height, preprocessing.width, 3], tf.uint8)
    def classify_pixels(pixels: Any) -> dict[str, Any]:
        embedding = _embed_pixels(network, pixels, backbone.dimension)
        return _make_answer(root, embedding, tf.zeros(tf.shape(pixels)[:1], tf.int32))

    @takes(contract.EMBEDDING, [None, backbone.dimension], tf.float32)
    def classify_embedding(embedding: Any) -> dict[str, Any]:
        probabilities, known = _classify(root, embedding)
        return {contract.PROBABILITIES: probabilities, contract.KNOWN: known}

    @takes(contract.EXAMPLES, [None], tf.string)
    def classify_examples(inputs: Any) -> dict[str, Any]:
        feature = tf.io.FixedLenFeature([], tf.string)
        parsed = tf.io.parse_example(inputs, {contract.EXAMPLE_IMAGE_FEATURE: feature})
        result = serving_default(parsed[contract.EXAMPLE_IMAGE_FEATURE])
        return {name: result[name] for name in (contract.CLASSES, contract.SCORES)}

    return {
        contract.EMBED: embed_photos,
        contract.DECODE: decode_bytes,
        contract.SERVING_DEFAULT: serving_default,
        contract.PROBABILITIES: probabilities,
        contract.CLASSIFY_PIXELS: classify_pixels,
        contract.CLASSIFY_EMBEDDING: classify_embedding,
        contract.CLASSIFY: classify_examples,
    }


def _classify(root: Any, embedding: Any) -> tuple[Any, Any]:
    """Return probabilities float32 [N,K] of embeddings, and known bool [N]: True if like the known photos.

    The computation is that of trainer.heads.Head: standardise, scale to length one, linear and hidden
    layer, softmax with temperature.
    """
    import tensorflow as tf

    with tf.device("CPU"):
        standardised = (embedding - root.mean) * root.scale
        features = tf.math.l2_normalize(standardised, axis=1, epsilon=1e-24)
        hidden = tf.nn.relu(features @ root.hidden_kernel + root.hidden_bias)
        logits = features @ root.kernel + hidden @ root.hidden_output + root.bias
        logits = logits / root.temperature
        return tf.nn.softmax(logits), _score_novelty(root, embedding, logits) <= root.novelty_threshold


def _score_novelty(root: Any, embedding: Any, logits: Any) -> Any:
    """Return the novelty score float32 [N], computed as trainer.evaluation.novelty.Novelty does."""
    import tensorflow as tf

    off = tf.math.l2_normalize(embedding, axis=1, epsilon=1e-24) - root.novelty_centre
    inside = tf.reduce_sum(tf.square(off @ root.novelty_directions), axis=1)
    outside = tf.reduce_sum(tf.square(off), axis=1) - inside
    residual = tf.sqrt(tf.maximum(outside, 0.0))
    energy = tf.reduce_logsumexp(logits, axis=1)
    return root.novelty_weights[0] * residual - root.novelty_weights[1] * energy


def _make_answer(root: Any, embedding: Any, status: Any) -> dict[str, Any]:
    """Return the outputs of `serving_default` for embeddings float32 [N,D] and statuses int32 [N].

    The label is empty where the model abstains; for an unusable photo classes and scores are blank too.
    """
    import tensorflow as tf

    probabilities, known = _classify(root, embedding)
    with tf.device("CPU"):
        scores, best = tf.math.top_k(probabilities, tf.cast(root.top_k, tf.int32))
        classes = tf.gather(root.labels, best)
        usable = is_usable(status)
        decided = usable & known & (scores[:, 0] >= root.threshold)
        return {
            contract.LABEL: tf.where(decided, classes[:, 0], ""),
            contract.CLASSES: tf.where(usable[:, None], classes, ""),
            contract.SCORES: tf.where(usable[:, None], scores, 0.0),
            contract.STATUS: status_names(status),
        }


def make_head_variables(
    head: Head, labels: Sequence[str], *, threshold: float, top_k: int, novelty: Novelty | None
) -> dict[str, Any]:
    """Return the values of the head's variables by name, for `write_variables`."""
    dimension, classes = head.kernel.shape
    hidden = head.hidden
    numbers = {
        "mean": head.scaling.mean,
        "scale": head.scaling.scale,
        "kernel": head.kernel,
        "bias": head.bias,
        # A head without a hidden layer has one hidden unit of zeros: oneDNN aborts on products of width 0.
        "hidden_kernel": hidden.kernel if hidden else np.zeros((dimension, 1)),
        "hidden_bias": hidden.bias if hidden else np.zeros(1),
        "hidden_output": hidden.output if hidden else np.zeros((1, classes)),
        "temperature": head.temperature,
        "threshold": threshold,
        "novelty_centre": novelty.centre if novelty else np.zeros(dimension),
        "novelty_directions": novelty.directions if novelty else np.zeros((dimension, 1)),
        "novelty_weights": [novelty.residual_weight, novelty.energy_weight] if novelty else [0.0, 0.0],
        "novelty_threshold": novelty.threshold if novelty else np.inf,
    }
    return {name: np.asarray(value, np.float32) for name, value in numbers.items()} | {
        "labels": np.array([label.encode() for label in labels], object),
        "top_k": np.array(top_k, np.int64),
    }


def write_variables(source: Path, directory: Path, values: Mapping[str, Any]) -> None:
    """Write the checkpoint of `source` into `directory`, with some of its variables replaced.

    Graphs of earlier versions have no hidden layer; they accept every head without one.

    Raises:
        BundleError: the variables cannot be read, or the graph lacks a variable that the head needs.
    """
    variables = checkpoint.read_checkpoint(source)
    for name, value in values.items():
        key = f"{name}/.ATTRIBUTES/VARIABLE_VALUE"
        if key in variables:
            variables[key] = value
        elif not name.startswith("hidden_") or np.any(value):
            raise BundleError(
                f"The graph of {source} has no variable {name!r}, which this head needs.",
                remedy="It was made by an earlier version of hubhead. Train again with hubhead train.",
            )
    checkpoint.write_checkpoint(directory, variables)

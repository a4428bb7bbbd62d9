"""EfficientNet-Lite in TensorFlow, and its export as a TF2 Hub feature vector.

The networks are those of M. Tan and Q. Le, "EfficientNet" (2019), in the Lite variant of TensorFlow's TPU
models: no squeeze-and-excitation, ReLU6 instead of swish, unscaled stem and head, and pixels normalised
as (x - 127) / 128. The weights keep their names in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.runtime.errors import output_errors

BN_EPSILON = 1e-3
BN_MOMENTUM = 0.99


@dataclass(frozen=True, slots=True)
class Scaling:
    """Coefficients of one network of the family, by which those of Lite0 are multiplied.

    Attributes:
        width: coefficient of the number of channels.
        depth: coefficient of the number of blocks in a stage.
    """

    width: float
    depth: float


NETWORKS = {"lite0": Scaling(1.0, 1.0), "lite1": Scaling(1.0, 1.1), "lite2": Scaling(1.1, 1.2)}
"""Name of a network -> its coefficients (efficientnet_lite_builder.py of TensorFlow's TPU models)."""

STAGES = (
    (1, 16, 1, False),
    (2, 24, 2, True),
    (2, 40, 2, True),
    (3, 80, 2, True),
    (3, 112, 1, True),
    (4, 192, 2, True),
    (1, 320, 1, True),
)
"""Stages of mobile inverted bottlenecks of Lite0: number of blocks, channels, stride of the first block,
expansion before the depthwise convolution. Only the first block of a stage changes the shape; the others have
a skip connection. Depth does not scale the first and the last stage."""


@dataclass(frozen=True, slots=True)
class Block:
    """One mobile inverted bottleneck.

    Attributes:
        channels: number of channels of its output.
        stride: stride of its depthwise convolution.
        expands: whether it has an expansion before that convolution.
        skips: whether its input is added to its output.
    """

    channels: int
    stride: int
    expands: bool
    skips: bool


def list_blocks(scaling: Scaling) -> list[Block]:
    """Return the blocks of a network in order."""
    blocks = []
    for index, (count, channels, stride, expands) in enumerate(STAGES):
        scaled = count if index in (0, len(STAGES) - 1) else math.ceil(count * scaling.depth)
        width = _scale_channels(channels, scaling.width)
        blocks += [Block(width, 1 if n else stride, expands, n > 0) for n in range(scaled)]
    return blocks


def _scale_channels(channels: int, width: float) -> int:
    """Return the nearest multiple of 8 to the scaled number of channels that is at least 90 % of it."""
    nearest = max(8, int(channels * width + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels * width else nearest + 8


def check_weights(weights: Mapping[str, NDArray[Any]], scaling: Scaling) -> None:
    """Raise ValueError if a state dict is not that of the network: other blocks, or other channels."""
    expected = [block.channels for block in list_blocks(scaling)]
    found = list(_list_channels(weights))
    if found != expected:
        raise ValueError(f"the blocks of the checkpoint have {found} channels; expected {expected}")


def _list_channels(weights: Mapping[str, NDArray[Any]]) -> Iterator[int]:
    """Yield the number of output channels of each block of a state dict."""
    index = 0
    while (name := f"_blocks.{index}._project_conv.weight") in weights:
        yield len(weights[name])
        index += 1


def build_variables(weights: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return tf.Variables in TensorFlow's layout: kernels [h, w, in, out], depthwise [h, w, in, 1].

    Batch-norm statistics are not trainable. The ImageNet classifier (`_fc`) is left out.
    """
    import tensorflow as tf

    return {
        name: tf.Variable(
            _transpose(name, value), trainable=".running_" not in name, name=name.replace(".", "/").strip("_")
        )
        for name, value in weights.items()
        if not name.endswith(".num_batches_tracked") and not name.startswith("_fc.")
    }


def _transpose(name: str, value: NDArray[Any]) -> NDArray[Any]:
    """Convert a weight from PyTorch's layout to that of TensorFlow."""
    if value.ndim == 4:
        return np.transpose(value, (2, 3, 0, 1) if "_depthwise_" in name else (2, 3, 1, 0))
    return value.T


def forward(weights: Mapping[str, Any], pixels: Any, scaling: Scaling, *, training: bool) -> Any:
    """Return pooled features float32 [N,1280] of pixels float32 [N,H,W,3] in [0,1]; see `feature_maps`."""
    import tensorflow as tf

    return tf.reduce_mean(feature_maps(weights, pixels, scaling, training=training)[-1], [1, 2])


def feature_maps(weights: Mapping[str, Any], pixels: Any, scaling: Scaling, *, training: bool) -> list[Any]:
    """Return the feature maps of the stem, of each block and of the last convolution.

    Args:
        weights: variables of `build_variables`.
        pixels: photos, float32 [N,H,W,3] in [0,1].
        scaling: coefficients of the network.
        training: normalise by the statistics of the batch, and update the moving averages.
    """
    import tensorflow as tf

    def convolve(x: Any, name: str, stride: int = 1) -> Any:
        convolution = tf.nn.depthwise_conv2d if "_depthwise_" in name else tf.nn.conv2d
        return convolution(x, weights[f"{name}.weight"], [1, stride, stride, 1], "SAME")

    def normalise(x: Any, name: str) -> Any:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        if training:
            batch_mean, batch_variance = tf.nn.moments(x, [0, 1, 2])
            mean.assign_sub((mean - batch_mean) * (1 - BN_MOMENTUM))
            variance.assign_sub((variance - batch_variance) * (1 - BN_MOMENTUM))
            mean, variance = batch_mean, batch_variance
        offset, scale = weights[f"{name}.bias"], weights[f"{name}.weight"]
        return tf.nn.batch_normalization(x, mean, variance, offset, scale, BN_EPSILON)

    x = (pixels * 255.0 - 127.0) / 128.0
    x = tf.nn.relu6(normalise(convolve(x, "_conv_stem", 2), "_bn0"))
    found = [x]
    for index, block in enumerate(list_blocks(scaling)):
        before, part = x, f"_blocks.{index}"
        if block.expands:
            x = tf.nn.relu6(normalise(convolve(x, f"{part}._expand_conv"), f"{part}._bn0"))
        x = tf.nn.relu6(normalise(convolve(x, f"{part}._depthwise_conv", block.stride), f"{part}._bn1"))
        x = normalise(convolve(x, f"{part}._project_conv"), f"{part}._bn2")
        if block.skips:
            x = x + before
        found.append(x)
    return [*found, tf.nn.relu6(normalise(convolve(x, "_conv_head"), "_bn1"))]


def export(
    weights: Mapping[str, NDArray[Any]], directory: Path, scaling: Scaling, *, image_size: int
) -> None:
    """Write a SavedModel with the Reusable SavedModel interface of TF2 Hub.

    `__call__(pixels, training=False)` maps float32 [N,size,size,3] in [0,1] to features float32 [N,1280],
    and so does the signature serving_default. `variables`, `trainable_variables` and
    `regularization_losses` are for fine-tuning (https://www.tensorflow.org/hub/reusable_saved_models).

    Args:
        weights: state dict of the checkpoint.
        directory: directory to write.
        scaling: coefficients of the network.
        image_size: height and width of the photos; the weights fit any size.
    """
    import tensorflow as tf

    check_weights(weights, scaling)
    tensors = build_variables(weights)
    spec = tf.TensorSpec([None, image_size, image_size, 3], tf.float32, name="inputs")

    @tf.function(autograph=False)
    def call(inputs: Any, training: bool = False) -> Any:
        return forward(tensors, inputs, scaling, training=training)

    @tf.function(input_signature=[spec], autograph=False)
    def serve(inputs: Any) -> dict[str, Any]:
        return {"feature_vector": call(inputs, training=False)}

    for training in (False, True):
        call.get_concrete_function(spec, training=training)

    root = tf.train.Checkpoint()
    root.__call__ = call
    root.variables = list(tensors.values())
    root.trainable_variables = [variable for variable in tensors.values() if variable.trainable]
    root.regularization_losses = []
    with output_errors(directory):
        tf.saved_model.save(root, str(directory), signatures={"serving_default": serve})

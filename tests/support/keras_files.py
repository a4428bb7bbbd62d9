"""Keras files for tests: a small network whose arithmetic NumPy repeats, in the formats of Keras 2 and 3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.backbones.keras_files.weights import rename_old_layer

HEIGHT, WIDTH, CHANNELS = 16, 12, 4

_chance = np.random.default_rng(0)
KERNEL, BIAS = (_chance.normal(size=size).astype(np.float32) for size in ((3, CHANNELS), (CHANNELS,)))
GAMMA, BETA, MEAN = (_chance.normal(size=CHANNELS).astype(np.float32) for _ in range(3))
VARIANCE = _chance.uniform(0.5, 2, CHANNELS).astype(np.float32)
DEPTHWISE = _chance.normal(size=(1, 1, CHANNELS, 1)).astype(np.float32)
EPSILON = 0.002

WEIGHTS = {
    "conv": {"kernel": KERNEL[None, None], "bias": BIAS},
    "norm": {"gamma": GAMMA, "beta": BETA, "moving_mean": MEAN, "moving_variance": VARIANCE},
    "depthwise": {"depthwise_kernel": DEPTHWISE},
}
"""Layer -> its weights, in the order of Keras."""


def compute_features(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the averaged feature maps of pixels float32 [N,H,W,3] in the network's own values."""
    normalised = (values @ KERNEL + BIAS - MEAN) / np.sqrt(VARIANCE + EPSILON) * GAMMA + BETA
    return (np.clip(normalised, 0, 6) * DEPTHWISE[0, 0, :, 0]).mean((1, 2))


def draw_pixels(count: int = 2) -> NDArray[np.float32]:
    """Return random photos float32 [N,H,W,3] in [0,1]."""
    return np.random.default_rng(1).random((count, HEIGHT, WIDTH, 3)).astype(np.float32)


def _layer(kind: str, name: str, after: str, **config: Any) -> dict[str, Any]:
    nodes = [[[after, 0, 0, {}]]] if after else []
    inner = {"name": name, "dtype": "float32", **config}
    return {"class_name": kind, "name": name, "config": inner, "inbound_nodes": nodes}


def make_keras_2_config(name: str = "model_1", **changes: dict[str, Any]) -> dict[str, Any]:
    """Return the architecture as Keras 2.2.4 wrote it.

    Args:
        name: name of the model.
        changes: layer -> what is different in its entry.
    """
    initializer = {"class_name": "VarianceScaling", "config": {"scale": 1.0, "seed": None}}
    convolution: dict[str, Any] = {
        "kernel_size": [1, 1],
        "strides": [1, 1],
        "padding": "same",
        "data_format": "channels_last",
        "dilation_rate": [1, 1],
        "activation": "linear",
        "kernel_regularizer": None,
        "kernel_constraint": None,
    }
    layers = [
        _layer("InputLayer", "input_1", "", batch_input_shape=[None, HEIGHT, WIDTH, 3], sparse=False),
        _layer(
            "Conv2D",
            "conv",
            "input_1",
            filters=CHANNELS,
            use_bias=True,
            kernel_initializer=initializer,
            **convolution,
        ),
        _layer("BatchNormalization", "norm", "conv", axis=[3], momentum=0.99, epsilon=EPSILON),
        _layer("ReLU", "relu", "norm", max_value=6.0, negative_slope=0.0, threshold=0.0),
        # Keras 3 rejects the argument `groups` here, which Keras 2 wrote from 2.4 on.
        _layer(
            "DepthwiseConv2D",
            "depthwise",
            "relu",
            depth_multiplier=1,
            use_bias=False,
            groups=1,
            **convolution,
        ),
    ]
    layers = [layer | changes.get(str(layer["name"]), {}) for layer in layers]
    config = {
        "name": name,
        "layers": layers,
        "input_layers": [["input_1", 0, 0]],
        "output_layers": [["depthwise", 0, 0]],
    }
    return {"class_name": "Model", "config": config}


def write_keras_2(file: Path, config: dict[str, Any] | None = None) -> Path:
    """Write the network as Keras 2 did: HDF5 with the architecture as JSON, and the weights by layer.

    Args:
        file: file to write.
        config: architecture; that of `make_keras_2_config` by default.
    """
    import h5py  # it starts a process, which unit tests must not

    with h5py.File(file, "w") as opened:
        opened.attrs["keras_version"] = b"2.2.4"
        opened.attrs["backend"] = b"tensorflow"
        opened.attrs["model_config"] = json.dumps(config or make_keras_2_config()).encode()
        write_layers(opened.create_group("model_weights"), WEIGHTS)
    return file


def write_layers(group: Any, weights: dict[str, dict[str, Any]]) -> None:
    """Write weights by layer into a group, in the layout of Keras 1 and 2."""
    group.attrs["layer_names"] = [name.encode() for name in weights]
    for name, arrays in weights.items():
        inner = group.create_group(name)
        inner.attrs["weight_names"] = [f"{name}/{key}:0".encode() for key in arrays]
        for key, value in arrays.items():
            inner[f"{name}/{key}:0"] = value


def list_old_resnet_layers() -> list[str]:
    """Return the layers of ResNet50 that have weights, by the names and in the order of 2016."""
    names = ["conv1", "bn_conv1"]
    for stage, blocks in ((2, "abc"), (3, "abcd"), (4, "abcdef"), (5, "abc")):
        for block in blocks:
            places = ("2a", "2b", "2c", "1") if block == "a" else ("2a", "2b", "2c")
            names += [f"{kind}{stage}{block}_branch{place}" for place in places for kind in ("res", "bn")]
    return names


def write_old_resnet(file: Path, model: Any) -> dict[str, dict[str, Any]]:
    """Write the weights of ResNet50 of Keras 3 as files of 2016 have them; returns them by layer.

    Args:
        file: file to write.
        model: ResNet50 without its classifier.
    """
    import h5py

    layers = {name: model.get_layer(rename_old_layer(name)) for name in list_old_resnet_layers()}
    assert {layer.name for layer in layers.values()} == {
        layer.name for layer in model.layers if layer.weights
    }
    weights = {
        name: {weight.name: weight.numpy() for weight in layer.weights} for name, layer in layers.items()
    }
    with h5py.File(file, "w") as opened:
        write_layers(opened, weights)
    return weights


def build_keras_3(*, name: str | None = None, shape: tuple[int | None, ...] = (HEIGHT, WIDTH, 3)) -> Any:
    """Return the network as a model of Keras 3, with feature maps as its output."""
    import keras

    layers = keras.layers
    inputs = keras.Input(shape)
    maps = layers.Conv2D(CHANNELS, 1, name="conv")(inputs)
    maps = layers.BatchNormalization(epsilon=EPSILON, name="norm")(maps)
    maps = layers.ReLU(6.0, name="relu")(maps)
    maps = layers.DepthwiseConv2D(1, use_bias=False, name="depthwise")(maps)
    model = keras.Model(inputs, maps, name=name)
    for layer, arrays in WEIGHTS.items():
        model.get_layer(layer).set_weights(list(arrays.values()))
    return model

"""Weights in a file without an architecture, loaded into a network of keras.applications."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

from serving.errors import InputError
from serving.text import first_line
from trainer.backbones.keras_files.applications import Application
from trainer.backbones.keras_files.contents import Contents, Kind, read_chunked

OLD_EPSILON = 1e-3
"""Epsilon of the batch normalisation of ResNet50 until Keras 2.2; now it is 1.001e-5."""

_OLD_LAYER = re.compile(r"(res|bn)(\d)([a-z])_branch(1|2[abc])")

_OLD_NAMES = {"conv1": "conv1_conv", "bn_conv1": "conv1_bn", "fc1000": "predictions"}

_PLACES = {"1": "0", "2a": "1", "2b": "2", "2c": "3"}
"""Place of a convolution in a block of ResNet: its old name -> its present one."""


def is_old_resnet(contents: Contents) -> bool:
    """Return true for weights of ResNet50 of 2016 to 2019 (fchollet/deep-learning-models, v0.2).

    Its layers have other names and another order than those of Keras today, so that they are loaded by name.
    """
    return "res2a_branch2a" in contents.layer_names


def rename_old_layer(name: str) -> str:
    """Return the present name of a layer of the old ResNet50; "" if it has no such layer.

    The old names are those of the Caffe model: res2a_branch2b is conv2_block1_2_conv.
    """
    if found := _OLD_LAYER.fullmatch(name):
        kind, stage, block, place = found.groups()
        suffix = "conv" if kind == "res" else "bn"
        return f"conv{stage}_block{ord(block) - ord('a') + 1}_{_PLACES[place]}_{suffix}"
    return _OLD_NAMES.get(name, "")


def build_network(keras: Any, application: Application, contents: Contents, file: Path, shown: str) -> Any:
    """Return the network with the weights of a file, with its classifier if the file has that.

    Args:
        keras: module keras, of Keras 3.
        application: network that the user named.
        contents: contents of the file.
        file: path of the file; its suffix is that of its kind.
        shown: name of the file for errors.

    Raises:
        InputError: the weights are not those of the network.
    """
    network = getattr(keras.applications, application.name)
    model = network(include_top=False, weights=None)
    if contents.arrays != len(model.variables):
        plain = len(model.variables)
        model = network(include_top=True, weights=None)
        if contents.arrays != len(model.variables):
            raise InputError(
                f"{shown} has {contents.arrays} arrays of weights; {application.name} has {plain}, and "
                f"{len(model.variables)} with its classifier.",
                remedy="Check --keras_application; of a network of your own save the whole model, with "
                "model.save('NAME.keras').",
            )
    try:
        if is_old_resnet(contents):
            _load_old_resnet(model, file)
        else:
            model.load_weights(str(file))
    except (ValueError, KeyError, OSError) as error:
        raise InputError(
            f"The weights in {shown} do not fit {application.name}: {explain(error)}",
            remedy="Check --keras_application; a network of another width (alpha) needs its whole model, "
            "saved with model.save('NAME.keras').",
        ) from error
    return model


def _load_old_resnet(model: Any, file: Path) -> None:
    """Set the weights of ResNet50 from a file with the old names of layers.

    Raises:
        ValueError: a layer is unknown, or its weights have other shapes.
    """
    import h5py

    with h5py.File(file, "r") as opened:
        for name in read_chunked(opened, "layer_names"):
            weights = [opened[name][key][()] for key in read_chunked(opened[name], "weight_names")]
            if weights:
                model.get_layer(rename_old_layer(name) or name).set_weights(weights)
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.epsilon = OLD_EPSILON


def explain(error: Exception) -> str:
    """Return what an error of Keras says, in one line: without the settings of layers, which may be long."""
    text = re.sub(r" using config=.*?Exception encountered: ", ": ", str(error), flags=re.DOTALL)
    return textwrap.shorten(first_line(ValueError(text)), 300)


def suffix_of(kind: Kind) -> str:
    """Return the suffix by which Keras chooses how to load a kind of file."""
    return {
        Kind.ARCHIVE: ".keras",
        Kind.MODEL: ".h5",
        Kind.WEIGHTS_BY_LAYER: ".h5",
        Kind.WEIGHTS_BY_OBJECT: ".weights.h5",
    }[kind]

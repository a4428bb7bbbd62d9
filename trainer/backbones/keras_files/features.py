"""The output of a Keras model that is the feature vector: its own, or the one before its classifier.

Models are those of Keras 3 or of tf_keras, whose tensors both record the layer that returned them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serving.errors import InputError
from trainer.backbones.interface import CLASS_COUNTS

_PROBABILITIES = ("softmax", "sigmoid")

_INERT = ("Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout2D")
"""Layers that do nothing outside training."""


@dataclass(frozen=True, slots=True)
class Features:
    """Output of a model that is the feature vector.

    Attributes:
        tensor: symbolic output, [N,D] or feature maps [N,H,W,D].
        layer: name of the layer that returns it.
        labels: number of labels of the classifier that was cut off; 0 if there was none.
    """

    tensor: Any
    layer: str
    labels: int = 0


def describe_shape(tensor: Any) -> str:
    """Return the shape of a symbolic tensor for people, such as N x 224 x 224 x 3; ? for an open side."""
    return " x ".join(["N", *("?" if size is None else str(size) for size in tuple(tensor.shape)[1:])])


def check_input(model: Any, shown: str) -> tuple[int | None, int | None]:
    """Return height and width of the photos that a model takes; None where it takes any.

    Raises:
        InputError: it does not take one batch of photos, or has several outputs.
    """
    inputs, outputs = (_list_tensors(model, name) for name in ("inputs", "outputs"))
    if not inputs:
        raise InputError(
            f"The model in {shown} has no input shape.",
            remedy="Begin it with keras.Input((224, 224, 3)), and save it again.",
        )
    if len(inputs) > 1 or len(outputs) > 1:
        raise InputError(
            f"The model in {shown} has {len(inputs)} inputs and {len(outputs)} outputs; expected photos and "
            "features.",
            remedy="Save keras.Model(inputs, features) with one of each.",
        )
    shape = tuple(inputs[0].shape)
    if len(shape) == 4 and shape[3] == 3:
        return shape[1], shape[2]
    first = " (channels_first; expected channels_last)" if len(shape) == 4 and shape[1] == 3 else ""
    raise InputError(
        f"The model in {shown} takes {describe_shape(inputs[0])}{first}; expected photos, "
        "N x height x width x 3.",
        remedy="Give a network for colour photos.",
    )


def find_features(keras: Any, model: Any, shown: str) -> Features:
    """Return the output of a model that is the feature vector.

    A classifier at the end is cut off: the last Dense layer (or convolution of one pixel) if it is followed
    by softmax or sigmoid or has as many outputs as ImageNet has classes. If a Flatten is before it, the
    feature maps are averaged in its place.

    Args:
        keras: module keras or tf_keras, of the model.
        model: model with one input and one output.
        shown: name of the file for errors.

    Raises:
        InputError: the output is neither feature vectors nor feature maps.
    """
    tensor = _list_tensors(model, "outputs")[0]
    features = _cut_classifier(keras, tensor) or Features(tensor, _layer_of(tensor).name)
    if len(tuple(features.tensor.shape)) not in (2, 4):
        raise InputError(
            f"The model in {shown} returns {describe_shape(features.tensor)}; expected feature vectors, "
            "N x D, or feature maps, N x height x width x D, which are averaged.",
            remedy="Save keras.Model(model.input, features), with a pooling layer at its end.",
        )
    return features


def _list_tensors(model: Any, name: str) -> list[Any]:
    """Return the inputs or outputs of a model; none of a Sequential without an input shape."""
    try:
        return list(getattr(model, name) or [])
    except (AttributeError, ValueError):
        return []


def _layer_of(tensor: Any) -> Any:
    return tensor._keras_history[0]


def _source_of(tensor: Any) -> Any:
    """Return the tensor that a layer with one input computed another from."""
    layer, node, _ = tensor._keras_history
    inputs = layer._inbound_nodes[node].input_tensors
    return inputs[0] if isinstance(inputs, list | tuple) else inputs


def _cut_classifier(keras: Any, tensor: Any) -> Features | None:
    """Return the features before the classifier that a tensor comes from; None if there is no classifier."""
    is_probability = False
    while True:
        layer = _layer_of(tensor)
        kind = type(layer).__name__
        activation = getattr(getattr(layer, "activation", None), "__name__", "")
        is_probability |= kind == "Softmax" or activation in _PROBABILITIES
        if isinstance(layer, keras.Model):
            return _cut_nested(keras, layer, tensor)
        if kind == "InputLayer":
            return None
        source = _source_of(tensor)
        if kind == "Dense" or (kind == "Conv2D" and tuple(source.shape)[1:3] == (1, 1)):
            labels = int(tensor.shape[-1])
            return _clean(source, labels) if is_probability or labels in CLASS_COUNTS else None
        if kind not in (*_INERT, "Activation", "Flatten", "Reshape", "Softmax"):
            return None
        tensor = source


def _cut_nested(keras: Any, nested: Any, tensor: Any) -> Features | None:
    """Return the features before the classifier at the end of a model inside another one."""
    found = _cut_classifier(keras, nested.outputs[0])
    if found is None:
        return None
    part = keras.Model(nested.inputs[0], found.tensor, name=nested.name)
    return Features(part(_source_of(tensor)), found.layer, found.labels)


def _clean(tensor: Any, labels: int) -> Features:
    """Return the input of a classifier, before inert layers and a Flatten of feature maps."""
    while type(_layer_of(tensor)).__name__ in _INERT:
        tensor = _source_of(tensor)
    if type(_layer_of(tensor)).__name__ == "Flatten" and len(tuple(_source_of(tensor).shape)) == 4:
        tensor = _source_of(tensor)
    return Features(tensor, _layer_of(tensor).name, labels)

"""The architecture in a Keras file (its JSON configuration), read before Keras builds anything from it.

Keras instantiates the classes that a configuration names, and some of them run code from the file or read
other files: `Lambda`, but also any function of TensorFlow in files of Keras 2, whose loader for HDF5 files
has no safe mode. So only classes that networks for photos consist of are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serving.errors import InputError
from trainer.backbones.keras_files.applications import Application, find_application

MODELS = frozenset({"Functional", "Model", "Sequential"})

_LAYERS = re.compile(
    "Activation|ActivityRegularization|Add|Average|AveragePooling2D|BatchNormalization|CenterCrop|Concatenate|"
    "Conv2D|Conv2DTranspose|Cropping2D|Dense|DepthwiseConv2D|Dropout|ELU|Flatten|GaussianDropout|"
    "GaussianNoise|GlobalAveragePooling2D|GlobalMaxPooling2D|GroupNormalization|Identity|InputLayer|"
    "LayerNormalization|LayerScale|LeakyReLU|MaxPooling2D|Maximum|Minimum|Multiply|Normalization|PReLU|Permute|"
    "Random(Brightness|Contrast|Crop|Flip|Height|Rotation|Translation|Width|Zoom)|ReLU|Rescaling|Reshape|"
    "Resizing|SeparableConv2D|Softmax|SpatialDropout2D|StochasticDepth|Subtract|ThresholdedReLU|"
    "UnitNormalization|UpSampling2D|ZeroPadding2D"
)

_SETTINGS = re.compile(
    # Initialisers, regularisers, constraints, types.
    "Constant|GlorotNormal|GlorotUniform|HeNormal|HeUniform|LecunNormal|LecunUniform|Ones|Orthogonal|"
    "OrthogonalInitializer|RandomNormal|RandomUniform|TruncatedNormal|VarianceScaling|Zeros|"
    "L1|L1L2|L2|OrthogonalRegularizer|MaxNorm|MinMaxNorm|NonNeg|UnitNorm|"
    "DTypePolicy|DTypePolicyMap|Policy|SeedGenerator|"
    # Values: tensors of the graph, arrays, tuples.
    "__keras_tensor__|__numpy__|__tensor__|__ellipsis__|__slice__|__tuple__|TensorShape"
)

_FUNCTIONS = re.compile(
    "celu|elu|exponential|gelu|hard_sigmoid|hard_silu|hard_swish|leaky_relu|linear|log_softmax|mish|relu|relu6|"
    "selu|sigmoid|silu|softmax|softplus|softsign|swish|tanh"
)
"""Activation functions, which a configuration may refer to by name."""

_TENSORFLOW = re.compile(
    r"__operators__\.(add|getitem|multiply|subtract)|cast|clip_by_value|concat|identity|"
    r"math\.(add|divide|minimum|multiply|reduce_mean|subtract|truediv)|"
    r"nn\.(bias_add|relu|relu6|sigmoid|silu|swish)|reshape|reverse|split|stack"
)
"""Functions of TensorFlow that a layer of Keras 2 (TFOpLambda, SlicingOpLambda) may call."""

_CALLS = ("TFOpLambda", "SlicingOpLambda")

_OPERATIONS = ("keras.src.ops.", "keras.ops.")
"""Modules of the operations of Keras 3, which compute with tensors alone."""

_AUGMENTATION = frozenset({"Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout2D"})
"""Layers that, like those whose name begins with Random, do nothing outside training."""

_SCALING = frozenset({"Normalization", "Rescaling"})


@dataclass(frozen=True, slots=True)
class Recognised:
    """Statement of a model about the pixel values that it expects.

    Attributes:
        application: network of keras.applications that it is or contains, by its name.
        is_direct: false if other operations come before that network, such as `preprocess_input`.
        scales: whether it begins by scaling its input, so that it expects pixels from 0 to 255.
    """

    application: Application | None = None
    is_direct: bool = True
    scales: bool = False

    @property
    def mode(self) -> str | None:
        """Mode of the pixel values (trainer.backbones.pixel_values); None if it is not known."""
        if self.scales:
            return "raw"
        if self.application is None or not self.is_direct or self.application.mode == "raw":
            return None  # raw: a network that scales its input, built without that
        return self.application.mode


def check_classes(config: Any, file: str) -> None:
    """Check that a configuration consists of classes that networks for photos consist of.

    Args:
        config: JSON value.
        file: name of the file for errors.

    Raises:
        InputError: it has another class or function.
    """
    for found in _iter_objects(config):
        name, inner = found["class_name"], found.get("config")
        if _is_accepted(found, name, inner):
            continue
        what = f"the class {name}"
        if name in (*_CALLS, "function"):
            what = f"the function {inner.get('function') if isinstance(inner, dict) else inner}"
        raise InputError(
            f"{file} contains {what}. Only Keras's own layers for photos are loaded, as others can run code "
            "from the file.",
            remedy="If you trust the file, load it with Keras in your own program, write a SavedModel with "
            "model.export(DIRECTORY), and give that directory.",
        )


def _is_accepted(found: dict[str, Any], name: Any, inner: Any) -> bool:
    module = found.get("module") or "keras"
    if not isinstance(name, str) or not isinstance(module, str):
        return False
    if name == "function":
        return isinstance(inner, str) and bool(_FUNCTIONS.fullmatch(inner))
    if name in _CALLS:
        called = inner.get("function") if isinstance(inner, dict) else None
        return isinstance(called, str) and bool(_TENSORFLOW.fullmatch(called))
    if module.startswith(_OPERATIONS):
        return True
    # tf_keras: Keras 2 under its later name. builtins: of tuples and arrays.
    ours = module.partition(".")[0] in ("keras", "tf_keras", "builtins")
    return ours and (name in MODELS or bool(_LAYERS.fullmatch(name) or _SETTINGS.fullmatch(name)))


def _iter_objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all serialised objects in a JSON value; not how the model was compiled, which is not loaded."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for key, inner in value.items():
            if key != "compile_config":
                yield from _iter_objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _iter_objects(inner)


def recognise(model: dict[str, Any]) -> Recognised:
    """Return what the configuration of a model, {"class_name": ..., "config": ...}, says about its input."""
    first = _list_first(model)
    scales = bool(first) and first[0].get("class_name") in _SCALING
    if found := find_application(_name_of(model)):
        return Recognised(found, True, scales)
    nested = [layer for layer in _list_layers(model) if layer.get("class_name") in MODELS]
    for layer in nested:
        inner = recognise(layer)
        if inner.application:
            is_direct = inner.is_direct and any(layer is one for one in first)
            return Recognised(inner.application, is_direct, scales or (is_direct and inner.scales))
    if first and first[0].get("class_name") in MODELS:
        scales = recognise(first[0]).scales
    return Recognised(scales=scales)


def _name_of(layer: dict[str, Any]) -> str:
    config = layer.get("config")
    name = (config.get("name") if isinstance(config, dict) else None) or layer.get("name")
    return name if isinstance(name, str) else ""


def _list_layers(model: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the layers of a model; until Keras 2.2.2 the configuration of a Sequential is their list."""
    config = model.get("config")
    layers = config.get("layers", []) if isinstance(config, dict) else config
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def _list_first(model: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the layers that take the input of a model, without those that do nothing outside training."""
    layers = _list_layers(model)
    if model.get("class_name") == "Sequential":
        return [layer for layer in layers if not _is_transparent(layer)][:1]
    transparent: set[str] = set()
    first = []
    for layer in layers:  # in topological order
        sources = set(_iter_sources(layer.get("inbound_nodes")))
        if not sources or sources & transparent:
            if _is_transparent(layer):
                transparent.add(str(layer.get("name") or _name_of(layer)))
            else:
                first.append(layer)
    return first


def _is_transparent(layer: dict[str, Any]) -> bool:
    kind = str(layer.get("class_name"))
    return kind == "InputLayer" or kind.startswith("Random") or kind in _AUGMENTATION


def _iter_sources(nodes: Any) -> Iterator[str]:
    """Yield the names of the layers that a layer reads from, in the notations of Keras 2 and 3.

    They are [name, node, tensor, arguments], and {"keras_history": [name, node, tensor]}.
    """
    if isinstance(nodes, dict):
        for inner in nodes.values():
            yield from _iter_sources(inner)
    elif isinstance(nodes, list):
        if len(nodes) >= 3 and isinstance(nodes[0], str) and isinstance(nodes[1], int):
            yield nodes[0]
        for inner in nodes:
            yield from _iter_sources(inner)

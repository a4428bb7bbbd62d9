"""How a loaded module is called: what photos it takes, and which of its outputs is the feature vector.

TF2 modules are called (tensorflow.org/hub/common_saved_model_apis/images); modules in the format
of TF1 Hub, and SavedModels of other makers, have signatures alone
(tensorflow.org/hub/common_signatures/images).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from serving.contract import SAVED_MODEL_FILE
from serving.errors import InputError
from trainer.backbones.aliases import UNIT_RANGE, alias_of

SIGNATURES = ("image_feature_vector", "image_feature-vector", "default", "serving_default")
"""By preference: a TF1 classifier has its features under the first; EfficientNet-Lite spells it so."""

OUTPUTS = ("default", "feature_vector")
"""The output that is taken where there are several."""

CLASS_COUNTS = (1000, 1001, 21841, 21843)
"""Outputs of ImageNet classifiers, in their editions of 1,000 and 21,000 classes."""

BYTE_RANGE = (0.0, 255.0)

OPEN_IMAGE_SIZE = (224, 224)
"""Input size for a module that takes any, and is no alias."""

_ATTACHMENTS, _IMAGE_INFO = "hub_module_attachments", "image_module_info"


@dataclass(frozen=True, slots=True)
class InputOptions:
    """What the user states of a module that does not say it itself.

    Attributes:
        image_size: (height, width) of the photos; None for what the module says.
        value_range: what a black and a white pixel are; None for [0,1], as the Hub's modules take
            them, or 0 to 255 where the module takes whole numbers.
    """

    image_size: tuple[int, int] | None = None
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.value_range and not -math.inf < self.value_range[0] < self.value_range[1] < math.inf:
            raise InputError(
                f"{self.value_range[0]:g} to {self.value_range[1]:g} is no range of values.",
                remedy="Give the lower one first, as in 0,1 or -1,1 or 0,255.",
            )
        if self.image_size and min(self.image_size) < 1:
            raise InputError(f"Photos of {self.image_size[0]} x {self.image_size[1]} pixels do not exist.")


def input_key(handle: str, options: InputOptions) -> list[Any]:
    """What makes the graph of a backbone besides its SavedModel, as JSON: a part of a cache's key."""
    alias = alias_of(handle)
    return [alias.image_size if alias else None, options.image_size, options.value_range]


@dataclass(frozen=True, slots=True)
class Interface:
    """A module's way from photos to feature vectors.

    Attributes:
        call: photos [N,H,W,3] as the module takes them -> its output.
        dtype: of those photos.
        image_size: (height, width).
        value_range: what a black and a white pixel are.
        dimension: length of a feature vector.
    """

    call: Callable[[Any], Any]
    dtype: Any
    image_size: tuple[int, int]
    value_range: tuple[float, float]
    dimension: int

    def apply(self, pixels: Any) -> Any:
        """Features float32 [N,D] of photos float32 [N,H,W,3] in [0,1]."""
        return self.call(_as_taken(pixels, self.value_range, self.dtype))

    def identify(self, fingerprint: str) -> str:
        """A SavedModel's fingerprint, another one where its pixels are not as the Hub's modules take them."""
        if self.value_range == UNIT_RANGE:
            return fingerprint
        return hashlib.sha256(f"{fingerprint} {self.value_range}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Entry:
    """One way to call a module, under a name for people."""

    name: str
    call: Callable[[Any], Any]
    dtype: Any


def of(module: Any, path: str, handle: str, options: InputOptions, say: Callable[[str], None]) -> Interface:
    """Find out how a module is called, by a run on two blank photos.

    Args:
        module: loaded from `path`.
        path: the SavedModel's directory.
        handle: as it was asked for.
        options: what the user states.
        say: called with one line for what neither module nor user states.

    Raises:
        InputError: it gives no feature vectors, or what the user states is wrong.
    """
    if not callable(module) and _has_reference_variables(path):
        raise InputError(
            f"The backbone {handle} keeps its weights in TensorFlow 1's reference variables, which "
            "TensorFlow 2 runs but cannot write again.",
            remedy="Export it with tf.compat.v1.enable_resource_variables(), as modules of the Hub are.",
        )
    image_size = _image_size(module, path, handle, options, say)
    found = []
    for entry in _entries(module):
        value_range = options.value_range or (BYTE_RANGE if entry.dtype.is_integer else UNIT_RANGE)
        output = _try(entry, image_size, value_range)
        if _is_feature_vector(output):
            _refuse_classifier(int(output.shape[-1]), handle)
            return Interface(entry.call, entry.dtype, image_size, value_range, int(output.shape[-1]))
        found.append(f"{entry.name} {_described(output)}")
    raise InputError(
        f"The backbone {handle} is no feature vector, which gives float32 (2, D) for 2 photos of "
        f"{image_size[0]} x {image_size[1]}: {'; '.join(found) or _signatures(module)}.",
        remedy="Give a module whose name ends in feature_vector; feature maps need a global pooling.",
    )


def _entries(module: Any) -> Iterator[_Entry]:
    import tensorflow as tf

    if callable(module):
        traces = getattr(getattr(module, "__call__", None), "concrete_functions", ())  # noqa: B004
        dtype = next((spec.dtype for trace in traces for spec in _images(trace)), tf.float32)
        yield _Entry("called with photos, it gives", lambda pixels: _picked(module(pixels)), dtype)
        if any("training" in trace.structured_input_signature[1] or _flags(trace) for trace in traces):
            yield _Entry(
                "called with photos and training=False, it gives",
                lambda pixels: _picked(module(pixels, training=False)),
                dtype,
            )
    for name in SIGNATURES:
        if name in module.signatures:
            yield from _of_signature(name, module.signatures[name])


def _flags(trace: Any) -> bool:
    """Whether a trace was made with a truth value among its arguments, as with training."""
    import tensorflow as tf

    return any(isinstance(value, bool) for value in tf.nest.flatten(trace.structured_input_signature))


def _of_signature(name: str, signature: Any) -> Iterator[_Entry]:
    inputs = signature.structured_input_signature[1]
    if len(inputs) == 1:
        ((argument, spec),) = inputs.items()
        yield _Entry(
            f"its signature {name} gives",
            lambda pixels: _picked(signature(**{argument: pixels})),
            spec.dtype,
        )


def _picked(output: Any) -> Any:
    """The feature vector among several outputs, where one is named so or there is but one."""
    if not isinstance(output, Mapping):
        return output
    for name in OUTPUTS:
        if name in output:
            return output[name]
    return next(iter(output.values())) if len(output) == 1 else output


def _try(entry: _Entry, image_size: tuple[int, int], value_range: tuple[float, float]) -> Any:
    """What an entry gives for two blank photos, or the exception."""
    import tensorflow as tf

    try:
        return entry.call(_as_taken(tf.zeros([2, *image_size, 3]), value_range, entry.dtype))
    except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
        return error


def _as_taken(pixels: Any, value_range: tuple[float, float], dtype: Any) -> Any:
    """Photos float32 in [0,1] as a module takes them."""
    import tensorflow as tf

    low, high = value_range
    scaled = pixels if value_range == UNIT_RANGE else pixels * (high - low) + low
    if dtype == tf.float32:
        return scaled
    return tf.cast(tf.round(scaled) if dtype.is_integer else scaled, dtype)


def _is_feature_vector(output: Any) -> bool:
    import tensorflow as tf

    return bool(tf.is_tensor(output) and output.dtype == tf.float32 and output.shape[:-1] == [2])


def _refuse_classifier(dimension: int, handle: str) -> None:
    if dimension not in CLASS_COUNTS:
        return
    swapped = (
        alias_of(handle.replace("classification", name)) for name in ("feature_vector", "feature-vector")
    )
    known = next((alias.handle for alias in swapped if alias and "classification" in handle), "")
    raise InputError(
        f"The backbone {handle} is a classifier, no feature vector: for a photo it gives {dimension} "
        "numbers, one for each class of ImageNet.",
        remedy=f"Give {known}." if known else "Give the module of the same name with feature_vector in it.",
    )


def _described(output: Any) -> str:
    """What a run gave for two photos, in words."""
    import tensorflow as tf

    if isinstance(output, Exception):
        return f"an error ({first_line(output)})"
    if isinstance(output, Mapping):
        return (
            "several outputs ("
            + ", ".join(f"{key} {_described(output[key])}" for key in sorted(output))
            + ")"
        )
    if not tf.is_tensor(output):
        return f"a {type(output).__name__}"
    kind = "feature maps " if output.shape.rank == 4 else ""
    return f"{kind}{output.dtype.name} {output.shape}"


def _signatures(module: Any) -> str:
    signatures = [
        f"{name}({', '.join(sorted(signature.structured_input_signature[1]))})"
        for name, signature in module.signatures.items()
    ]
    return (
        f"it cannot be called, and of its signatures ({', '.join(signatures) or 'none at all'}) none is "
        f"{', '.join(SIGNATURES)} of one input"
    )


def _image_size(
    module: Any, path: str, handle: str, options: InputOptions, say: Callable[[str], None]
) -> tuple[int, int]:
    fixed = _fixed_image_size(module)
    if fixed and options.image_size not in (None, fixed):
        raise InputError(
            f"The backbone {handle} takes photos of {fixed[0]} x {fixed[1]} pixels alone.",
            remedy="Leave the image size out.",
        )
    known = fixed or options.image_size or _attached_image_size(path)
    if known:
        return known
    alias = alias_of(handle)
    if alias:
        return alias.image_size
    say(
        f"{handle} leaves its input size open: taking {OPEN_IMAGE_SIZE[0]} x {OPEN_IMAGE_SIZE[1]}, "
        "unless --image_size states another"
    )
    return OPEN_IMAGE_SIZE


def _fixed_image_size(module: Any) -> tuple[int, int] | None:
    """(height, width) of the first image input that fixes both."""
    call = getattr(module, "__call__", None)  # noqa: B004 - its traces are wanted
    for function in (*module.signatures.values(), *getattr(call, "concrete_functions", ())):
        for spec in _images(function):
            height, width = spec.shape[1:3].as_list()
            if height and width:
                return height, width
    return None


def _images(function: Any) -> Iterator[Any]:
    """The specs of a function's inputs that can be a batch of photos."""
    import tensorflow as tf

    for spec in tf.nest.flatten(function.structured_input_signature):
        if isinstance(spec, tf.TensorSpec) and spec.shape.rank == 4 and spec.shape[-1] in (3, None):
            yield spec


def _attached_image_size(path: str) -> tuple[int, int] | None:
    """(height, width) that a TF1 module of variable size was trained for.

    It is attached to the graph as hub.ImageModuleInfo. The layouts (tensorflow_hub/*.proto, 0.15):
    ModuleAttachment { string key = 1; bytes value = 2; }
    ImageModuleInfo { InputSize default_image_size = 1; }, InputSize { int32 height = 1, width = 2; }
    """
    for meta_graph in read(path).meta_graphs:
        for attached in meta_graph.collection_def[_ATTACHMENTS].bytes_list.value:
            message = _fields(attached)
            if message.get(1) == _IMAGE_INFO.encode():
                size = _fields(_fields(message.get(2, b"")).get(1, b""))
                if size.get(1) and size.get(2):
                    return size[1], size[2]
    return None


def _fields(message: bytes) -> dict[int, Any]:
    """Number -> value of a serialised message's fields; nothing of what is none."""
    from google.protobuf.empty_pb2 import Empty
    from google.protobuf.message import DecodeError
    from google.protobuf.unknown_fields import UnknownFieldSet

    try:
        fields = UnknownFieldSet(Empty.FromString(message))
    except DecodeError:
        return {}
    return {fields[index].field_number: fields[index].data for index in range(len(fields))}


def _has_reference_variables(path: str) -> bool:
    return any(
        node.op in ("VariableV2", "Variable")
        for meta_graph in read(path).meta_graphs
        for node in meta_graph.graph_def.node
    )


def is_of_keras(path: str) -> bool:
    """Whether Keras wrote a SavedModel, whose applications take other pixels than the Hub's modules."""
    children = {
        child.local_name
        for meta_graph in read(path).meta_graphs
        for node in meta_graph.object_graph_def.nodes[:1]
        for child in node.children
    }
    return bool(children & {"keras_api", "_misc_assets", "_default_save_signature"})


def read(path: str) -> Any:
    """The SavedModel message of a directory that has been loaded."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    with tf.io.gfile.GFile(f"{path}/{SAVED_MODEL_FILE}", "rb") as file:
        return saved_model_pb2.SavedModel.FromString(file.read())


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

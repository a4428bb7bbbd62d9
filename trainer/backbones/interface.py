"""Interface of a loaded module: its input photos, and the output that is the feature vector.

TF2 modules are callable (tensorflow.org/hub/common_saved_model_apis/images). Modules in the TF1 Hub
format, and SavedModels from other sources, only have signatures
(tensorflow.org/hub/common_signatures/images).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from serving.contract import SAVED_MODEL_FILE
from serving.errors import InputError
from serving.text import first_line
from trainer.backbones.aliases import UNIT_RANGE, find_alias
from trainer.backbones.keras_files.applications import require_application
from trainer.backbones.pixel_values import BYTE_RANGE, CHANNEL_MODES, MODES, normalise_channels

SIGNATURES = ("image_feature_vector", "image_feature-vector", "default", "serving_default")
"""Signatures by preference. TF1 classifiers have their features under the first one, which EfficientNet-Lite
spells as the second."""

OUTPUTS = ("default", "feature_vector")
"""Names of the feature vector among several outputs, by preference."""

CLASS_COUNTS = (1000, 1001, 21841, 21843)
"""Numbers of outputs of ImageNet classifiers, with 1,000 and 21,000 classes."""

OPEN_IMAGE_SIZE = (224, 224)
"""Input size of a module that accepts any size and has no alias."""

_ATTACHMENTS, _IMAGE_INFO = "hub_module_attachments", "image_module_info"


@dataclass(frozen=True, slots=True)
class InputOptions:
    """Properties of a module's input that the user specifies, since the module does not.

    Attributes:
        image_size: (height, width) of the photos; None for the size of the module.
        value_range: values of a black and a white pixel; None for [0,1], the convention of TensorFlow
            Hub, or for 0 to 255 if the input has an integer type.
        preprocessing: mode of the pixel values instead of `value_range` (trainer.backbones.pixel_values).
        input_tensor: tensor of the photos in a frozen graph (trainer.backbones.frozen_graph).
        output_tensor: tensor of the features in a frozen graph.
        keras_application: network of keras.applications in a Keras file (trainer.backbones.keras_files).
    """

    image_size: tuple[int, int] | None = None
    value_range: tuple[float, float] | None = None
    preprocessing: str | None = None
    input_tensor: str | None = None
    output_tensor: str | None = None
    keras_application: str | None = None

    def __post_init__(self) -> None:
        if self.keras_application:
            require_application(self.keras_application)
        if self.preprocessing and self.preprocessing not in MODES:
            raise InputError(
                f"{self.preprocessing} is not a mode of preprocessing.",
                remedy=f"Give one of {', '.join(MODES)}.",
            )
        if self.preprocessing and self.value_range:
            raise InputError(
                f"Preprocessing {self.preprocessing} and the range {self.value_range[0]:g} to "
                f"{self.value_range[1]:g} both state the pixel values.",
                remedy="Give one of --preprocessing and --value_range.",
            )
        if self.value_range and not -math.inf < self.value_range[0] < self.value_range[1] < math.inf:
            raise InputError(
                f"{self.value_range[0]:g} to {self.value_range[1]:g} is not a valid range of values.",
                remedy="Give two finite numbers, the lower one first, such as 0,1 or -1,1 or 0,255.",
            )
        if self.image_size and min(self.image_size) < 1:
            raise InputError(
                f"{self.image_size[0]} x {self.image_size[1]} is not a valid image size.",
                remedy="Give a height and a width of at least 1 pixel.",
            )


def input_key(handle: str, options: InputOptions) -> list[Any]:
    """Return what determines the graph of a backbone beside its SavedModel, as JSON, for a cache key."""
    alias = find_alias(handle)
    mode = [options.preprocessing] if options.preprocessing else []
    return [alias.image_size if alias else None, options.image_size, options.value_range, *mode]


@dataclass(frozen=True, slots=True)
class Interface:
    """Way to call a module for feature vectors.

    Attributes:
        call: function from photos [N,H,W,3], in the module's type and value range, to its output.
        dtype: type of the photos.
        image_size: (height, width) of the photos.
        value_range: values of a black and a white pixel.
        dimension: length of a feature vector, D.
        channels: mode in CHANNEL_MODES by which the channels are normalised after that; "" for none.
    """

    call: Callable[[Any], Any]
    dtype: Any
    image_size: tuple[int, int]
    value_range: tuple[float, float]
    dimension: int
    channels: str = ""

    def apply(self, pixels: Any) -> Any:
        """Return features float32 [N,D] of photos float32 [N,H,W,3] in [0,1]."""
        import tensorflow as tf

        low, high = self.value_range
        scaled = pixels if self.value_range == UNIT_RANGE else pixels * (high - low) + low
        if self.channels:
            scaled = normalise_channels(scaled, self.channels)
        if self.dtype != tf.float32:
            scaled = tf.cast(tf.round(scaled) if self.dtype.is_integer else scaled, self.dtype)
        return _pick_output(self.call(scaled))

    def extend_fingerprint(self, fingerprint: str) -> str:
        """Return a SavedModel's fingerprint, combined with the pixel values if those are not just [0,1]."""
        if self.value_range == UNIT_RANGE and not self.channels:
            return fingerprint
        parts = [fingerprint, str(self.value_range), *([self.channels] if self.channels else [])]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def to_options(self) -> InputOptions:
        """Return options that state this input."""
        if self.channels:
            return InputOptions(self.image_size, preprocessing=self.channels)
        return InputOptions(self.image_size, self.value_range)


def inspect_module(
    module: Any, path: str, handle: str, options: InputOptions, say: Callable[[str], None]
) -> Interface:
    """Determine the interface of a module by calling it with two blank photos.

    Args:
        module: module that was loaded from `path`.
        path: directory of the SavedModel.
        handle: handle as the user gave it.
        options: properties that the user specified.
        say: called with one line for each assumption.

    Raises:
        InputError: the module does not compute feature vectors, or an option contradicts it.
    """
    import tensorflow as tf

    if not callable(module) and _has_reference_variables(path):
        raise InputError(
            f"The backbone {handle} has its weights in reference variables of TensorFlow 1, which "
            "TensorFlow 2 can run but not save.",
            remedy="Export it with tf.compat.v1.enable_resource_variables(), as Hub modules are.",
        )
    image_size = _determine_image_size(module, path, handle, options, say)
    found = []
    for description, call, dtype in _list_entry_points(module):
        stated = MODES[options.preprocessing] if options.preprocessing else options.value_range
        value_range = stated or (BYTE_RANGE if dtype.is_integer else UNIT_RANGE)
        channels = options.preprocessing if options.preprocessing in CHANNEL_MODES else ""
        candidate = Interface(call, dtype, image_size, value_range, dimension=0, channels=channels or "")
        try:
            output = candidate.apply(tf.zeros([2, *image_size, 3]))
        except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
            output = error
        if tf.is_tensor(output) and output.dtype == tf.float32 and output.shape[:-1] == [2]:
            dimension = int(output.shape[-1])
            _reject_classifier(dimension, handle)
            return replace(candidate, dimension=dimension)
        found.append(f"{description} {_describe_output(output)}")
    raise InputError(
        f"The backbone {handle} does not compute feature vectors. Expected float32 (2, D) for 2 photos of "
        f"{image_size[0]} x {image_size[1]}; {'; '.join(found) or _describe_signatures(module)}.",
        remedy="Give a module whose name ends in feature_vector; feature maps need global pooling.",
    )


def _list_entry_points(module: Any) -> Iterator[tuple[str, Callable[[Any], Any], Any]]:
    """Yield the ways to call a module: itself, with training=False, and its signatures by preference.

    Each is a description for errors, a function from photos to the output, and the type of the photos.
    """
    import tensorflow as tf

    if callable(module):
        traces = getattr(getattr(module, "__call__", None), "concrete_functions", ())  # noqa: B004
        dtype = next((spec.dtype for trace in traces for spec in _iter_image_specs(trace)), tf.float32)
        yield "called with photos, it returns", module, dtype
        arguments = [trace.structured_input_signature for trace in traces]
        if any("training" in named for _, named in arguments) or any(
            isinstance(value, bool) for value in tf.nest.flatten(arguments)
        ):
            call = functools.partial(module, training=False)
            yield "called with photos and training=False, it returns", call, dtype
    for name in SIGNATURES:
        inputs = module.signatures[name].structured_input_signature[1] if name in module.signatures else {}
        if len(inputs) == 1:
            ((argument, spec),) = inputs.items()
            call = functools.partial(_call_signature, module.signatures[name], argument)
            yield f"its signature {name} returns", call, spec.dtype


def _call_signature(signature: Any, argument: str, pixels: Any) -> Any:
    return signature(**{argument: pixels})


def _pick_output(output: Any) -> Any:
    """Return the feature vector among several outputs, by its name or if it is the only one."""
    if not isinstance(output, Mapping):
        return output
    for name in OUTPUTS:
        if name in output:
            return output[name]
    return next(iter(output.values())) if len(output) == 1 else output


def _reject_classifier(dimension: int, handle: str) -> None:
    """Raise InputError if the dimension is that of an ImageNet classifier; suggest its feature vector."""
    if dimension not in CLASS_COUNTS:
        return
    swapped = (
        find_alias(handle.replace("classification", name)) for name in ("feature_vector", "feature-vector")
    )
    known = next((alias.handle for alias in swapped if alias and "classification" in handle), "")
    raise InputError(
        f"The backbone {handle} is a classifier: it returns {dimension} numbers per photo, one for each "
        "class of ImageNet. Expected a feature vector.",
        remedy=f"Use {known}." if known else "Use the module of the same name with feature_vector in it.",
    )


def _describe_output(output: Any) -> str:
    """Return a description of the output for two photos, for errors."""
    import tensorflow as tf

    if isinstance(output, Exception):
        return f"an error ({first_line(output)})"
    if isinstance(output, Mapping):
        parts = ", ".join(f"{key} {_describe_output(output[key])}" for key in sorted(output))
        return f"several outputs ({parts})"
    if not tf.is_tensor(output):
        return f"a {type(output).__name__}"
    kind = "feature maps " if output.shape.rank == 4 else ""
    return f"{kind}{output.dtype.name} {output.shape}"


def _describe_signatures(module: Any) -> str:
    """Return a description of the signatures of a module that has no usable one."""
    signatures = [
        f"{name}({', '.join(sorted(signature.structured_input_signature[1]))})"
        for name, signature in module.signatures.items()
    ]
    return (
        f"it is not callable, and none of its signatures ({', '.join(signatures) or 'it has none'}) is "
        f"{', '.join(SIGNATURES)} with one input"
    )


def _determine_image_size(
    module: Any, path: str, handle: str, options: InputOptions, say: Callable[[str], None]
) -> tuple[int, int]:
    """Return (height, width) of the input: that of the module, the options, the alias, or a default."""
    fixed = _find_fixed_image_size(module)
    if fixed and options.image_size not in (None, fixed):
        raise InputError(
            f"The backbone {handle} only accepts photos of {fixed[0]} x {fixed[1]} pixels.",
            remedy="Remove --image_size.",
        )
    alias = find_alias(handle)
    known = fixed or options.image_size or _find_attached_image_size(path) or (alias and alias.image_size)
    if known:
        return known
    say(
        f"{handle} accepts any input size: using {OPEN_IMAGE_SIZE[0]} x {OPEN_IMAGE_SIZE[1]}. "
        "Set --image_size for another one"
    )
    return OPEN_IMAGE_SIZE


def _find_fixed_image_size(module: Any) -> tuple[int, int] | None:
    """Return (height, width) of the first image input that specifies both, else None."""
    call = getattr(module, "__call__", None)  # noqa: B004 - for its traces
    for function in (*module.signatures.values(), *getattr(call, "concrete_functions", ())):
        for spec in _iter_image_specs(function):
            height, width = spec.shape[1:3].as_list()
            if height and width:
                return height, width
    return None


def _iter_image_specs(function: Any) -> Iterator[Any]:
    """Yield the specs of a function's inputs that can be a batch of photos."""
    import tensorflow as tf

    for spec in tf.nest.flatten(function.structured_input_signature):
        if isinstance(spec, tf.TensorSpec) and spec.shape.rank == 4 and spec.shape[-1] in (3, None):
            yield spec


def _find_attached_image_size(path: str) -> tuple[int, int] | None:
    """Return (height, width) that a TF1 module of variable size was trained for, else None.

    It is attached to the graph as hub.ImageModuleInfo. The messages (tensorflow_hub/*.proto, 0.15) are:
    ModuleAttachment { string key = 1; bytes value = 2; }
    ImageModuleInfo { InputSize default_image_size = 1; }, InputSize { int32 height = 1, width = 2; }
    """
    for meta_graph in read_saved_model(path).meta_graphs:
        for attached in meta_graph.collection_def[_ATTACHMENTS].bytes_list.value:
            message = _parse_fields(attached)
            if message.get(1) == _IMAGE_INFO.encode():
                size = _parse_fields(_parse_fields(message.get(2, b"")).get(1, b""))
                if size.get(1) and size.get(2):
                    return size[1], size[2]
    return None


def _parse_fields(message: bytes) -> dict[int, Any]:
    """Return number -> value of a serialised message's fields; empty if it is not a message."""
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
        for meta_graph in read_saved_model(path).meta_graphs
        for node in meta_graph.graph_def.node
    )


def is_keras_model(path: str) -> bool:
    """Return true if Keras saved the SavedModel; its applications expect other pixels than Hub modules do."""
    children = {
        child.local_name
        for meta_graph in read_saved_model(path).meta_graphs
        for node in meta_graph.object_graph_def.nodes[:1]
        for child in node.children
    }
    return bool(children & {"keras_api", "_misc_assets", "_default_save_signature"})


def read_saved_model(path: str) -> Any:
    """Return the SavedModel message of a directory."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    with tf.io.gfile.GFile(f"{path}/{SAVED_MODEL_FILE}", "rb") as file:
        return saved_model_pb2.SavedModel.FromString(file.read())

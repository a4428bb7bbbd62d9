"""Conversion of a bundle to a TensorFlow Lite file, for apps that classify on the phone.

The file takes pixels uint8 [1,H,W,3], upright and resized, and returns the calibrated probabilities
float32 [1,K]: the part of signature `classify_pixels` before it picks the best labels. TensorFlow Lite
has no ops that decode photos. The labels are inside the file, where MediaPipe and the Task Library look
for them (trainer/export/tflite_metadata.py).
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch.inputs.listing import find_photos, read_photo
from serving import contract
from serving.bundle import Bundle, BundleMetadata
from serving.errors import BundleError, GateRejected, InputError, OutputError
from serving.photos.converter import Converter
from serving.process import cores
from serving.storage import files
from serving.text import first_line
from trainer.evaluation.metrics import Proportion, proportion
from trainer.export.tflite_metadata import add_metadata
from trainer.heads import Floats
from trainer.preprocessing import Aspect, Preprocessing, decode_photos, is_usable

BUNDLE_FILE = "assets.extra/model.tflite"
"""Path of the file in a bundle."""

MAX_PHOTOS = 100
"""Largest number of photos that a file is checked on."""

_BATCH_SIZE = 16
"""Photos in one call of the bundle."""


class Quantize(StrEnum):
    """Type of the stored weights."""

    NONE = "none"
    FLOAT16 = "float16"
    DYNAMIC = "dynamic"

    @property
    def tolerance(self) -> float:
        """Largest difference of a probability from the bundle's that passes the check.

        Without quantisation, other kernels and the embedding that is not rounded to float16 cause
        differences of some 1e-3. Quantised weights change the probabilities themselves, so that mainly
        their labels are checked.
        """
        return {Quantize.NONE: 5e-3, Quantize.FLOAT16: 5e-2}.get(self, 1.0)

    @property
    def agreement(self) -> float:
        """Fraction of photos that must get the bundle's label; two close labels may swap."""
        return {Quantize.NONE: 0.99, Quantize.FLOAT16: 0.97}.get(self, 0.9)


@dataclass(frozen=True)
class TfliteOptions:
    """Options of a conversion.

    Attributes:
        quantize: type of the stored weights.
        photos: encoded photos to check the file on; empty for generated pictures.
    """

    quantize: Quantize = Quantize.NONE
    photos: Sequence[bytes] = ()


@dataclass(frozen=True)
class TfliteModel:
    """A converted model that has been checked against its bundle.

    Attributes:
        content: bytes of the file.
        quantize: type of the stored weights.
        agreement: fraction of the photos that get the bundle's label.
        largest_difference: largest difference of a probability from the bundle's.
        generated: True if it was checked on generated pictures instead of photos.
    """

    content: bytes
    quantize: Quantize
    agreement: Proportion
    largest_difference: float
    generated: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the result of the conversion as JSON values, as stored in hubhead.json."""
        return {
            "bytes": len(self.content),
            "sha256": hashlib.sha256(self.content).hexdigest(),
            "quantize": str(self.quantize),
            "label_agreement": asdict(self.agreement),
            "largest_difference": self.largest_difference,
            "checked_on": "generated pictures" if self.generated else "photos",
        }

    def __str__(self) -> str:
        return (
            f"{len(self.content) / 1e6:.1f} MB, quantised: {self.quantize}; same label as the bundle for "
            f"{self.agreement} {'generated pictures' if self.generated else 'photos'}, probabilities within "
            f"{self.largest_difference:.2g}"
        )


def convert(directory: Path, metadata: BundleMetadata, options: TfliteOptions) -> TfliteModel:
    """Convert a bundle's SavedModel, load the result, and compare its predictions with the bundle's.

    Args:
        directory: directory of the SavedModel.
        metadata: its metadata (hubhead.json).
        options: type of the weights, and photos for the check.

    Raises:
        BundleError: TensorFlow cannot convert its graph.
        InputError: none of the photos can be used.
        GateRejected: the converted model does not agree with the bundle.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(str(directory))
    preprocessing = _read_preprocessing(metadata)
    signature = loaded.signatures[contract.CLASSIFY_PIXELS]
    content = add_metadata(_convert_signature(signature, options.quantize), metadata)
    pixels = (
        decode_usable(options.photos, preprocessing) if options.photos else generate_pictures(preprocessing)
    )
    if not len(pixels):
        raise InputError("None of the photos can be used.", remedy="Give other photos for the check.")
    converted = run_interpreter(content, pixels)
    classes, scores = _run_signature(signature, pixels)
    # The bundle returns its best labels only: compare the converted probabilities of these.
    column = {label.encode(): index for index, label in enumerate(metadata.labels)}
    columns = np.vectorize(column.__getitem__, otypes=[np.int64])(classes)
    difference = float(np.abs(np.take_along_axis(converted, columns, axis=1) - scores).max(initial=0.0))
    same = int((converted.argmax(axis=1) == columns[:, 0]).sum())
    agreement = proportion(same, len(pixels))
    model = TfliteModel(content, options.quantize, agreement, difference, not options.photos)
    check_agreement(model)
    return model


def write(source: Bundle, file: Path, quantize: Quantize, photos: str = "") -> TfliteModel:
    """Convert a bundle and write the file.

    Args:
        source: the bundle.
        file: path of the file to write.
        quantize: type of the stored weights; all but `none` need photos.
        photos: directory or glob of photos for the check; "" checks on generated pictures.

    Raises:
        InputError: none of the photos can be used.
        OutputError: the file cannot be written.
        BundleError: the bundle has no head, or as `convert`.
        GateRejected: as `convert`.
    """
    source.require_head("head to convert")
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise OutputError(f"{file} cannot be written.", remedy="Give a file in a directory that exists.")
    encoded = _read_photos(photos) if photos else []
    model = convert(source.path, source.metadata, TfliteOptions(quantize, encoded))
    files.write(str(file), model.content)
    return model


def _read_photos(pattern: str) -> list[bytes]:
    """Read at most MAX_PHOTOS photos, evenly spaced among all, converted as for a model where needed."""
    found = find_photos(pattern)
    step = max(1, len(found) // MAX_PHOTOS)
    with Converter() as converter:
        sent = [converter.convert_if_needed(read_photo(photo)) for photo in found[::step][:MAX_PHOTOS]]
    return [photo for photo in sent if isinstance(photo, bytes)]


def check_agreement(model: TfliteModel) -> None:
    """Check that a converted model agrees with its bundle as well as its quantisation allows.

    Raises:
        GateRejected: too few labels agree, or a probability differs by too much.
    """
    required, tolerance = model.quantize.agreement, model.quantize.tolerance
    if model.agreement.value < required or model.largest_difference > tolerance:
        raise GateRejected(
            f"The TensorFlow Lite model does not agree with the bundle: {model}. Required are the same label "
            f"for {required:.0%} and probabilities within {tolerance:g}.",
            remedy="Nothing was published. Choose another --tflite_quantize."
            if model.quantize is not Quantize.NONE
            else "Nothing was published.",
        )


def decode_usable(photos: Sequence[bytes], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return pixels uint8 [N,H,W,3] of those photos that can be decoded, by the preprocessing of a bundle."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def decode(image_bytes: Any) -> Any:
        pixels, status, _, _ = decode_photos(image_bytes, preprocessing)
        return tf.boolean_mask(pixels, is_usable(status))

    parts = [
        decode(list(photos[start : start + _BATCH_SIZE])).numpy()
        for start in range(0, len(photos), _BATCH_SIZE)
    ]
    return np.concatenate(parts)


def generate_pictures(preprocessing: Preprocessing, count: int = 16) -> NDArray[np.uint8]:
    """Return smooth pictures uint8 [count,H,W,3], each a sum of a few waves, from a fixed seed."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0 : preprocessing.height, 0 : preprocessing.width]
    waves = random.uniform(-0.15, 0.15, (count, 3, 4, 2))
    phases = waves[..., 0, None, None] * rows + waves[..., 1, None, None] * columns
    pictures = np.cos(phases + random.uniform(0, 6, (count, 3, 4, 1, 1))).mean(axis=2)
    return np.ascontiguousarray((127.5 + 127 * pictures).astype(np.uint8).transpose(0, 2, 3, 1))


def run_interpreter(content: bytes, pixels: NDArray[np.uint8]) -> Floats:
    """Return the probabilities float32 [N,K] of a TensorFlow Lite file for pixels uint8 [N,H,W,3].

    Raises:
        BundleError: the file cannot be loaded.
    """
    import tensorflow as tf

    try:
        with warnings.catch_warnings():
            # The interpreter is moving to the package ai-edge-litert; TensorFlow still includes it.
            warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
            interpreter = tf.lite.Interpreter(model_content=content, num_threads=cores())
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise BundleError(f"The TensorFlow Lite file does not load: {error}") from error
    (input_,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for picture in pixels:
        interpreter.set_tensor(input_["index"], picture[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(output["index"])[0])
    return np.array(rows, np.float32).reshape(len(pixels), -1)


def _run_signature(signature: Any, pixels: NDArray[np.uint8]) -> tuple[NDArray[Any], Floats]:
    """Return `classes` object [N,k] of bytes and `scores` float32 [N,k] by the bundle's signature."""
    import tensorflow as tf

    answers = [
        signature(**{contract.PIXELS: tf.constant(pixels[start : start + _BATCH_SIZE])})
        for start in range(0, len(pixels), _BATCH_SIZE)
    ]
    classes = np.concatenate([answer[contract.CLASSES].numpy() for answer in answers])
    return classes, np.concatenate([answer[contract.SCORES].numpy() for answer in answers])


def _read_preprocessing(metadata: BundleMetadata) -> Preprocessing:
    settings = {name: value for name, value in metadata.preprocessing.items() if name != "version"}
    return Preprocessing(**settings | {"aspect": Aspect(settings["aspect"])})


def _convert_signature(signature: Any, quantize: Quantize) -> bytes:
    """Return the flatbuffer of the function pixels -> probabilities.

    Raises:
        BundleError: TensorFlow cannot convert the graph.
    """
    import tensorflow as tf

    function = _extract_probabilities(signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], function)
    if quantize is not Quantize.NONE:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize is Quantize.FLOAT16:
        converter.target_spec.supported_types = [tf.float16]
    try:
        return bytes(converter.convert())
    except Exception as error:  # the converter raises classes of its own and bare Exceptions
        raise BundleError(
            f"TensorFlow Lite cannot convert this backbone: {first_line(error)}",
            remedy="Choose another --tfhub_module, or leave --tflite out.",
        ) from error


def _extract_probabilities(signature: Any) -> Any:
    """Return the part of `classify_pixels` from the pixels of one photo to its probabilities.

    It is cut out of the bundle's own graph, so it works for every kind of head. The rounding of the
    embedding to float16 and back, which makes stored embeddings equal to fresh ones, is left out: not
    all runtimes on phones have these ops.

    Raises:
        BundleError: the graph is not one of hubhead's.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(signature)
    operations = frozen.graph.get_operations()
    # The input of the only top-k op are the probabilities.
    top_k = [operation for operation in operations if operation.type == "TopKV2"]
    if len(top_k) != 1:
        raise BundleError(
            f"The graph of signature classify_pixels has {len(top_k)} top-k ops instead of one: it was not "
            "made by hubhead.",
            remedy="Give a bundle that hubhead train made.",
        )
    # Casts float32 -> float16 -> float32; each is replaced by its exact input.
    rounded = [
        operation
        for operation in operations
        if operation.type == "Cast"
        and operation.inputs[0].op.type == "Cast"
        and operation.inputs[0].dtype == tf.float16
        and operation.inputs[0].op.inputs[0].dtype == operation.outputs[0].dtype == tf.float32
    ]
    definition = frozen.graph.as_graph_def()
    (input_,) = frozen.inputs

    @tf.function(
        input_signature=[tf.TensorSpec([1, *input_.shape[1:]], tf.uint8, name=contract.PIXELS)],
        autograph=False,
    )
    def classify(pixels: Any) -> dict[str, Any]:
        feeds = {input_.name: pixels}
        for operation in rounded:
            exact = operation.inputs[0].op.inputs[0].name
            (feeds[operation.outputs[0].name],) = tf.graph_util.import_graph_def(definition, feeds, [exact])
        (probabilities,) = tf.graph_util.import_graph_def(definition, feeds, [top_k[0].inputs[0].name])
        return {contract.PROBABILITIES: probabilities}

    return classify.get_concrete_function()

"""A TensorFlow Lite file of a bundle, for apps that classify on the phone.

It takes pixels uint8 [1,H,W,3], upright and resized, and gives the calibrated probabilities
float32 [1,K]: what signature `classify_pixels` does before it picks the best. TensorFlow Lite has
no ops that decode photos. The labels are inside the file, where MediaPipe and the Task Library look
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
from trainer.evaluation.metrics import Proportion, proportion
from trainer.export.tflite_metadata import add_metadata
from trainer.heads import Floats
from trainer.preprocessing import Aspect, Preprocessing, decode_photos, is_usable

FILE = "assets.extra/model.tflite"
"""Where a bundle has it."""

PHOTOS = 100
"""Photos that a file is checked on, at most."""

_CALL = 16
"""Photos a call of the bundle."""


class Quantize(StrEnum):
    """How the weights are kept."""

    NONE = "none"
    FLOAT16 = "float16"
    DYNAMIC = "dynamic"

    @property
    def tolerance(self) -> float:
        """Largest difference of a probability from the bundle's that is let pass.

        Unquantised, other kernels and the embedding not rounded to float16 explain some 1e-3. The
        rounded weights of the others move probabilities themselves, so that their labels count
        instead.
        """
        return {Quantize.NONE: 5e-3, Quantize.FLOAT16: 5e-2}.get(self, 1.0)

    @property
    def agreement(self) -> float:
        """Share of photos that must get the bundle's label; where two labels are close, they may swap."""
        return {Quantize.NONE: 0.99, Quantize.FLOAT16: 0.97}.get(self, 0.9)


@dataclass(frozen=True)
class TfliteOption:
    """What a file is made by.

    Attributes:
        quantize: how the weights are kept.
        photos: encoded photos to check it on; none: generated pictures.
    """

    quantize: Quantize = Quantize.NONE
    photos: Sequence[bytes] = ()


@dataclass(frozen=True)
class Tflite:
    """A file that passed its check.

    Attributes:
        content: the file.
        quantize: how the weights are kept.
        agreement: the share of the photos that get the bundle's label.
        largest_difference: of a probability from the bundle's.
        generated: whether the photos were generated pictures, for want of real ones.
    """

    content: bytes
    quantize: Quantize
    agreement: Proportion
    largest_difference: float
    generated: bool

    def to_dict(self) -> dict[str, Any]:
        """For hubhead.json."""
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
            f"{len(self.content) / 1e6:.1f} MB, quantised: {self.quantize}; the bundle's label on "
            f"{self.agreement} {'generated pictures' if self.generated else 'photos'}, probabilities within "
            f"{self.largest_difference:.2g}"
        )


def make(directory: Path, metadata: BundleMetadata, option: TfliteOption) -> Tflite:
    """Convert a bundle's SavedModel, load the file again, and hold it against the bundle.

    Args:
        directory: of the SavedModel.
        metadata: its hubhead.json.
        option: how.

    Raises:
        BundleError: the bundle has no head, or TensorFlow cannot convert its graph.
        InputError: none of the photos can be used.
        GateRejected: the file does not answer as the bundle does.
    """
    import tensorflow as tf

    if not metadata.labels:
        raise BundleError(f"{directory} is a headless bundle.", remedy="Give one that hubhead train made.")
    loaded = tf.saved_model.load(str(directory))
    preprocessing = _preprocessing(metadata)
    signature = loaded.signatures[contract.CLASSIFY_PIXELS]
    content = add_metadata(_converted(signature, option.quantize), metadata)
    pixels = decoded(option.photos, preprocessing) if option.photos else generated(preprocessing)
    if not len(pixels):
        raise InputError("None of the photos can be used.", remedy="Give others to check the file on.")
    found = probabilities(content, pixels)
    classes, scores = _asked(signature, pixels)
    column = {label.encode(): index for index, label in enumerate(metadata.labels)}
    columns = np.vectorize(column.__getitem__, otypes=[np.int64])(classes)
    difference = float(np.abs(np.take_along_axis(found, columns, axis=1) - scores).max(initial=0.0))
    same = int((found.argmax(axis=1) == columns[:, 0]).sum())
    made = Tflite(content, option.quantize, proportion(same, len(pixels)), difference, not option.photos)
    check(made)
    return made


def write(source: Bundle, file: Path, quantize: Quantize, photos: str = "") -> Tflite:
    """Write the file of a bundle.

    Args:
        source: the bundle.
        file: where to.
        quantize: how the weights are kept; all but `none` need photos.
        photos: a directory or glob of photos to check it on; without any, generated pictures check it.

    Raises:
        InputError: none of the photos can be used.
        OutputError: the file cannot be written.
        BundleError, GateRejected: as `make`.
    """
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise OutputError(f"{file} cannot be written.", remedy="Give a file in a directory that exists.")
    encoded = _photos(photos) if photos else []
    made = make(source.path, source.metadata, TfliteOption(quantize, encoded))
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_bytes(made.content)
    partial.replace(file)
    return made


def _photos(pattern: str) -> list[bytes]:
    """At most PHOTOS of them, evenly taken, as they are sent to a model."""
    found = find_photos(pattern)
    step = max(1, len(found) // PHOTOS)
    with Converter() as converter:
        sent = [converter.convert_if_needed(read_photo(photo)) for photo in found[::step][:PHOTOS]]
    return [photo for photo in sent if isinstance(photo, bytes)]


def check(made: Tflite) -> None:
    """Hold a file to its quantisation's bars.

    Raises:
        GateRejected: it does not reach them.
    """
    wrong = made.agreement.value < made.quantize.agreement
    if wrong or made.largest_difference > made.quantize.tolerance:
        raise GateRejected(
            f"The TensorFlow Lite file is not the model: {made}. Asked for are {made.quantize.agreement:.0%} "
            f"and {made.quantize.tolerance:g}.",
            remedy="Nothing was published. Choose another --tflite_quantize."
            if made.quantize is not Quantize.NONE
            else "Nothing was published.",
        )


def decoded(photos: Sequence[bytes], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Pixels uint8 [N,H,W,3] of the usable ones of some encoded photos, by the graph of every bundle."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def decode(image_bytes: Any) -> Any:
        pixels, status, _, _ = decode_photos(image_bytes, preprocessing)
        return tf.boolean_mask(pixels, is_usable(status))

    parts = [decode(list(photos[at : at + _CALL])).numpy() for at in range(0, len(photos), _CALL)]
    return np.concatenate(parts)


def generated(preprocessing: Preprocessing, count: int = 16) -> NDArray[np.uint8]:
    """Pixels uint8 [count,H,W,3] of smooth pictures, each a mixture of a few waves; always the same."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0 : preprocessing.height, 0 : preprocessing.width]
    waves = random.uniform(-0.15, 0.15, (count, 3, 4, 2))
    phases = waves[..., 0, None, None] * rows + waves[..., 1, None, None] * columns
    pictures = np.cos(phases + random.uniform(0, 6, (count, 3, 4, 1, 1))).mean(axis=2)
    return np.ascontiguousarray((127.5 + 127 * pictures).astype(np.uint8).transpose(0, 2, 3, 1))


def probabilities(content: bytes, pixels: NDArray[np.uint8]) -> Floats:
    """What a TensorFlow Lite file says of pixels uint8 [N,H,W,3]: float32 [N,K].

    Raises:
        BundleError: it cannot be loaded.
    """
    import tensorflow as tf

    try:
        with warnings.catch_warnings():
            # The interpreter moves to the package ai-edge-litert; TensorFlow still brings it.
            warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
            interpreter = tf.lite.Interpreter(model_content=content, num_threads=cores())
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise BundleError(f"The TensorFlow Lite file does not load: {error}") from error
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for picture in pixels:
        interpreter.set_tensor(taken["index"], picture[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(given["index"])[0])
    return np.array(rows, np.float32).reshape(len(pixels), -1)


def _asked(signature: Any, pixels: NDArray[np.uint8]) -> tuple[NDArray[Any], Floats]:
    """`classes` object [N,k] of bytes and `scores` float32 [N,k] of the bundle."""
    import tensorflow as tf

    answers = [
        signature(**{contract.PIXELS: tf.constant(pixels[at : at + _CALL])})
        for at in range(0, len(pixels), _CALL)
    ]
    classes = np.concatenate([answer[contract.CLASSES].numpy() for answer in answers])
    return classes, np.concatenate([answer[contract.SCORES].numpy() for answer in answers])


def _preprocessing(metadata: BundleMetadata) -> Preprocessing:
    settings = {name: value for name, value in metadata.preprocessing.items() if name != "version"}
    return Preprocessing(**settings | {"aspect": Aspect(settings["aspect"])})


def _converted(signature: Any, quantize: Quantize) -> bytes:
    """The flatbuffer of pixels -> probabilities.

    Raises:
        BundleError: TensorFlow cannot convert the graph.
    """
    import tensorflow as tf

    function = _probabilities_of_one(signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], function)
    if quantize is not Quantize.NONE:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize is Quantize.FLOAT16:
        converter.target_spec.supported_types = [tf.float16]
    try:
        return bytes(converter.convert())
    except Exception as error:  # the converter raises classes of its own and bare Exceptions
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(
            f"TensorFlow Lite cannot take this backbone: {first}",
            remedy="Choose another --tfhub_module or leave --tflite out.",
        ) from error


def _probabilities_of_one(signature: Any) -> Any:
    """Of `classify_pixels`, the part from the pixels of one photo to its probabilities.

    It is cut out of the bundle's own graph, so whatever head is in there is in the file. The rounding
    of the embedding to float16 and back, which makes stored embeddings equal to fresh ones, is left
    out: runtimes on phones do not all have these ops.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(signature)
    operations = frozen.graph.get_operations()
    best = [operation for operation in operations if operation.type == "TopKV2"]
    if len(best) != 1:
        raise BundleError("The graph of signature classify_pixels is not one that hubhead makes.")
    rounded = [
        operation
        for operation in operations
        if operation.type == "Cast"
        and operation.inputs[0].op.type == "Cast"
        and operation.inputs[0].dtype == tf.float16
        and operation.inputs[0].op.inputs[0].dtype == operation.outputs[0].dtype == tf.float32
    ]
    definition = frozen.graph.as_graph_def()
    (taken,) = frozen.inputs

    @tf.function(
        input_signature=[tf.TensorSpec([1, *taken.shape[1:]], tf.uint8, name=contract.PIXELS)],
        autograph=False,
    )
    def classify(pixels: Any) -> dict[str, Any]:
        feeds = {taken.name: pixels}
        for operation in rounded:
            exact = operation.inputs[0].op.inputs[0].name
            (feeds[operation.outputs[0].name],) = tf.graph_util.import_graph_def(definition, feeds, [exact])
        (found,) = tf.graph_util.import_graph_def(definition, feeds, [best[0].inputs[0].name])
        return {contract.PROBABILITIES: found}

    return classify.get_concrete_function()

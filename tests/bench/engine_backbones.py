"""Backbones for `python -m tests.bench.engines`: real weights where a package has them, else random ones."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.variants import read_sample_photos

PHOTOS = 16
"""Pictures in a file of pixels: half of them photos, the other half noise and flat pictures."""

KERAS = {
    "MobileNetV2": (224, -1.0),
    "EfficientNetV2B0": (224, 0.0),
    "ResNet50": (224, -1.0),
    "DenseNet121": (224, 0.0),
}
"""Class in keras.applications -> size of the input, and the smallest value of a pixel; the largest is 1. The
weights are random: what is measured does not depend on them."""

BACKBONES = ("efficientnet_lite0", "efficientnet_lite0_260", "efficientnet_lite2", *KERAS)


def build(name: str, directory: str) -> Callable[[], float]:
    """Return a function that writes a backbone in the format of each engine.

    The files are `saved_model/`, `model.onnx`, `model.tflite`, the pixels and the embeddings of TensorFlow.
    In place of a file that cannot be made, `*.failed` has the reason.
    """
    return functools.partial(_build, name, Path(directory))


def _build(name: str, directory: Path) -> float:
    import tensorflow as tf

    from serving import contract
    from trainer.export import onnx_backbone

    network, size = make_network(name)
    target = directory / name
    target.mkdir()
    pixels = make_pixels(size)
    np.save(target / "pixels.npy", pixels)
    spec = tf.TensorSpec([None, size, size, 3], tf.uint8, name=contract.PIXELS)

    @tf.function(input_signature=[spec], autograph=False)
    def embed(pixels: Any) -> dict[str, Any]:
        return {contract.EMBEDDING: network(tf.cast(pixels, tf.float32) / 255.0)}

    np.save(target / "expected.npy", embed(pixels)[contract.EMBEDDING].numpy())
    # The gradients of some activations, which nothing needs here, cannot be saved with a frozen graph.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    signatures = {"embed": embed}
    tf.saved_model.save(tf.Module(), str(target / "saved_model"), signatures=signatures, options=options)
    with LogCapture("trainer.export.onnx_backbone") as log:
        content = onnx_backbone.convert(network, (size, size))
    _write(target / "model.onnx", content, log.text)
    try:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([embed.get_concrete_function()])
        _write(target / "model.tflite", converter.convert(), "")
    except Exception as error:  # whatever the converter raises for an op it does not know
        _write(target / "model.tflite", None, str(error).strip().splitlines()[0])
    return 0.0


def _write(path: Path, content: bytes | None, reason: str) -> None:
    if content is None:
        path.with_name(f"{path.name}.failed").write_text(reason)
    else:
        path.write_bytes(content)


def make_network(name: str) -> tuple[Callable[[Any], Any], int]:
    """Return pixels float32 [N,H,W,3] in 0 to 1 -> embedding float32 [N,D], its weights frozen, and H = W."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    apply, size = _make_keras(name) if name in KERAS else _make_lite(name)
    spec = tf.TensorSpec([None, size, size, 3], tf.float32)
    constant = convert_variables_to_constants_v2(
        tf.function(apply, autograph=False).get_concrete_function(spec)
    )
    return lambda pixels: constant(pixels)[0], size


def _make_keras(name: str) -> tuple[Callable[[Any], Any], int]:
    from tensorflow import keras

    size, lowest = KERAS[name]
    keras.utils.set_random_seed(0)
    options: dict[str, Any] = {"include_preprocessing": False} if "V2B" in name else {}
    model = getattr(keras.applications, name)(
        include_top=False, weights=None, pooling="avg", input_shape=(size, size, 3), **options
    )
    return lambda pixels: model(pixels * (1.0 - lowest) + lowest, training=False), size


def _make_lite(name: str) -> tuple[Callable[[Any], Any], int]:
    from trainer.backbones.aliases import BUILT
    from trainer.backbones.efficientnet_lite import NETWORKS, build_variables, forward
    from trainer.backbones.pretrained import read_weights
    from trainer.dataset.download import cache_directory

    built = BUILT[name]
    scaling, weights = (
        NETWORKS[built.network],
        build_variables(read_weights(built.network, cache_directory())),
    )
    return lambda pixels: forward(weights, pixels, scaling, training=False), built.image_size


def make_pixels(size: int) -> NDArray[np.uint8]:
    """Return pixels uint8 [PHOTOS,size,size,3]: photos, then noise and flat pictures."""
    import io

    from PIL import Image

    from trainer.export.onnx_backbone import sample_pixels

    half = PHOTOS // 2
    contents = read_sample_photos()
    photos = [
        np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize((size, size)))
        for content in contents[:: len(contents) // half][:half]
    ]
    return np.concatenate([np.stack(photos), sample_pixels(PHOTOS - half, (size, size))])


class LogCapture(logging.Handler):
    """Collects the messages of a logger in a `with` block."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._logger, self.text = logging.getLogger(name), ""

    def __enter__(self) -> LogCapture:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first line of a message."""
        self.text = record.getMessage().strip().splitlines()[0]

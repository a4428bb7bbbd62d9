"""Conversion of a backbone to ONNX, which ONNX Runtime runs faster on CPUs than TensorFlow its graph.

The file is part of the bundle (contract.ONNX_FILE). It takes what signature `decode` returns, and its outputs
are those of the backbone before their rounding to float16 (serving.runtime.onnx_model). TensorFlow Serving
ignores it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch.embeddings.rows import bound_difference
from serving import contract
from serving.runtime.subgraph import Subgraph

_OPSET = 17  # ONNX operator set; ONNX Runtime reads it since 1.12 (2022)
_CHECKED_PHOTOS = 8

_log = logging.getLogger(__name__)


def convert(network: Callable[[Any], Any], image_size: tuple[int, int]) -> bytes | None:
    """Return a backbone as the content of an ONNX file, after comparing it with the TensorFlow graph.

    Args:
        network: pixels float32 [N,H,W,3] in 0 to 1 -> embedding float32 [N,D]; a TensorFlow function.
        image_size: height and width in pixels.

    Returns:
        The content; None if the backbone cannot be converted, or its outputs would differ, which is logged.
    """
    import tensorflow as tf

    spec = tf.TensorSpec([None, *image_size, 3], tf.uint8, name=contract.PIXELS)

    @tf.function(input_signature=[spec], autograph=False)
    def embed(pixels: Any) -> Any:
        return tf.identity(network(tf.cast(pixels, tf.float32) / 255.0), name=contract.EMBEDDING)

    try:
        content = _convert_function(embed, spec)
        difference = _compare(content, embed, image_size)
    except Exception as error:  # whatever a converter or an engine raises for an op it does not know
        _log.warning("The backbone runs on TensorFlow, as it cannot be converted to ONNX: %s", error)
        return None
    if difference > contract.ENGINE_TOLERANCE:
        _log.warning("The backbone runs on TensorFlow, as its ONNX version differs by %.2g.", difference)
        return None
    return content


def _convert_function(embed: Any, spec: Any) -> bytes:
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model, _ = tf2onnx.convert.from_function(embed, input_signature=[spec], opset=_OPSET)
    return bytes(model.SerializeToString())


def _compare(content: bytes, embed: Any, image_size: tuple[int, int]) -> float:
    """Return the largest difference between the engines, relative to the largest entry or 1."""
    from serving.runtime.onnx_model import OnnxBackbone

    pixels = sample_pixels(_CHECKED_PHOTOS, image_size)
    expected = embed(pixels).numpy()
    difference = np.abs(OnnxBackbone(content).embed(pixels) - expected).max()
    return float(difference / max(1.0, np.abs(expected).max()))


def check_photos(directory: Path, model: Subgraph, photos: Sequence[bytes]) -> None:
    """Compare the engines on photos, and delete the ONNX file if they differ by more than rounding.

    Args:
        directory: directory of the bundle.
        model: its signatures `decode` and `embed`.
        photos: encoded photos.
    """
    from serving.runtime.onnx_model import OnnxBackbone, round_embeddings

    path = directory / contract.ONNX_FILE
    if not photos or not path.is_file():
        return
    given = {contract.IMAGE_BYTES: list(photos)}
    pixels = model.run(contract.DECODE, given)[contract.PIXELS]
    expected = model.run(contract.EMBED, given)[contract.EMBEDDING].astype(np.float16)
    found = round_embeddings(OnnxBackbone(str(path)).embed(pixels)).astype(np.float16)
    for one, other in zip(found, expected, strict=True):
        if not (np.abs(one.astype(np.float64) - other) <= bound_difference(one, other)).all():
            _log.warning("The backbone runs on TensorFlow, as its ONNX version differs on a photo.")
            path.unlink()
            return


def sample_pixels(count: int, image_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return pixels uint8 [N,H,W,3]: noise, noise of low contrast, black and white pictures."""
    noise = np.random.default_rng(0).integers(0, 256, (count, *image_size, 3), np.uint8)
    noise[1::4] //= 16
    noise[2::4], noise[3::4] = 0, 255
    return noise

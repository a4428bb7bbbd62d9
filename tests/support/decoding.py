"""Calls the preprocessing graph in tests: bytes in, one DecodedPhoto per photo out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.contract import Status

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class DecodedPhoto:
    """Outputs of the graph for one photo.

    Attributes:
        pixels: uint8 [H,W,3], at the input size of the backbone.
        status: status of the photo.
        height: height of the upright original, in pixels.
        width: width of the upright original, in pixels.
    """

    pixels: Pixels
    status: Status
    height: int
    width: int


Decode = Callable[[Sequence[bytes]], list[DecodedPhoto]]


def make_decoder() -> Decode:
    """Return a function that runs decode_photos with its default settings, traced once."""
    import tensorflow as tf

    from trainer.preprocessing import STATUSES, Preprocessing, decode_photos

    settings = Preprocessing()
    traced = tf.function(
        lambda contents: decode_photos(contents, settings),
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )

    def run(contents: Sequence[bytes]) -> list[DecodedPhoto]:
        outputs = [tensor.numpy() for tensor in traced(tf.constant(list(contents), tf.string))]
        assert [output.dtype for output in outputs] == [np.uint8, np.int32, np.int32, np.int32]
        assert outputs[0].shape == (len(contents), settings.height, settings.width, 3)
        assert [output.shape for output in outputs[1:]] == [(len(contents),)] * 3
        return [
            DecodedPhoto(pixels, STATUSES[status], int(height), int(width))
            for pixels, status, height, width in zip(*outputs, strict=True)
        ]

    return run

"""The preprocessing graph as tests ask it: bytes in, one row a photo out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.contract import Status

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """What became of one photo."""

    pixels: Pixels
    status: Status
    height: int
    width: int


Decode = Callable[[Sequence[bytes]], list[Row]]


def decoder() -> Decode:
    """decode_photos at its default settings, traced once."""
    import tensorflow as tf

    from trainer.preprocessing import STATUSES, Preprocessing, decode_photos

    settings = Preprocessing()
    traced = tf.function(
        lambda contents: decode_photos(contents, settings),
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )

    def run(contents: Sequence[bytes]) -> list[Row]:
        outputs = [tensor.numpy() for tensor in traced(tf.constant(list(contents), tf.string))]
        assert [output.dtype for output in outputs] == [np.uint8, np.int32, np.int32, np.int32]
        assert outputs[0].shape == (len(contents), settings.height, settings.width, 3)
        assert [output.shape for output in outputs[1:]] == [(len(contents),)] * 3
        return [
            Row(pixels, STATUSES[status], int(height), int(width))
            for pixels, status, height, width in zip(*outputs, strict=True)
        ]

    return run

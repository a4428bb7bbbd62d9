"""Pixel values that backbones expect: a range, or one of the modes of keras.applications."""

from __future__ import annotations

from typing import Any

from trainer.backbones.aliases import UNIT_RANGE

BYTE_RANGE = (0.0, 255.0)

MODES = {"caffe": BYTE_RANGE, "tf": (-1.0, 1.0), "torch": UNIT_RANGE, "raw": BYTE_RANGE}
"""Mode -> values of a black and a white pixel, before the channels are normalised.

The first three are those of `preprocess_input` (keras/src/applications/imagenet_utils.py, Keras 3.15); raw is
that of networks which scale their input themselves, whose `preprocess_input` returns it unchanged.
"""

CHANNEL_MODES = ("caffe", "torch")
"""Modes that no range expresses, as each channel is normalised by its own constants."""

_CAFFE_MEANS = (103.939, 116.779, 123.68)
"""Mean of blue, green and red on ImageNet, for pixels from 0 to 255."""

_TORCH_MEANS, _TORCH_DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue on ImageNet, for pixels from 0 to 1."""


def normalise_channels(pixels: Any, mode: str) -> Any:
    """Return pixels float32 [N,H,W,3] with their channels normalised.

    Args:
        pixels: photos with channels in the order red, green, blue, in the range of the mode.
        mode: "caffe" subtracts the means and returns the channels in the order blue, green, red; "torch"
            subtracts the means and divides by the standard deviations.
    """
    import tensorflow as tf

    if mode == "caffe":
        return tf.gather(pixels, [2, 1, 0], axis=-1) - tf.constant(_CAFFE_MEANS)
    return (pixels - tf.constant(_TORCH_MEANS)) / tf.constant(_TORCH_DEVIATIONS)

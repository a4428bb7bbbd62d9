"""Random views of a photo, for training alone: what retrain.py calls distortions.

A view is drawn from a seed, so that the same seed gives the same pixels on every machine, and a
view can be kept like any other embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VIEW_SIZE = 5
"""Numbers that make a view; see `random_views`."""


@dataclass(frozen=True)
class Augmentation:
    """How much views differ, by retrain.py's flags of the same names.

    Attributes:
        flip_left_right: mirror half of the views.
        random_crop: percent by which the photo is larger than the part that is taken, at a random place.
        random_scale: percent by which it is enlarged further, at most.
        random_brightness: percent by which the pixels are multiplied up or down, at most.
    """

    flip_left_right: bool = False
    random_crop: int = 0
    random_scale: int = 0
    random_brightness: int = 0


def random_views(seeds: Any, augmentation: Augmentation) -> Any:
    """A view for each seed.

    Args:
        seeds: int32 [N,2].
        augmentation: how much views differ.

    Returns:
        float32 [N,5]: the part that is taken, as its size and its free place downwards and to the
        right, each from 0 to 1; 1 to mirror it, else 0; and the factor of its brightness.
    """
    import tensorflow as tf

    def draw(seed: Any) -> Any:
        zoom, down, right, side, light = tf.unstack(tf.random.stateless_uniform([VIEW_SIZE], seed))
        enlarged = (1 + augmentation.random_crop / 100) * (1 + augmentation.random_scale / 100 * zoom)
        mirrored = tf.cast(side < 0.5, tf.float32) * float(augmentation.flip_left_right)
        brightness = 1 + augmentation.random_brightness / 100 * (2 * light - 1)
        return tf.stack([1 / enlarged, down, right, mirrored, brightness])

    return tf.map_fn(draw, seeds, fn_output_signature=tf.TensorSpec([VIEW_SIZE], tf.float32))


def part(pixels: Any, view: Any) -> Any:
    """The part of a photo, uint8 [h,w,3], that a view takes."""
    import tensorflow as tf

    sides = tf.shape(pixels)[:2]
    size = tf.clip_by_value(tf.cast(tf.round(tf.cast(sides, tf.float32) * view[0]), tf.int32), 1, sides)
    start = tf.cast(tf.round(tf.cast(sides - size, tf.float32) * view[1:3]), tf.int32)
    return pixels[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]


def light(pixels: Any, view: Any) -> Any:
    """Upright pixels, float32 [H,W,3] in [0,255], mirrored and brightened as a view says."""
    import tensorflow as tf

    mirrored = tf.cond(view[3] > 0.5, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    return tf.clip_by_value(mirrored * view[4], 0.0, 255.0)

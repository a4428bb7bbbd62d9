"""Data augmentation for training: random views of a photo, called distortions in retrain.py.

A view is drawn from a seed. The same seed gives the same pixels on every machine, so the embedding
of a view can be stored like that of a photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VIEW_SIZE = 5
"""Number of values that define a view; see `random_views`."""


@dataclass(frozen=True)
class Augmentation:
    """Strength of the augmentation, by the names of retrain.py's flags.

    Attributes:
        flip_left_right: mirror half of the views horizontally.
        random_crop: margin in percent by which the photo is larger than the randomly placed crop.
        random_scale: maximum additional enlargement, in percent.
        random_brightness: maximum change of the brightness factor from 1, in percent.
    """

    flip_left_right: bool = False
    random_crop: int = 0
    random_scale: int = 0
    random_brightness: int = 0


def random_views(seeds: Any, augmentation: Augmentation) -> Any:
    """Draw a view for each seed.

    Args:
        seeds: int32 [N,2].
        augmentation: strength of the augmentation.

    Returns:
        float32 [N,5], per view: size of the crop as a fraction of the photo's sides; its offset down
        and to the right as fractions of the free space; 1 to mirror, else 0; brightness factor.
    """
    import tensorflow as tf

    def draw(seed: Any) -> Any:
        scale, down, right, side, light = tf.unstack(tf.random.stateless_uniform([VIEW_SIZE], seed))
        enlarged = (1 + augmentation.random_crop / 100) * (1 + augmentation.random_scale / 100 * scale)
        mirrored = tf.cast(side < 0.5, tf.float32) * float(augmentation.flip_left_right)
        brightness = 1 + augmentation.random_brightness / 100 * (2 * light - 1)
        return tf.stack([1 / enlarged, down, right, mirrored, brightness])

    return tf.map_fn(draw, seeds, fn_output_signature=tf.TensorSpec([VIEW_SIZE], tf.float32))


def crop_view(pixels: Any, view: Any) -> Any:
    """Return the crop of a photo, uint8 [h,w,3], that a view defines."""
    import tensorflow as tf

    sides = tf.shape(pixels)[:2]
    size = tf.clip_by_value(tf.cast(tf.round(tf.cast(sides, tf.float32) * view[0]), tf.int32), 1, sides)
    start = tf.cast(tf.round(tf.cast(sides - size, tf.float32) * view[1:3]), tf.int32)
    return pixels[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]


def adjust_brightness(pixels: Any, view: Any) -> Any:
    """Mirror upright pixels, float32 [H,W,3] in [0,255], and scale their brightness as a view defines."""
    import tensorflow as tf

    mirrored = tf.cond(view[3] > 0.5, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    return tf.clip_by_value(mirrored * view[4], 0.0, 255.0)

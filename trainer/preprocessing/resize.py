"""From decoded pixels of any size to the backbone's: resized, upright, on white."""

from __future__ import annotations

from typing import Any

from trainer.preprocessing.settings import GREY, Aspect, Preprocessing

_WIDE = 1 << 14


def fit(pixels: Any, settings: Preprocessing, sideways: Any) -> Any:
    """Resize to the backbone's size, or to its transpose where `sideways`.

    Bicubic with antialiasing: of the kernels tried it keeps embeddings closest to those of an
    area-resized original (tests/bench, `agreement`), and it enlarges small photos as well.

    Args:
        pixels: uint8 [h,w,3], h and w of any size from 1.
        settings: size and aspect.
        sideways: bool, the photo is turned by 90 degrees afterwards.

    Returns:
        float32 [H,W,3] in [0,255], not rounded.
    """
    import tensorflow as tf

    pixels.set_shape([None, None, 3])
    target = target_size(settings, sideways)
    if settings.aspect is Aspect.STRETCH:
        return _resize(pixels, target)
    sides = tf.shape(pixels)[:2]
    proportions = tf.cast(sides, tf.float32) / tf.cast(target, tf.float32)
    if settings.aspect is Aspect.CROP:
        part = tf.cast(target, tf.float32) * tf.reduce_min(proportions)
        part = tf.clip_by_value(tf.cast(tf.round(part), tf.int32), 1, sides)
        start = (sides - part) // 2
        cropped = pixels[start[0] : start[0] + part[0], start[1] : start[1] + part[1]]
        return _resize(cropped, target)
    part = tf.cast(sides, tf.float32) / tf.reduce_max(proportions)
    part = tf.clip_by_value(tf.cast(tf.round(part), tf.int32), 1, target)
    before = (target - part) // 2
    return tf.pad(
        _resize(pixels, part),
        [[before[0], target[0] - part[0] - before[0]], [before[1], target[1] - part[1] - before[1]], [0, 0]],
        constant_values=float(GREY),
    )


def target_size(settings: Preprocessing, sideways: Any) -> Any:
    """[height, width] that a photo is resized to before it is turned; int32 [2]."""
    import tensorflow as tf

    size = tf.constant([settings.height, settings.width])
    return size if settings.height == settings.width else tf.where(sideways, size[::-1], size)


def room(sides: Any, settings: Preprocessing, sideways: Any) -> Any:
    """How many times smaller a photo could be and still fill the backbone's size; float32.

    Args:
        sides: int32 [2], height and width as stored.
        settings: size and aspect.
        sideways: bool, the photo is turned by 90 degrees afterwards.
    """
    import tensorflow as tf

    proportions = tf.cast(sides, tf.float32) / tf.cast(target_size(settings, sideways), tf.float32)
    # With bars, only the longer side has to fill its side of the target.
    return (tf.reduce_max if settings.aspect is Aspect.PAD else tf.reduce_min)(proportions)


def _resize(pixels: Any, size: Any) -> Any:
    """To [height, width], float32 in [0,255].

    The op shrinks the columns first and keeps that in floats, which for a strip of a pixel's height
    is far more than the photo itself. So what is very wide is turned for it.
    """
    import tensorflow as tf

    def resized(pixels: Any, size: Any) -> Any:
        return tf.image.resize(pixels, size, method="bicubic", antialias=True)

    def turned() -> Any:
        return tf.transpose(resized(tf.transpose(pixels, [1, 0, 2]), size[::-1]), [1, 0, 2])

    shape = tf.shape(pixels)
    wide = (shape[1] > _WIDE) & (shape[1] > shape[0])
    return tf.clip_by_value(tf.cond(wide, turned, lambda: resized(pixels, size)), 0.0, 255.0)


def turn(pixels: Any, orientation: Any) -> Any:
    """Undo an Exif orientation. Photos are turned after the resize, when they are small."""
    import tensorflow as tf

    def among(*orientations: int) -> Any:
        return tf.reduce_any(tf.equal(orientation, orientations))

    def turned() -> Any:
        transposed = tf.transpose(pixels, tf.where(among(5, 6, 7, 8), [1, 0, 2], [0, 1, 2]))
        axes = tf.boolean_mask([0, 1], [among(3, 4, 7, 8), among(2, 3, 6, 7)])
        return tf.reverse(transposed, axes)

    return tf.cond(orientation > 1, turned, lambda: pixels)


def on_white(pixels: Any) -> Any:
    """uint8 [h,w,4] composed on white: uint8 [h,w,3].

    In 16 bits, which are enough and take half of what floats take: colour * alpha + 255 * (255 -
    alpha) is at most 255 * 255, and (x + 128 + (x + 128 >> 8)) >> 8 is x / 255, rounded.
    """
    import tensorflow as tf

    def composed() -> Any:
        alpha, clear = pixels[:, :, 3:], tf.bitwise.invert(pixels[:, :, 3:])
        mixed = tf.cast(pixels[:, :, :3], tf.uint16) * tf.cast(alpha, tf.uint16)
        mixed += tf.cast(clear, tf.uint16) * 255 + 128
        eight = tf.constant(8, tf.uint16)
        mixed += tf.bitwise.right_shift(mixed, eight)
        return tf.cast(tf.bitwise.right_shift(mixed, eight), tf.uint8)

    opaque = tf.reduce_all(tf.equal(pixels[:, :, 3], 255))
    return tf.cond(opaque, lambda: pixels[:, :, :3], composed)

"""Resize of decoded pixels to the backbone's input, EXIF orientation, and composition on white."""

from __future__ import annotations

from typing import Any

from trainer.preprocessing.settings import GREY, Aspect, Preprocessing

_WIDE = 1 << 14
"""Width in pixels above which a photo's columns are resized before its rows."""


def resize_to_input(pixels: Any, settings: Preprocessing, sideways: Any) -> Any:
    """Resize to the backbone's size, or to its transpose if `sideways`; the result is stored by columns.

    Bicubic with antialiasing: among the kernels tried it keeps embeddings closest to those of an
    area-resized original (tests/bench, `agreement`), and it enlarges small photos as well.

    Args:
        pixels: uint8 [h,w,3], h and w at least 1.
        settings: size and aspect.
        sideways: bool, true if the photo is rotated by 90 degrees afterwards.

    Returns:
        float32 [W,3,H] in [0,255], not rounded, which `exif.apply_orientation` takes: the columns of the
        photo as stored, each with its three colours apart; [H,3,W] if `sideways`.
    """
    import tensorflow as tf

    pixels.set_shape([None, None, 3])
    target = target_size(settings, sideways)
    if settings.aspect is Aspect.STRETCH:
        return _resize(pixels, target)
    sides = tf.shape(pixels)[:2]
    proportions = tf.cast(sides, tf.float32) / tf.cast(target, tf.float32)
    if settings.aspect is Aspect.CROP:
        crop = tf.cast(target, tf.float32) * tf.reduce_min(proportions)
        crop = tf.clip_by_value(tf.cast(tf.round(crop), tf.int32), 1, sides)
        start = (sides - crop) // 2
        cropped = pixels[start[0] : start[0] + crop[0], start[1] : start[1] + crop[1]]
        return _resize(cropped, target)
    size = tf.cast(sides, tf.float32) / tf.reduce_max(proportions)
    size = tf.clip_by_value(tf.cast(tf.round(size), tf.int32), 1, target)
    before = (target - size) // 2
    (top, left), (bottom, right) = tf.unstack(before), tf.unstack(target - size - before)
    paddings = [[left, right], [0, 0], [top, bottom]]
    return tf.pad(_resize(pixels, size), paddings, constant_values=float(GREY))


def target_size(settings: Preprocessing, sideways: Any) -> Any:
    """Return [height, width], int32 [2], that a photo is resized to before its orientation is applied."""
    import tensorflow as tf

    size = tf.constant([settings.height, settings.width])
    return size if settings.height == settings.width else tf.where(sideways, size[::-1], size)


def downscale_factor(sides: Any, settings: Preprocessing, sideways: Any) -> Any:
    """Return the largest factor, float32, by which a photo can shrink and still fill the backbone's input.

    Args:
        sides: int64 [2], height and width as stored.
        settings: size and aspect.
        sideways: bool, true if the photo is rotated by 90 degrees afterwards.
    """
    import tensorflow as tf

    proportions = tf.cast(sides, tf.float32) / tf.cast(target_size(settings, sideways), tf.float32)
    # With padding, only the relatively longer side has to fill its side of the target.
    return (tf.reduce_max if settings.aspect is Aspect.PAD else tf.reduce_min)(proportions)


def _resize(pixels: Any, size: Any) -> Any:
    """Resize [h,w,3] to [height, width]; return columns, float32 [width,3,height] in [0,255].

    The rows are resized first and kept as floats. For a photo that is very wide and only some pixels
    high, that takes far more memory than the photo itself, so its columns are resized first.

    The op that resizes adds rows with vector instructions, but columns one colour at a time, which takes
    several times as long. So both passes resize the rows of a matrix, which is transposed in between:
    [h, w*3] to [w, 3*h] and back. A matrix is transposed in half the time of pixels with three colours.
    """
    import tensorflow as tf

    shape = tf.shape(pixels)
    rows = tf.reshape(pixels, [shape[0], shape[1] * 3])

    def resize_rows_first() -> Any:
        return _resize_rows(_swap(_resize_rows(rows, size[0]), shape[1]), size[1])

    def resize_columns_first() -> Any:
        columns = _resize_rows(_swap(rows, shape[1]), size[1])
        by_rows = tf.transpose(tf.reshape(columns, [size[1] * 3, shape[0]]))
        return _swap(_resize_rows(by_rows, size[0]), size[1])

    wide = (shape[1] > _WIDE) & (shape[1] > shape[0])
    resized = tf.cond(wide, resize_columns_first, resize_rows_first)
    return tf.reshape(tf.clip_by_value(resized, 0.0, 255.0), [size[1], 3, size[0]])


def _swap(rows: Any, width: Any) -> Any:
    """Return the columns [w, 3*h] of rows [h, w*3]."""
    import tensorflow as tf

    return tf.reshape(tf.transpose(rows), [width, 3 * tf.shape(rows)[0]])


def _resize_rows(rows: Any, count: Any) -> Any:
    """Resize a matrix [h,n] to `count` rows, float32 [count,n]."""
    import tensorflow as tf

    width = tf.shape(rows)[1]
    # A row is passed as one pixel of many colours.
    resized = tf.image.resize(rows[:, None], [count, 1], method="bicubic", antialias=True)
    return tf.reshape(resized, [count, width])


def compose_on_white(pixels: Any) -> Any:
    """Compose RGBA, uint8 [h,w,4], on white: uint8 [h,w,3].

    16-bit integers suffice and take half the memory of floats: colour * alpha + 255 * (255 - alpha)
    is at most 255 * 255, and (x + 128 + (x + 128 >> 8)) >> 8 is x / 255, rounded.
    """
    import tensorflow as tf

    def compose() -> Any:
        alpha, clear = pixels[:, :, 3:], tf.bitwise.invert(pixels[:, :, 3:])
        mixed = tf.cast(pixels[:, :, :3], tf.uint16) * tf.cast(alpha, tf.uint16)
        mixed += tf.cast(clear, tf.uint16) * 255 + 128
        eight = tf.constant(8, tf.uint16)
        mixed += tf.bitwise.right_shift(mixed, eight)
        return tf.cast(tf.bitwise.right_shift(mixed, eight), tf.uint8)

    opaque = tf.reduce_all(tf.equal(pixels[:, :, 3], 255))
    return tf.cond(opaque, lambda: pixels[:, :, :3], compose)

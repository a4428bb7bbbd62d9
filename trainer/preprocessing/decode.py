"""A batch of photos, each decoded so that it can harm no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trainer.preprocessing import augment, bmp, gif, headers, jpeg, limits, png, resize, webp
from trainer.preprocessing.limits import POSTPONED, UNUSUAL, Lane
from trainer.preprocessing.settings import (
    CORRUPT,
    EMPTY,
    GREY,
    NOT_AN_IMAGE,
    STATUSES,
    TOO_LARGE,
    TRUNCATED,
    UNSUPPORTED,
    Preprocessing,
)

_JPEG, _PNG, _GIF, _BMP, _WEBP, _NONE = range(6)

_FOREIGN = (
    (b"II*\0", 0),  # TIFF
    (b"MM\0*", 0),
    (b"ftyp", 4),  # ISO media: HEIC, AVIF and films
    (b"8BPS", 0),  # Photoshop
    (b"\0\0\0\x0cjP  ", 0),  # JPEG 2000
    (b"\0\0\0\x0cJXL ", 0),  # JPEG XL
    (b"\xff\x0a", 0),
)
"""How formats begin that are known and not decoded, and where."""


def decode_photos(contents: Any, settings: Preprocessing, *, views: Any = None) -> tuple[Any, Any, Any, Any]:
    """Decode a batch of encoded photos, whatever their bytes are.

    All take a first lane, made for ordinary JPEGs. What is left goes on: other formats at once
    again; then, one after the other, what is too large for that, and what did not decode, in the
    way of `Lane.mend`.

    Args:
        contents: string [N], N may be 0.
        settings: sizes and limits.
        views: float32 [N,5] of `random_views`, for training; None takes each photo as it is.

    Returns:
        pixels: uint8 [N,height,width,3], upright; mid-grey for refused photos.
        status: int32 [N], indices into STATUSES.
        heights, widths: int32 [N] of the upright photo as its header says; 0 for refused photos.
    """
    import tensorflow as tf

    inputs = (contents,) if views is None else (contents, views)
    photo = [tf.TensorSpec([], tf.string), tf.TensorSpec([augment.VIEW_SIZE])][: len(inputs)]
    flag = tf.TensorSpec([], tf.bool)
    ordinary = tf.function(
        lambda photo, view=None: _decode_ordinary(photo, view, settings),
        input_signature=photo,
        autograph=False,
    )
    any_photo = tf.function(
        lambda alone, mend, photo, view=None: _decode_any(photo, view, settings, Lane(alone, mend)),
        input_signature=[flag, flag, *photo],
        autograph=False,
    )

    def again(results: tuple[Any, ...], status: int, *, alone: bool, mend: bool = False) -> tuple[Any, ...]:
        """The photos of one status once more, in another lane."""
        rows = tf.cast(tf.where(tf.equal(results[1], status))[:, 0], tf.int32)

        def decode(*photo: Any) -> Any:
            return any_photo(tf.constant(alone), tf.constant(mend), *photo)

        def better() -> tuple[Any, ...]:
            chosen = [tf.gather(values, rows) for values in inputs]
            pixels, found, *sides = _decode_rows(decode, chosen, settings, alone=alone)
            if mend:
                found = _explained(chosen[0], found)
            return tuple(
                tf.tensor_scatter_nd_update(old, rows[:, None], new)
                for old, new in zip(results, (pixels, found, *sides), strict=True)
            )

        return tf.cond(tf.size(rows) > 0, better, lambda: results)

    results = _decode_rows(ordinary, inputs, settings, alone=False)
    results = again(results, UNUSUAL, alone=False)
    results = again(results, POSTPONED, alone=True)
    pixels, status, heights, widths = again(results, CORRUPT, alone=True, mend=True)
    pixels.set_shape([None, settings.height, settings.width, 3])
    return pixels, status, heights, widths


def status_names(status: Any) -> Any:
    """Status indices int32 [N] as strings [N]."""
    import tensorflow as tf

    return tf.gather(tf.constant([str(name) for name in STATUSES]), status)


def usable(status: Any) -> Any:
    """bool [N]: whether a photo was decoded, whole or in part."""
    import tensorflow as tf

    return status <= tf.constant(TRUNCATED)


def _decode_rows(
    decode: Callable[..., tuple[Any, ...]],
    inputs: Sequence[Any],
    settings: Preprocessing,
    *,
    alone: bool,
) -> tuple[Any, ...]:
    """Decode photos; the row of one that fails stays blank and CORRUPT."""
    import tensorflow as tf

    count = tf.shape(inputs[0])[0]
    # One row more than asked, an empty photo, so that the dataset always has an element.
    blank = (b"", tf.zeros([augment.VIEW_SIZE]))
    rows = (tf.concat([values, [extra]], 0) for values, extra in zip(inputs, blank, strict=False))
    dataset = tf.data.Dataset.from_tensor_slices((tf.range(count + 1), *rows))
    dataset = dataset.map(
        tf.autograph.experimental.do_not_convert(lambda row, *photo: (row, *decode(*photo))),
        num_parallel_calls=None if alone else tf.cast(tf.minimum(count + 1, settings.parallel), tf.int64),
        deterministic=None if alone else False,
    )
    dataset = dataset.ignore_errors().batch(tf.int64.max)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    index, *found = dataset.with_options(options).get_single_element()
    blanks = (
        tf.fill([count + 1, settings.height, settings.width, 3], tf.constant(GREY, tf.uint8)),
        tf.fill([count + 1], CORRUPT),
        tf.zeros([count + 1], tf.int32),
        tf.zeros([count + 1], tf.int32),
    )
    return tuple(
        tf.tensor_scatter_nd_update(old, index[:, None], new)[:count]
        for old, new in zip(blanks, found, strict=True)
    )


def _explained(contents: Any, status: Any) -> Any:
    """UNSUPPORTED in place of CORRUPT for WebP where this TensorFlow is too old to decode it."""
    import tensorflow as tf

    form = tf.strings.substr(tf.strings.join([contents, b"\0" * 12]), 8, 4)
    failed = tf.equal(status, CORRUPT) & tf.equal(form, webp.FORM)
    unknown = tf.cond(
        tf.reduce_any(failed), lambda: tf.logical_not(webp.is_decoded_here()), lambda: tf.constant(False)
    )
    return tf.where(failed & unknown, UNSUPPORTED, status)


def _decode_ordinary(contents: Any, view: Any, settings: Preprocessing) -> tuple[Any, Any, Any, Any]:
    """As `_decode_any` for JPEGs that need nothing more; all else is UNUSUAL."""
    import tensorflow as tf

    ordinary = tf.equal(tf.strings.substr(contents, 0, len(jpeg.SIGNATURE)), jpeg.SIGNATURE)
    ordinary &= tf.strings.length(contents) <= settings.max_bytes
    decoded = tf.cond(
        ordinary,
        lambda: jpeg.decode(contents, settings, limits.FIRST, _zoom(view)),
        lambda: limits.refuse(UNUSUAL),
    )
    return _finished(decoded, view, settings)


def _decode_any(contents: Any, view: Any, settings: Preprocessing, lane: Lane) -> tuple[Any, Any, Any, Any]:
    """One photo: pixels uint8 [height,width,3], status, height, width. Fails where it does not decode."""
    import tensorflow as tf

    head = headers.head_of(contents)
    kind, reason = _kind(contents, head, settings)
    # Nothing helps these when they have failed once.
    hopeless = lane.mend & (kind >= _PNG) & (kind <= _BMP)
    kind, reason = tf.where(hopeless, _NONE, kind), tf.where(hopeless, CORRUPT, reason)
    decoded = tf.switch_case(
        kind,
        [
            lambda: jpeg.decode(contents, settings, lane, _zoom(view)),
            lambda: png.decode(contents, head, settings, lane),
            lambda: gif.decode(contents, head, settings, lane),
            lambda: bmp.decode(contents, head, settings, lane),
            lambda: webp.decode(contents, head, settings, lane),
            lambda: limits.refuse(reason),
        ],
    )
    return _finished(decoded, view, settings)


def _zoom(view: Any) -> Any:
    return 1.0 if view is None else view[0]


def _finished(found: Any, view: Any, settings: Preprocessing) -> tuple[Any, Any, Any, Any]:
    """A Decoded photo fitted and turned: pixels, status, height, width."""
    import tensorflow as tf

    decoded = limits.Decoded(*found)
    sideways = decoded.orientation >= 5
    pixels = decoded.pixels if view is None else augment.part(decoded.pixels, view)
    upright = resize.turn(resize.fit(pixels, settings, sideways), decoded.orientation)
    if view is not None:
        upright = tf.cond(usable(decoded.status), lambda: augment.light(upright, view), lambda: upright)
    whole = tf.cast(tf.round(upright), tf.uint8)
    sides = tf.where(sideways, decoded.sides[::-1], decoded.sides)
    return tf.ensure_shape(whole, [settings.height, settings.width, 3]), decoded.status, sides[0], sides[1]


def _kind(contents: Any, head: Any, settings: Preprocessing) -> tuple[Any, Any]:
    """Which format the bytes begin as, and the status where they are not to be decoded."""
    import tensorflow as tf

    length = tf.strings.length(contents)
    is_webp = headers.begins(head, webp.SIGNATURE) & headers.begins(head, webp.FORM, at=8)
    kind = tf.where(is_webp, _WEBP, _NONE)
    for index, signature in (
        (_BMP, bmp.SIGNATURE),
        (_GIF, gif.SIGNATURE),
        (_PNG, png.SIGNATURE),
        (_JPEG, jpeg.SIGNATURE),
    ):
        kind = tf.where(headers.begins(head, signature), index, kind)
    foreign = tf.reduce_any(
        [
            headers.begins(head, signature, at=at) & (length >= at + len(signature))
            for signature, at in _FOREIGN
        ]
    )
    reason = tf.where(foreign, UNSUPPORTED, NOT_AN_IMAGE)
    reason = tf.where(tf.equal(length, 0), EMPTY, reason)
    too_long = length > settings.max_bytes
    return tf.where(too_long, _NONE, kind), tf.where(too_long, TOO_LARGE, reason)

"""Decoding of a batch of photos in which no photo can affect another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from trainer.preprocessing import augment, bmp, exif, gif, headers, jpeg, limits, png, resize, webp
from trainer.preprocessing.limits import POSTPONED, UNUSUAL, HeaderInfo
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
    (b"II+\0", 0),  # BigTIFF
    (b"MM\0+", 0),
    (b"ftyp", 4),  # ISO media: HEIC, AVIF and films
    (b"8BPS", 0),  # Photoshop
    (b"\0\0\0\x0cjP  ", 0),  # JPEG 2000
    (b"\xff\x4f\xff\x51", 0),
    (b"\0\0\0\x0cJXL ", 0),  # JPEG XL
    (b"\xff\x0a", 0),
)
"""(signature, offset) of known formats that are not decoded here."""


def decode_photos(contents: Any, settings: Preprocessing, *, views: Any = None) -> tuple[Any, Any, Any, Any]:
    """Decode a batch of encoded photos with arbitrary bytes.

    The first attempt is for ordinary JPEGs and runs on all photos in parallel. The next ones run only on
    the photos that need them: other formats, in parallel; photos too large for that, one by one; and
    photos that did not decode, one by one, with a repair of truncated files.

    Args:
        contents: string [N], N may be 0.
        settings: sizes and limits.
        views: float32 [N,5] of `random_views`, for training; None for the unmodified photos.

    Returns:
        pixels: uint8 [N,height,width,3], upright; mid-grey for rejected photos.
        status: int32 [N], indices into STATUSES.
        heights, widths: int32 [N] of the upright photo by its header; 0 for rejected photos.
    """
    import tensorflow as tf

    inputs = (contents,) if views is None else (contents, views)
    photo = [tf.TensorSpec([], tf.string), tf.TensorSpec([augment.VIEW_SIZE])][: len(inputs)]
    flag = tf.TensorSpec([], tf.bool)

    # serving.runtime.decoder finds this function by its name, which is that of the function in the graph.
    def decode_ordinary_photo(*photo: Any) -> tuple[Any, ...]:
        return _decode_ordinary(settings, *photo)

    ordinary = tf.function(decode_ordinary_photo, photo, autograph=False)
    any_photo = tf.function(partial(_decode_any, settings), [flag, flag, *photo], autograph=False)

    def retry(results: tuple[Any, ...], status: int, *, alone: bool, repair: bool = False) -> tuple[Any, ...]:
        """Decode the photos of one status again, and return the results with their rows replaced."""
        rows = tf.cast(tf.where(tf.equal(results[1], status))[:, 0], tf.int32)

        def replace_rows() -> tuple[Any, ...]:
            chosen = [tf.gather(values, rows) for values in inputs]
            decode = partial(any_photo, alone, repair)
            pixels, found, *sides = _decode_rows(decode, chosen, settings, alone=alone)
            if repair:
                found = webp.explain_failures(chosen[0], found)
            return tuple(
                tf.tensor_scatter_nd_update(old, rows[:, None], new)
                for old, new in zip(results, (pixels, found, *sides), strict=True)
            )

        return tf.cond(tf.size(rows) > 0, replace_rows, lambda: results)

    results = _decode_rows(ordinary, inputs, settings, alone=False)
    results = retry(results, UNUSUAL, alone=False)
    results = retry(results, POSTPONED, alone=True)
    pixels, status, heights, widths = retry(results, CORRUPT, alone=True, repair=True)
    pixels.set_shape([None, settings.height, settings.width, 3])
    return pixels, status, heights, widths


def status_names(status: Any) -> Any:
    """Convert status indices int32 [N] to strings [N]."""
    import tensorflow as tf

    return tf.gather(tf.constant([str(name) for name in STATUSES]), status)


def is_usable(status: Any) -> Any:
    """Return bool [N], true for photos that were decoded completely or in part."""
    import tensorflow as tf

    return status <= tf.constant(TRUNCATED)


def _decode_rows(
    decode: Callable[..., tuple[Any, ...]], inputs: Sequence[Any], settings: Preprocessing, *, alone: bool
) -> tuple[Any, ...]:
    """Decode photos independently; the row of a photo that fails stays blank with the status CORRUPT."""
    import tensorflow as tf

    count = tf.shape(inputs[0])[0]
    # An empty photo is appended, since get_single_element needs at least one element; its row is dropped.
    blank = (b"", tf.zeros([augment.VIEW_SIZE]))
    rows = (tf.concat([values, [extra]], 0) for values, extra in zip(inputs, blank, strict=False))
    dataset = tf.data.Dataset.from_tensor_slices((tf.range(count + 1), *rows))
    dataset = dataset.map(
        tf.autograph.experimental.do_not_convert(lambda row, *photo: (row, *decode(*photo))),
        num_parallel_calls=None if alone else tf.cast(tf.minimum(count + 1, settings.parallel), tf.int64),
    )
    # Elements that failed are missing here: hence the row numbers.
    dataset = dataset.ignore_errors().batch(tf.int64.max)
    # Autotuning and graph rewrites would cost more than the decoding in every call.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    index, *found = dataset.with_options(options).get_single_element()

    def fill_gaps() -> tuple[Any, ...]:
        blanks = (
            tf.fill([count + 1, settings.height, settings.width, 3], tf.constant(GREY, tf.uint8)),
            tf.fill([count + 1], CORRUPT),
            *[tf.zeros([count + 1], tf.int32)] * 2,
        )
        return tuple(
            tf.tensor_scatter_nd_update(old, index[:, None], new)
            for old, new in zip(blanks, found, strict=True)
        )

    # The rows are in order. Copying them into a blank batch takes as long as a third of the resize.
    whole = tf.cond(tf.size(index) > count, lambda: tuple(found), fill_gaps)
    return tuple(values[:count] for values in whole)


def _decode_ordinary(settings: Preprocessing, contents: Any, view: Any = None) -> tuple[Any, Any, Any, Any]:
    """Decode an ordinary JPEG as `_decode_any` does; give any other photo the status UNUSUAL.

    TensorFlow instantiates the functions that a call uses anew each time. For all formats together that
    costs as much as decoding a small photo. The first attempt therefore contains the JPEG path alone.
    """
    import tensorflow as tf

    ordinary = tf.equal(tf.strings.substr(contents, 0, len(jpeg.SIGNATURE)), jpeg.SIGNATURE)
    ordinary &= tf.strings.length(contents) <= settings.max_bytes
    decoded = tf.cond(
        ordinary,
        lambda: limits.decode_if_allowed(jpeg.read_header(contents, settings, None, view), settings, False),
        lambda: limits.reject(UNUSUAL),
    )
    return _finish(decoded, view, settings)


def _decode_any(
    settings: Preprocessing, alone: Any, repair: Any, contents: Any, view: Any = None
) -> tuple[Any, Any, Any, Any]:
    """Decode one photo to pixels uint8 [height,width,3], status, height and width.

    The op fails if the photo does not decode; `_decode_rows` catches that.

    Args:
        settings: sizes and limits.
        alone: bool, true if no other photo of the call is decoded at the same time.
        repair: bool, true if the photo failed to decode unmodified and may be truncated.
        contents: encoded bytes, string scalar.
        view: float32 [5]; None for the whole photo.
    """
    import tensorflow as tf

    head = headers.read_head(contents)
    kind, reason = _detect_format(contents, head, settings)
    # These formats have no repair: after a failure the reason stays CORRUPT.
    hopeless = repair & (kind >= _PNG) & (kind <= _BMP)
    kind, reason = tf.where(hopeless, _NONE, kind), tf.where(hopeless, CORRUPT, reason)

    def decode(header: HeaderInfo) -> limits.DecodedPhoto:
        return limits.decode_if_allowed(header, settings, alone)

    branches = {
        _JPEG: lambda: decode(jpeg.read_header(contents, settings, repair, view)),
        _PNG: lambda: decode(png.read_header(contents, head, settings)),
        _GIF: lambda: decode(gif.read_header(contents, head, settings)),
        _BMP: lambda: decode(bmp.read_header(contents, head, settings)),
        _WEBP: lambda: decode(webp.read_header(contents, head, settings, repair)),
        _NONE: lambda: limits.reject(reason),
    }
    return _finish(tf.switch_case(kind, branches), view, settings)


def _finish(found: Any, view: Any, settings: Preprocessing) -> tuple[Any, Any, Any, Any]:
    """Resize and orient a DecodedPhoto; return pixels, status, height and width."""
    import tensorflow as tf

    decoded = limits.DecodedPhoto(*found)
    sideways = decoded.orientation >= 5

    def make_pixels() -> Any:
        if view is None:
            resized = resize.resize_to_input(decoded.pixels, settings, sideways)
            return exif.apply_orientation(_round(resized), decoded.orientation)
        resized = resize.resize_to_input(augment.crop_view(decoded.pixels, view), settings, sideways)
        upright = exif.apply_orientation(resized, decoded.orientation)
        return _round(augment.adjust_brightness(upright, view))

    shape = [settings.height, settings.width, 3]
    blank = partial(tf.fill, shape, tf.constant(GREY, tf.uint8))
    pixels = tf.cond(is_usable(decoded.status), make_pixels, blank)
    sides = tf.where(sideways, decoded.sides[::-1], decoded.sides)
    return tf.ensure_shape(pixels, shape), decoded.status, sides[0], sides[1]


def _round(pixels: Any) -> Any:
    """Round float32 in [0,255] to uint8."""
    import tensorflow as tf

    return tf.cast(tf.round(pixels), tf.uint8)


def _detect_format(contents: Any, head: Any, settings: Preprocessing) -> tuple[Any, Any]:
    """Return the format by its signature, and the status to give if the photo is not decoded."""
    import tensorflow as tf

    known = [headers.matches(head, module.SIGNATURE) for module in (jpeg, png, gif, bmp, webp)]
    known[_WEBP] &= headers.matches(head, webp.FORM, at=8)
    kind = tf.argmax([*known, True], output_type=tf.int32)  # the first that matches
    length = tf.strings.length(contents)
    foreign = [headers.matches(head, text, at=at) & (length >= at + len(text)) for text, at in _FOREIGN]
    reason = tf.where(tf.reduce_any(foreign), UNSUPPORTED, NOT_AN_IMAGE)
    reason = tf.where(tf.equal(length, 0), EMPTY, reason)
    too_long = length > settings.max_bytes
    return tf.where(too_long, _NONE, kind), tf.where(too_long, TOO_LARGE, reason)

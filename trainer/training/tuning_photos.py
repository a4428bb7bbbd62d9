"""Photos for fine-tuning: checked once, reduced in size, and decoded as views."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from serving.errors import InputError
from serving.runtime.errors import repeat_cancelled
from trainer.heads import Ints
from trainer.preprocessing import Aspect, Preprocessing, decode_photos, is_usable

WHOLE_PHOTO = (1.0, 0.0, 0.0, 0.0, 1.0)
"""The view (trainer.preprocessing.random_views) that is the photo itself."""

_BATCH_SIZE = 8
"""Photos decoded in one call where nothing is trained."""

_REDUCED_SIZE = 1.5
"""Size of reduced photos, as a multiple of the backbone's input: it leaves room for crops."""


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos and their classes.

    Attributes:
        contents: N encoded photos, which are read once and one after the other.
        targets: int64 [N], classes.
    """

    contents: Iterable[bytes]
    targets: Ints


@dataclass(frozen=True)
class TuningPhotos:
    """Photos of a fine-tuning.

    Attributes:
        training: photos to train on.
        validation: photos that decide which epoch is taken; without them it is the last one.
    """

    training: LabelledPhotos
    validation: LabelledPhotos | None = None


@dataclass(frozen=True)
class PreparedPhotos:
    """Photos in memory, ready to be trained on.

    Attributes:
        contents: N encoded photos, large ones reduced in size.
        targets: int64 [N], classes.
        sha256: SHA-256 of the original photos and their classes, in hex.
    """

    contents: list[bytes]
    targets: Ints
    sha256: str


def prepare_photos(photos: LabelledPhotos, preprocessing: Preprocessing) -> PreparedPhotos:
    """Read and check photos; large ones are kept as smaller JPEGs, which are faster to decode each epoch.

    Photos are reduced only where the aspect is `stretch`: one that is reduced to a square has lost its
    own aspect ratio.

    Raises:
        InputError: a photo cannot be decoded, or there are not as many photos as classes.
    """
    reduce = _make_reducer(preprocessing)
    digest = hashlib.sha256()
    kept: list[bytes] = []
    for part in batch_photos(photos.contents):
        for photo in part:
            digest.update(hashlib.sha256(photo).digest())
        reduced, usable = reduce(part)
        if not usable.numpy().all():
            raise InputError(f"Photo number {len(kept) + int(usable.numpy().argmin())} cannot be decoded.")
        kept += reduced.numpy().tolist() if preprocessing.aspect is Aspect.STRETCH else part
    targets = photos.targets
    if len(kept) != len(targets):
        raise InputError(f"{len(kept)} photos were given, but the labels of {len(targets)}.")
    digest.update(targets.astype("<i8").tobytes())
    return PreparedPhotos(kept, targets.astype(np.int64), digest.hexdigest())


def batch_photos(photos: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield photos in batches that are decoded in one call where nothing is trained."""
    iterator = iter(photos)
    while part := list(islice(iterator, _BATCH_SIZE)):
        yield part


@functools.cache
def make_decoder(preprocessing: Preprocessing) -> Any:
    """Return the function photos string [N], views float32 [N,5] -> pixels uint8 [N,H,W,3].

    It is traced once per process.
    """
    import tensorflow as tf

    decode = tf.function(
        lambda contents, views: decode_photos(contents, preprocessing, views=views)[0],
        input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None, len(WHOLE_PHOTO)])],
        autograph=False,
    )
    return repeat_cancelled(decode)


@functools.cache
def _make_reducer(preprocessing: Preprocessing) -> Any:
    """Return the function photos string [N] -> photos string [N], large ones reduced, and usable bool [N].

    It is traced once per process.
    """
    import tensorflow as tf

    height, width = (math.ceil(_REDUCED_SIZE * side) for side in (preprocessing.height, preprocessing.width))
    larger = replace(preprocessing, height=height, width=width)

    def encode(pixels: Any) -> Any:
        return tf.io.encode_jpeg(pixels, quality=95, chroma_downsampling=False)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def reduce(contents: Any) -> Any:
        pixels, status, heights, widths = decode_photos(contents, larger)
        encoded = tf.map_fn(encode, pixels, fn_output_signature=tf.string)
        # A photo that is only a little larger would lose quality for nothing.
        large = (heights > 2 * height) & (widths > 2 * width)
        return tf.where(large, encoded, contents), is_usable(status)

    return repeat_cancelled(reduce)

"""Small pictures of photos, for people to look at: the report's, and those of the embedding projector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch import files
from serving.convert import Converter
from trainer.graph import Aspect, Preprocessing, decode_photos, usable

Pixels = NDArray[np.uint8]

_BATCH = 32


def jpegs(uris: Sequence[str], side: int, quality: int = 80) -> dict[str, bytes]:
    """A square JPEG of each photo, upright, the largest part around its centre; none of a broken one."""
    import tensorflow as tf

    found = {}
    for uri, pixels in pictures(uris, side):
        encoded = tf.io.encode_jpeg(pixels, quality=quality, optimize_size=True, xmp_metadata="")
        found[uri] = bytes(encoded.numpy())
    return found


def pictures(uris: Sequence[str], side: int) -> Iterator[tuple[str, Pixels]]:
    """The pixels uint8 [side,side,3] of each photo that can be read and decoded, in their order."""
    with Converter() as converter:
        for start in range(0, len(uris), _BATCH):
            sent = {}
            for uri in uris[start : start + _BATCH]:
                try:
                    content = converter.for_graph(files.read(uri))
                except OSError:
                    continue
                if isinstance(content, bytes):
                    sent[uri] = content
            if not sent:
                continue
            pixels, good = _decoder(side)(list(sent.values()))
            for uri, picture, is_good in zip(sent, pixels.numpy(), good.numpy(), strict=True):
                if is_good:
                    yield uri, picture


@cache
def _decoder(side: int) -> Any:
    """The graph for pictures of one size, traced once."""
    import tensorflow as tf

    settings = Preprocessing(height=side, width=side, aspect=Aspect.CROP)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def decode(contents: Any) -> tuple[Any, Any]:
        pixels, status, *_ = decode_photos(contents, settings)
        return pixels, usable(status)

    return decode

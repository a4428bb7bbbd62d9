"""Small pictures of photos, for people to look at: the report's, and those of the embedding projector."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch import files
from serving.convert import Converter
from trainer import signatures
from trainer.fetch import made_once
from trainer.graph import Aspect, Preprocessing, decode_photos, usable

Pixels = NDArray[np.uint8]

_BATCH = 32


def jpegs(uris: Sequence[str], side: int, cache: Path, quality: int = 80) -> dict[str, bytes]:
    """A square JPEG of each photo, upright, the largest part around its centre; none of a broken one.

    Args:
        uris: N photos.
        side: pixels.
        cache: the cache directory, in which the graph that decodes them is kept.
        quality: of the JPEGs, 0 to 100.
    """
    import tensorflow as tf

    found = {}
    for uri, pixels in pictures(uris, side, cache):
        encoded = tf.io.encode_jpeg(pixels, quality=quality, optimize_size=True, xmp_metadata="")
        found[uri] = bytes(encoded.numpy())
    return found


def pictures(uris: Sequence[str], side: int, cache: Path) -> Iterator[tuple[str, Pixels]]:
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
            pixels, good = _decoder(side, cache)(list(sent.values()))
            for uri, picture, is_good in zip(sent, pixels.numpy(), good.numpy(), strict=True):
                if is_good:
                    yield uri, picture


@functools.cache
def _decoder(side: int, cache: Path) -> Any:
    """The graph for pictures of one size: traced once, and kept in the cache under a key of its sources."""
    import tensorflow as tf

    settings = Preprocessing(height=side, width=side, aspect=Aspect.CROP)
    key = [Path(__file__).read_text(encoding="utf-8"), signatures.recipe(), settings.settings()]
    directory = cache / "thumbnails" / hashlib.sha256(json.dumps(key).encode()).hexdigest()
    if not directory.is_dir():
        module = tf.Module()
        module.decode = _traced(settings)
        with made_once(directory) as staged:
            tf.saved_model.save(module, str(staged))
    return tf.saved_model.load(str(directory)).decode


def _traced(settings: Preprocessing) -> Any:
    """Encoded photos string [N] -> pixels uint8 [N,H,W,3], whether each was decoded bool [N]."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def decode(contents: Any) -> tuple[Any, Any]:
        pixels, status, *_ = decode_photos(contents, settings)
        return pixels, usable(status)

    return decode

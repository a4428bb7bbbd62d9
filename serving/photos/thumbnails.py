"""Small pictures of photos, for people to look at: in the reports, and in the embedding projector."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from serving import process
from serving.photos.converter import Converter
from serving.storage import files

SECONDS = 30.0
"""For reading the photos that are shown: after that the others are gaps, and the run ends all the same."""


def make_thumbnails(uris: Sequence[str], side: int) -> dict[str, bytes]:
    """A JPEG of each photo that can be read and decoded in time; its shorter side is `side` pixels at most.

    Decoding is done by `serving.photos.converter`'s processes, with their limits.
    """
    end = time.monotonic() + SECONDS

    def small(uri: str) -> bytes | None:
        if time.monotonic() > end:
            return None
        try:
            made = converter.downscale(files.read(uri), side)
        except OSError:
            return None
        return None if made is None else made.content

    with Converter() as converter, ThreadPoolExecutor(process.cores(), "pictures") as pool:
        pictures = zip(uris, pool.map(small, uris), strict=True)
        return {uri: content for uri, content in pictures if content is not None}

"""Thumbnails of photos for the reports and the embedding projector."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from serving import process
from serving.photos.converter import Converted, Converter
from serving.storage import files

SECONDS = 30.0
"""Time limit for reading all photos; those that are not read by then have no thumbnail."""


def make_thumbnails(uris: Sequence[str], side: int) -> dict[str, bytes]:
    """Return a JPEG of each photo that can be read and decoded in time, by URI.

    The photos are decoded in the processes of `serving.photos.converter`, within their limits.

    Args:
        uris: paths or addresses of the photos.
        side: maximum length of the shorter side, in pixels.
    """
    end = time.monotonic() + SECONDS

    def make_thumbnail(uri: str) -> bytes | None:
        if time.monotonic() > end:
            return None
        try:
            made = converter.make_jpeg(files.read(uri), side)
        except OSError:
            return None
        return made.content if isinstance(made, Converted) else None

    with Converter() as converter, ThreadPoolExecutor(process.cores(), "pictures") as pool:
        pictures = zip(uris, pool.map(make_thumbnail, uris), strict=True)
        return {uri: content for uri, content in pictures if content is not None}

"""Photos read from storage ahead of the model, and converted where the graph cannot decode them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from batch.embeddings import EmbeddingStore, hash_photo
from batch.inputs import listing
from batch.inputs.listing import Photo
from serving.contract import PhotoRejection, Status
from serving.photos.converter import ConversionLimits, Converted, Converter
from serving.process import map_ahead
from serving.text import redact

READER_THREADS = 8
"""Threads that read photos, so that the latency of an object store does not stall the model."""

_SHOWN_BYTES = 8
_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class FetchedPhoto:
    """A photo as read from storage.

    Attributes:
        image: bytes for the model (the file, or the PNG that it was converted to), or the rejection.
        description: text for the column `detail` in case the model rejects the photo.
        seconds: time by stage (`read`, `convert`).
        sha: sha256 of the stored bytes; None if they were not read.
        size: number of bytes read.
        sides: height and width of the original if it was converted, else None.
    """

    image: bytes | PhotoRejection
    description: str
    seconds: Mapping[str, float]
    sha: bytes | None = None
    size: int = 0
    sides: tuple[int, int] | None = None


class PhotoFetcher:
    """Reader of a process's photos; shared by the threads that prefetch.

    Args:
        limits: preprocessing settings of the bundle.
        store: embedding store; photos that it contains are not converted again.
    """

    def __init__(self, limits: Mapping[str, Any], store: EmbeddingStore) -> None:
        self._max_bytes = int(limits.get("max_bytes", _UNLIMITED))
        self._converter = Converter(ConversionLimits.from_preprocessing(limits))
        self._store = store

    def fetch(self, photo: Photo) -> FetchedPhoto:
        """Read a photo; convert it if the graph cannot decode it and the store does not contain it."""
        start = time.perf_counter()
        if photo.size > self._max_bytes:  # a video among the photos: rejected without reading it
            detail = f"{photo.size} bytes, more than the {self._max_bytes} allowed"
            return FetchedPhoto(PhotoRejection(Status.TOO_LARGE, detail), detail, {})
        try:
            content = listing.read_photo(photo)
        except OSError as error:
            seconds = {"read": time.perf_counter() - start}
            detail = redact(str(error))  # a column of the scores
            return FetchedPhoto(PhotoRejection(Status.UNREADABLE, detail), detail, seconds)
        sha = hash_photo(content)
        fetched = FetchedPhoto(content, describe_bytes(content), {}, sha, len(content))
        seconds = {"read": time.perf_counter() - start}
        converted = None if self._store.filter_present([sha]) else self._converter.convert(content)
        if converted is None:
            return replace(fetched, seconds=seconds)
        seconds["convert"] = time.perf_counter() - start - seconds["read"]
        if isinstance(converted, Converted):
            sides = converted.height, converted.width
            return replace(fetched, image=converted.content, seconds=seconds, sides=sides)
        return replace(fetched, image=converted, description=converted.detail, seconds=seconds)

    def prefetch(self, photos: Sequence[Photo]) -> Iterator[tuple[Photo, FetchedPhoto]]:
        """Yield each photo with its content, in order, with a bounded number of photos in memory."""
        # Two per thread: one being read and one waiting for the model.
        return zip(photos, map_ahead(self.fetch, photos, READER_THREADS, 2 * READER_THREADS), strict=True)


def describe_bytes(content: bytes) -> str:
    """Describe a rejected photo by its bytes alone, so that every run writes the same text."""
    return f"{len(content)} bytes" + (f", beginning {content[:_SHOWN_BYTES].hex(' ')}" if content else "")

"""Photos from the storage: read a little ahead of the model, and converted where the graph cannot decode."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from batch.embeddings import EmbeddingStore, photo_sha
from batch.inputs import listing
from batch.inputs.listing import Photo
from serving.contract import PhotoRejection, Status
from serving.photos.converter import Converted, Converter, Limits

READERS = 8
"""Threads that wait for the storage, so that an object store's latency is not the model's."""

_SHOWN_BYTES = 8
_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class Read:
    """A photo as it came from the storage.

    Attributes:
        image: what the model gets: its bytes, or the PNG it was converted to; or why there is neither.
        about: what can be said of it where it is refused.
        seconds: by stage.
        sha: sha256 of the bytes as they are stored; None where they were not read.
        size: bytes that were read.
        sides: height and width of a photo that was converted.
    """

    image: bytes | PhotoRejection
    about: str
    seconds: Mapping[str, float]
    sha: bytes | None = None
    size: int = 0
    sides: tuple[int, int] | None = None


class Reader:
    """Reads the photos of a process.

    Args:
        limits: the preprocessing settings of the bundle.
        store: what it knows is not converted again.
    """

    def __init__(self, limits: Mapping[str, Any], store: EmbeddingStore) -> None:
        self._max_bytes = int(limits.get("max_bytes", _UNLIMITED))
        most = int(limits.get("max_whole_pixels", Limits.max_pixels))
        self._converter = Converter(Limits(max_bytes=self._max_bytes, max_pixels=most))
        self._store = store

    def __call__(self, photo: Photo) -> Read:
        """Read a photo, and convert it where the graph does not decode it and the store does not know it."""
        start = time.perf_counter()
        if photo.size > self._max_bytes:  # a film among the photos is not worth its memory
            detail = f"{photo.size} bytes, more than the {self._max_bytes} allowed"
            return Read(PhotoRejection(Status.TOO_LARGE, detail), detail, {})
        try:
            content = listing.read(photo)
        except OSError as error:
            seconds = {"read": time.perf_counter() - start}
            return Read(PhotoRejection(Status.UNREADABLE, str(error)), str(error), seconds)
        sha = photo_sha(content)
        plain = Read(content, describe(content), {}, sha, len(content))
        seconds = {"read": time.perf_counter() - start}
        result = None if self._store.have([sha]) else self._converter.convert(content)
        if result is None:
            return replace(plain, seconds=seconds)
        seconds["convert"] = time.perf_counter() - start - seconds["read"]
        if isinstance(result, Converted):
            sides = result.height, result.width
            return replace(plain, image=result.content, seconds=seconds, sides=sides)
        return replace(plain, image=result, about=result.detail, seconds=seconds)

    def ahead(self, todo: Sequence[Photo]) -> Iterator[tuple[Photo, Read]]:
        """Each photo with its bytes, in order; a bounded number of them is in memory at any time."""
        waiting: deque[tuple[Photo, Future[Read]]] = deque()
        with ThreadPoolExecutor(READERS, "read") as pool:
            for photo in todo:
                waiting.append((photo, pool.submit(self, photo)))
                if len(waiting) > 2 * READERS:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()


def describe(content: bytes) -> str:
    """What can be said of a refused photo by its bytes alone, so that every run says the same."""
    return f"{len(content)} bytes" + (f", beginning {content[:_SHOWN_BYTES].hex(' ')}" if content else "")

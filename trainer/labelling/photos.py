"""Photos of the labelling page, as upright JPEGs without metadata, in three sizes.

They are decoded and encoded again in the processes of `serving.photos.converter`, so that the browser never
gets the bytes of a file, nor its EXIF data.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from serving import process
from serving.contract import PhotoRejection
from serving.photos.converter import Converter
from serving.storage.regular import read_regular

SIDES = {"small": 256, "medium": 1024, "full": 4096}
"""Maximum length of the shorter side in pixels, by the name of the size."""

CACHE_BYTES = 256 << 20
"""Memory for JPEGs that may be asked for again."""


class PhotoUnavailable(Exception):
    """A photo that cannot be shown; the text says why."""


class PhotoCache:
    """JPEGs of photos by their id; the methods belong to one event loop."""

    def __init__(self, find_uri: Callable[[int], str], max_bytes: int = CACHE_BYTES) -> None:
        """Create an empty cache.

        Args:
            find_uri: returns the path or address of a photo, or raises KeyError.
            max_bytes: memory for the JPEGs.
        """
        self._find_uri, self._max_bytes, self._bytes = find_uri, max_bytes, 0
        self._converter = Converter()
        self._threads = ThreadPoolExecutor(process.cores() + 1, thread_name_prefix="hubhead-photos")
        self._jpegs: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._pending: dict[tuple[int, str], asyncio.Future[bytes]] = {}

    def close(self) -> None:
        """End the threads and the converter processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._converter.close()

    async def load(self, photo: int, size: str) -> bytes:
        """Return the JPEG of a photo; requests for the same one share its decoding.

        Raises:
            KeyError: there is no such photo or size.
            PhotoUnavailable: it cannot be read or decoded.
        """
        key = photo, size
        if found := self._jpegs.get(key):
            self._jpegs.move_to_end(key)
            return found
        if (work := self._pending.get(key)) is None:
            uri, side = self._find_uri(photo), SIDES[size]
            loop = asyncio.get_running_loop()
            work = self._pending[key] = loop.run_in_executor(self._threads, self._make_jpeg, uri, side)
            work.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(work)  # another request may wait for it

    def _keep(self, key: tuple[int, str], done: asyncio.Future[bytes]) -> None:
        del self._pending[key]
        if done.cancelled() or done.exception():
            return
        self._jpegs[key] = done.result()
        self._bytes += len(done.result())
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._jpegs.popitem(last=False)[1])

    def _make_jpeg(self, uri: str, side: int) -> bytes:
        try:
            content = read_regular(uri)
        except OSError as error:
            raise PhotoUnavailable(f"it cannot be read: {error.strerror or type(error).__name__}") from error
        made = self._converter.make_jpeg(content, side)
        if isinstance(made, PhotoRejection):
            raise PhotoUnavailable(made.detail)
        return made.content

"""From what callers hold to what is sent: photos read, converted, and batch_items into requests."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from serving import contract
from serving.contract import PhotoRejection, Prediction, Status
from serving.errors import InputError
from serving.photos.converter import detect_unsupported_format

if TYPE_CHECKING:
    from serving.photos.converter import Converter

MAX_PHOTOS = contract.WARMUP_BATCH_SIZES[-1]
"""Photos a request: the largest batch that the server was warmed for."""

MAX_BYTES = 16 << 20
"""Bytes of photos a request; a single larger photo goes alone."""


MIN_DOWNSCALE_BYTES = 64 << 10
"""Bytes of a photo; a smaller one is sent as it is."""

DOWNSCALE_FACTOR = 2
"""How many times the model's input the shorter side of a reduced photo is: what parity is measured at."""


@runtime_checkable
class Readable(Protocol):
    """A file open for reading bytes."""

    def read(self) -> bytes:
        """All that is left of it."""
        ...


Pixels: TypeAlias = NDArray[np.uint8]

Photo: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | Readable | Pixels
"""Encoded bytes, the path of a file, an open file, or decoded pixels: uint8 [H,W,3], RGB, upright."""

Item: TypeAlias = bytes | Pixels | PhotoRejection
"""A photo ready to be sent, or why it is not."""


@dataclass(frozen=True)
class PhotoLoader:
    """Makes photos ready.

    Attributes:
        converter: makes what is sent of photos that are not sent as they are; None: all are.
        convert: whether PNGs are made of what the graph does not decode.
        side: photos whose shorter side is longer are reduced to it, in pixels; None sends them whole.
    """

    converter: Converter | None = None
    convert: bool = True
    target_side: int | None = None

    def is_ready(self, photo: Photo) -> bool:
        """Whether it takes neither reading nor converting, so that a thread for it would be a waste."""
        if isinstance(photo, bytes):
            wanted = self.target_side is not None or (
                self.convert and detect_unsupported_format(photo) is not None
            )
            return self.converter is None or not wanted
        return isinstance(photo, np.ndarray)

    def __call__(self, photo: Photo) -> Item:
        """One photo ready to be sent.

        Raises:
            InputError: it is none of the kinds of `Photo`, or an array that is not uint8 [H,W,3].
        """
        if isinstance(photo, np.ndarray):
            return _checked(photo)
        content = _content(photo)
        if isinstance(content, PhotoRejection) or self.converter is None:
            return content
        if self.target_side is not None and len(content) > MIN_DOWNSCALE_BYTES:
            reduced = self.converter.downscale(content, self.target_side)
            if reduced is not None and 2 * len(reduced.content) < len(content):
                return reduced.content
        # What cannot be reduced is judged as it would be without.
        return self.converter.convert_if_needed(content) if self.convert else content


def _content(photo: Any) -> bytes | PhotoRejection:
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    try:
        if isinstance(photo, str | os.PathLike):
            return Path(photo).read_bytes()
        if isinstance(photo, Readable):
            content = photo.read()
            if isinstance(content, bytes):
                return content
            raise InputError(
                f"A file given as a photo gave {type(content).__name__}, not bytes.",
                remedy="Open it in binary mode.",
            )
    except OSError as error:
        return PhotoRejection(Status.UNREADABLE, error.strerror or str(error))
    except ValueError as error:  # a path with a zero byte, a closed file
        return PhotoRejection(Status.UNREADABLE, str(error))
    raise InputError(
        f"A photo may be bytes, a path, a file or an array, not {type(photo).__name__}.",
        remedy="Give a list of photos, also where there is but one.",
    )


def _checked(pixels: NDArray[Any]) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(
            f"An array given as a photo is {pixels.dtype} {list(pixels.shape)}; it has to be uint8 [H,W,3].",
            remedy="Give decoded RGB pixels, 0 to 255, one photo an array.",
        )
    return pixels


def encode_png(pixels: Pixels) -> bytes:
    """The pixels as a PNG, without loss (PNG specification, 8 bits, truecolour, no filter)."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row behind the number of its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def count_bytes(item: Item) -> int:
    """Bytes that an item takes in a request."""
    match item:
        case PhotoRejection():
            return 0
        case bytes():
            return len(item)
        case _:
            return int(item.nbytes)


def batch_items(
    items: Iterable[Item],
    *,
    max_photos: int = MAX_PHOTOS,
    max_bytes: int = MAX_BYTES,
) -> Generator[list[Item]]:
    """Items in order, in groups of at most so many and so many bytes; a larger one is alone."""
    group: list[Item] = []
    size = 0
    for item in items:
        length = count_bytes(item)
        if group and (len(group) == max_photos or size + length > max_bytes):
            yield group
            group, size = [], 0
        group.append(item)
        size += length
    if group:
        yield group


def classify(
    photos: Iterable[Photo],
    ask: Callable[[list[bytes]], Sequence[Prediction]],
    *,
    top_k: int | None = None,
) -> list[Prediction]:
    """One prediction a photo, in order, by any function that answers encoded photos.

    Args:
        photos: as for `Client.classify`, but decoded pixels.
        ask: answers a list of encoded photos, never an empty one.
        top_k: how many labels to keep; None keeps all that the model gives.
    """
    results: list[Prediction] = []
    for group in batch_items(map(PhotoLoader(), photos)):
        images = [item for item in group if isinstance(item, bytes)]
        answers = iter(ask(images) if images else ())
        results.extend(
            Prediction.from_rejection(item) if isinstance(item, PhotoRejection) else next(answers)
            for item in group
        )
    return [replace(result, top=result.top[:top_k]) for result in results]

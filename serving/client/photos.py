"""Photos and other inputs on their way into requests: checked, read, converted or downscaled, batched."""

from __future__ import annotations

import inspect
import os
import stat
import struct
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from serving import contract
from serving.client.responses import truncate_top_k
from serving.contract import PhotoRejection, Prediction, Status
from serving.errors import InputError, check_unicode
from serving.photos.formats import detect_unsupported_format
from serving.protos import tensors

if TYPE_CHECKING:
    from serving.photos.converter import Converter

T = TypeVar("T")

MAX_PHOTOS = contract.WARMUP_BATCH_SIZES[-1]
"""Photos per request: the largest batch size that the server is warmed up for."""

MAX_BYTES = 16 << 20
"""Bytes of photos per request; a larger photo is sent in a request of its own."""

_MOST_BYTES = 1 << 28
"""Maximum size of a file: twice what `hubhead serve` takes in a message, four times the models' own limit."""

MIN_DOWNSCALE_BYTES = 64 << 10
"""Bytes of a photo below which it is not downscaled."""

DOWNSCALE_FACTOR = 2
"""Shorter side of a downscaled photo, in multiples of the model's input; parity is measured at it."""


@runtime_checkable
class Readable(Protocol):
    """A file open for reading bytes."""

    def read(self) -> bytes:
        """Read to the end of the file."""
        ...


Pixels: TypeAlias = NDArray[np.uint8]

Photo: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | Readable | Pixels
"""Encoded bytes, a path, an open file, or decoded pixels: uint8 [H,W,3], RGB, upright."""

Rows: TypeAlias = NDArray[Any] | Sequence[bytes]
"""One input tensor, batch first; an array without dimensions, or a number of NumPy, is a scalar."""

Item: TypeAlias = bytes | Pixels | PhotoRejection
"""A photo ready to be sent, or the reason why it is not."""

LoadedPhoto: TypeAlias = tuple[Photo, Item]
"""A photo as the caller gave it, and as it is sent."""


@dataclass(frozen=True)
class PhotoLoader:
    """Reads photos, and converts or downscales them where asked.

    Attributes:
        converter: converter process pool; None to send all photos unchanged.
        convert: True to convert formats that the model does not decode to PNG.
        target_side: shorter side, in pixels, to downscale larger photos to; None not to downscale.
    """

    converter: Converter | None = None
    convert: bool = True
    target_side: int | None = None

    def is_ready(self, photo: Photo) -> bool:
        """Return whether the photo needs neither reading nor converting, so that no thread is needed."""
        if isinstance(photo, bytes):
            unsupported = self.convert and detect_unsupported_format(photo) is not None
            return self.converter is None or (self.target_side is None and not unsupported)
        return isinstance(photo, np.ndarray)

    def __call__(self, photo: Photo) -> Item:
        """Return a photo ready to be sent.

        Raises:
            InputError: `photo` is not one of the types of `Photo`, or an array that is not uint8 [H,W,3].
        """
        if isinstance(photo, np.ndarray):
            return _check_pixels(photo)
        content = _read(photo)
        if isinstance(content, PhotoRejection) or self.converter is None:
            return content
        if self.target_side is not None and len(content) > MIN_DOWNSCALE_BYTES:
            downscaled = self.converter.downscale(content, self.target_side)
            # Re-encoding costs quality: only worth it if it saves at least half of the bytes.
            if downscaled is not None and 2 * len(downscaled.content) < len(content):
                return downscaled.content
        # A photo that cannot be downscaled is treated as if downscaling were off.
        return self.converter.convert_if_needed(content) if self.convert else content


def _read(photo: Any) -> bytes | PhotoRejection:
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    try:
        if isinstance(photo, str | os.PathLike):
            return _read_file(Path(os.fsdecode(photo)))
        if isinstance(photo, Readable):
            content: Any = photo.read()
            if isinstance(content, bytes):
                return content
            if inspect.iscoroutine(content):
                content.close()  # or Python warns that it was never awaited
            raise InputError(
                f"Reading a file given as a photo gave {type(content).__name__}, not bytes.",
                remedy="Open it in binary mode; of an asynchronous file give what its read() returns.",
            )
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte, a closed file
        return PhotoRejection(Status.UNREADABLE, getattr(error, "strerror", None) or str(error))
    raise InputError(
        f"A photo has to be bytes, a path, a file or an array, not {type(photo).__name__}.",
        remedy="Give a list of photos, also for a single photo.",
    )


def _read_file(path: Path) -> bytes | PhotoRejection:
    """Return the content of a file, a pipe or a device; a rejection if it has more than _MOST_BYTES.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        info = os.fstat(file.fileno())
        content = b""
        if info.st_size <= _MOST_BYTES:  # a pipe or a device states no size
            content = file.read(-1 if stat.S_ISREG(info.st_mode) else _MOST_BYTES + 1)
        if max(info.st_size, len(content)) > _MOST_BYTES:
            return PhotoRejection(Status.TOO_LARGE, f"more than {_MOST_BYTES} bytes")
        return content


def check_several(items: T, kinds: Any = Iterable, what: str = "photos") -> T:
    """Return items unchanged, after checking that they are several and not a single one.

    Args:
        items: list, or other iterable, of photos or inputs.
        kinds: classes of iterables that the caller can read.
        what: what the items are, for the error.

    Raises:
        InputError: it is one path, file, photo, array of pixels or input, or cannot be iterated over.
    """
    single = isinstance(items, str | bytes | bytearray | memoryview | os.PathLike | Readable | Mapping)
    array = isinstance(items, np.ndarray) and (
        items.ndim == 0 or (items.dtype.kind in "biufc" and items.ndim != 4)
    )
    if single or array or not isinstance(items, kinds):
        raise InputError(
            f"The {what} are of type {type(items).__name__}, which is not a list of {what}.",
            remedy="Give a list, also for a single one: [...].",
        )
    return items


def check_choice(top_k: int | None, user: str | None = None) -> None:
    """Check the number of labels to keep and the id of the user.

    Raises:
        InputError: `top_k` is not a whole number above 0, or `user` is not a text that UTF-8 can write.
    """
    whole = isinstance(top_k, Integral) and not isinstance(top_k, bool)
    if top_k is not None and not (whole and top_k > 0):
        raise InputError(
            f"top_k is {top_k!r}.", remedy="Give a number of labels, at least 1, or None for all."
        )
    if not isinstance(user, str | None):
        raise InputError(f"The user is of type {type(user).__name__}.", remedy="Give the id as str.")
    check_unicode("The id of the user", user or "")


def check_inputs(signature: str, inputs: Mapping[str, Rows]) -> tuple[dict[str, NDArray[Any]], int]:
    """Return the inputs of `run` as arrays, and their number of rows; 1 if all are scalars.

    Raises:
        InputError: an input is not an array or a list of bytes, or the inputs differ in their rows; a name is
            not a text that UTF-8 can write.
    """
    if not isinstance(signature, str) or not isinstance(inputs, Mapping):
        raise InputError(
            f"The signature is of type {type(signature).__name__}, the inputs of {type(inputs).__name__}.",
            remedy="Give a name, and inputs by name: run('embed', {'image_bytes': [photo]}).",
        )
    for name in (signature, *inputs):
        if not isinstance(name, str):
            raise InputError(f"An input has a name of type {type(name).__name__}.", remedy="Give a str.")
        check_unicode("The name of a signature or an input", name)
    arrays = {name: _to_array(name, value) for name, value in inputs.items()}
    counts = {len(array) for array in arrays.values() if array.ndim}
    if len(counts) > 1 or 0 in counts or not arrays:
        raise InputError(
            f"The inputs {sorted(arrays)} of signature {signature} have {sorted(counts)} rows.",
            remedy="Give all inputs the same number of rows, at least one.",
        )
    return arrays, counts.pop() if counts else 1


def _to_array(name: str, value: Any) -> NDArray[Any]:
    """Return an input as an array.

    Raises:
        InputError: it is not an array, a number of NumPy or a list of bytes, or cannot be read as one.
    """
    if not isinstance(value, str | bytes | bytearray | memoryview | Mapping):
        if hasattr(value, "__array__"):
            try:
                return np.asarray(value)
            except (TypeError, ValueError, RuntimeError) as error:  # such as a tensor of PyTorch on a GPU
                raise InputError(
                    f"Input {name!r} of type {type(value).__name__} cannot be read as an array: {error}",
                    remedy="Give a NumPy array.",
                ) from error
        items: list[Any] = list(value) if isinstance(value, Iterable) else [None]
        if all(isinstance(item, bytes) for item in items):
            return tensors.make_string_array(items)
    raise InputError(
        f"Input {name!r} is of type {type(value).__name__}, which states no dtype or no rows.",
        remedy="Give a NumPy array of the dtype that the signature declares, or a list of bytes.",
    )


def _check_pixels(pixels: NDArray[Any]) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(
            f"An array given as a photo is {pixels.dtype} {list(pixels.shape)}; it has to be uint8 [H,W,3].",
            remedy="Give decoded RGB pixels, 0 to 255, one array per photo.",
        )
    return pixels


def encode_png(pixels: Pixels) -> bytes:
    """Encode pixels as a PNG, without loss (PNG specification: 8 bits, truecolour, no filter)."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row starts with its filter type, 0 for none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


PROBE_PHOTO = encode_png(np.full((8, 8, 3), 128, np.uint8))
"""A grey photo that any image model answers; tells a faulty photo from a faulty server."""


def count_bytes(item: Item) -> int:
    """Return the bytes that an item takes in a request."""
    if isinstance(item, PhotoRejection):
        return 0
    return len(item) if isinstance(item, bytes) else item.nbytes


class Batcher:
    """Splits photos into batches within both bounds, in order; one above `max_bytes` is a batch by itself.

    Args:
        max_photos: maximum number of photos per batch.
        max_bytes: maximum bytes per batch; rejections take none.

    Attributes:
        batch: the photos that are in no complete batch yet.
    """

    def __init__(self, max_photos: int = MAX_PHOTOS, max_bytes: int = MAX_BYTES) -> None:
        self._max_photos = max_photos
        self._max_bytes = max_bytes
        self._size = 0
        self.batch: list[LoadedPhoto] = []

    def add(self, loaded: LoadedPhoto) -> list[LoadedPhoto] | None:
        """Add a photo; return the batch before it if that is complete, else None."""
        item = loaded[1]
        size = count_bytes(item)
        complete = None
        if self.batch and (len(self.batch) == self._max_photos or self._size + size > self._max_bytes):
            complete, self.batch, self._size = self.batch, [], 0
        self.batch.append(loaded)
        self._size += size
        return complete

    def split(self, photos: Iterable[LoadedPhoto]) -> Generator[list[LoadedPhoto]]:
        """Yield the batches of all photos."""
        for loaded in photos:
            if complete := self.add(loaded):
                yield complete
        if self.batch:
            yield self.batch


def classify(
    photos: Iterable[Photo],
    ask: Callable[[list[bytes]], Sequence[Prediction]],
    *,
    top_k: int | None = None,
) -> list[Prediction]:
    """Return one prediction per photo, in order, from any function that classifies encoded photos.

    Args:
        photos: as for `Client.classify`, without decoded pixels.
        ask: function that returns one prediction per encoded photo; its list is never empty.
        top_k: number of labels to keep; None for all that the model returns.
    """
    results: list[Prediction] = []
    check_choice(top_k)
    loader = PhotoLoader()
    for batch in Batcher().split((photo, loader(photo)) for photo in check_several(photos)):
        images = [item for _, item in batch if isinstance(item, bytes)]
        predictions = iter(ask(images) if images else ())
        results.extend(
            Prediction.from_rejection(item) if isinstance(item, PhotoRejection) else next(predictions)
            for _, item in batch
        )
    return truncate_top_k(results, top_k)

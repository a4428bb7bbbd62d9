"""Reader of PyTorch's legacy checkpoint format (before 1.6), without PyTorch.

The file is a sequence of pickles (magic number, protocol, system record, state dict whose tensors refer
to storages by key, list of keys), followed by the storages: a count (int64) and that many little-endian
numbers each. Pickles can run code, so this unpickler accepts only the four names that a state dict
needs and rejects all others.

Source of the layout: torch/serialization.py, `_legacy_load`.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import InputError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


@dataclass(frozen=True, slots=True)
class _Storage:
    """Description of a storage: key, type and number of elements."""

    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """View of a storage: offset, shape and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def resolve(self, storages: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the array; raise ValueError if it reaches beyond its storage."""
        values = storages[self.storage.key]
        if len(self.shape) != len(self.strides) or min((self.offset, *self.shape, *self.strides)) < 0:
            raise ValueError(f"a tensor of shape {self.shape} has an unexpected description")
        last = self.offset + sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
        )
        if last >= len(values) or math.prod(self.shape) > len(values):
            raise ValueError(f"a tensor of shape {self.shape} reaches beyond its storage")
        strides = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Unpickler that builds only numbers, strings, containers and descriptions of tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in DTYPES:
            return np.dtype(DTYPES[name])
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not allowed in a state dict")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, count, view = pid
        if kind != "storage" or view is not None or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError("a storage has an unexpected description")
        return _Storage(str(key), dtype, int(count))


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def read(content: bytes, *, where: str) -> dict[str, NDArray[Any]]:
    """Read the state dict of a legacy checkpoint.

    Args:
        content: content of the file.
        where: name of the file for errors.

    Returns:
        Name -> float32 or int64 array in PyTorch's layout (convolutions are [out, in, h, w]).

    Raises:
        InputError: the file is not such a checkpoint, is truncated, or refers to anything but weights.
    """
    try:
        return _read(BytesIO(content))
    except _MALFORMED as error:
        raise InputError(
            f"{where} is not a readable checkpoint: {error}.", remedy="Give a legacy PyTorch state dict."
        ) from error


_MALFORMED = (
    pickle.UnpicklingError,
    struct.error,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
)
"""Errors that unpickling a truncated or foreign file may raise (documentation of the pickle module)."""


def _read(file: BytesIO) -> dict[str, NDArray[Any]]:
    def load() -> Any:
        return _Unpickler(file).load()

    if load() != MAGIC or load() != PROTOCOL:
        raise ValueError("the magic number or the protocol is not that of a legacy checkpoint")
    load()  # system record: sizes of the C types on the machine that wrote the file
    tensors = load()
    used = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    storages = {key: _read_storage(file, used[key]) for key in load()}
    if file.read(1):
        raise ValueError("there are bytes after the last storage")
    return {str(name): tensor.resolve(storages) for name, tensor in tensors.items()}


def _read_storage(file: BytesIO, storage: _Storage) -> NDArray[Any]:
    (count,) = struct.unpack("<q", file.read(8))
    if count != storage.count or count < 0:
        raise ValueError(f"storage {storage.key} has {count} numbers; expected {storage.count}")
    content = file.read(count * storage.dtype.itemsize)
    if len(content) != count * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} is truncated")
    return np.frombuffer(content, storage.dtype)

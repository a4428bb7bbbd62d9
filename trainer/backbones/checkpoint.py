"""Weights out of PyTorch's legacy checkpoint format (before 1.6), without PyTorch.

The file is a row of pickles - magic number, protocol, system record, the state dict whose tensors refer
to storages by key, the list of keys - and then each storage: a count (int64) and that many
little-endian numbers. Pickles run code, so this unpickler knows the four names that a state dict needs
and refuses the rest.

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
    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of a storage: element offset, shape and strides, all counted in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, storages: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        values = storages[self.storage.key]
        if len(self.shape) != len(self.strides) or min((self.offset, *self.shape, *self.strides)) < 0:
            raise ValueError(f"a tensor of shape {self.shape} is not described as expected")
        last = self.offset + sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
        )
        if last >= len(values) or math.prod(self.shape) > len(values):
            raise ValueError(f"a tensor of shape {self.shape} reaches beyond its storage")
        strides = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Builds numbers, strings, containers and the tensors' descriptions; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in DTYPES:
            return np.dtype(DTYPES[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights do not need")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, count, view = pid
        if kind != "storage" or view is not None or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError("a storage is not described as expected")
        return _Storage(str(key), dtype, int(count))


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def read(content: bytes, *, where: str) -> dict[str, NDArray[Any]]:
    """The state dict of a legacy checkpoint, by name.

    Args:
        content: the whole file.
        where: what to call it in an error.

    Returns:
        Name -> float32 or int64 array in PyTorch's layout (convolutions are [out, in, h, w]).

    Raises:
        InputError: not such a checkpoint, torn, or one that asks for anything beyond weights.
    """
    try:
        return _read(BytesIO(content))
    except _MALFORMED as error:
        raise InputError(
            f"{where} is no checkpoint that can be read: {error}.", remedy="Give a legacy PyTorch state dict."
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
"""What a torn or foreign pickle is known to raise (the pickle module's documentation)."""


def _read(file: BytesIO) -> dict[str, NDArray[Any]]:
    def load() -> Any:
        return _Unpickler(file).load()

    if load() != MAGIC or load() != PROTOCOL:
        raise ValueError("the magic number or the protocol is another")
    load()  # the system record: the sizes of C types on the machine that wrote it
    tensors = load()
    used = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    storages = {key: _storage(file, used[key]) for key in load()}
    if file.read(1):
        raise ValueError("there are bytes after the last storage")
    return {str(name): tensor.of(storages) for name, tensor in tensors.items()}


def _storage(file: BytesIO, storage: _Storage) -> NDArray[Any]:
    (count,) = struct.unpack("<q", file.read(8))
    if count != storage.count or count < 0:
        raise ValueError(f"storage {storage.key} holds {count} numbers, not {storage.count}")
    content = file.read(count * storage.dtype.itemsize)
    if len(content) != count * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} is cut off")
    return np.frombuffer(content, storage.dtype)

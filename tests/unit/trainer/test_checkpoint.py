"""Reader of PyTorch's legacy checkpoints: it restores tensors and never runs code of a pickle."""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.errors import InputError
from trainer.backbones import checkpoint

pytestmark = pytest.mark.tf


class FloatStorage:
    """Stand-in for torch.FloatStorage."""


class Storage:
    def __init__(self, key: str, values: NDArray[np.float32], count: int | None = None) -> None:
        self.key, self.values = key, values
        self.count = len(values) if count is None else count


def _rebuild_tensor_v2() -> None:
    """Stand-in for torch._utils._rebuild_tensor_v2."""


class Tensor:
    def __init__(
        self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_tensor_v2, self.arguments


@pytest.fixture
def torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pickle write the stand-ins under torch's names."""
    for module, stand_in in (("torch", FloatStorage), ("torch._utils", _rebuild_tensor_v2)):
        fake = types.ModuleType(module)
        setattr(fake, stand_in.__name__, stand_in)
        monkeypatch.setattr(stand_in, "__module__", module)
        monkeypatch.setitem(sys.modules, module, fake)


def legacy_checkpoint(state: object, storages: list[Storage]) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, Storage):
                return "storage", FloatStorage, value.key, "cpu", value.count, None
            return None

    file = io.BytesIO()
    for content in (checkpoint.MAGIC, checkpoint.PROTOCOL, {"little_endian": True}):
        pickle.dump(content, file, protocol=2)
    Pickler(file, protocol=2).dump(state)
    pickle.dump([storage.key for storage in storages], file, protocol=2)
    for storage in storages:
        file.write(storage.count.to_bytes(8, "little", signed=True) + storage.values.tobytes())
    return file.getvalue()


def test_tensors_are_read_with_their_offsets_and_strides(torch_names: None) -> None:
    storage = Storage("7", np.arange(8, dtype=np.float32))
    state = OrderedDict(
        whole=Tensor(storage, 0, (2, 4), (4, 1)),
        turned=Tensor(storage, 2, (3, 2), (1, 3)),
        scalar=Tensor(storage, 5, (), ()),
        none=Tensor(storage, 0, (0, 3), (3, 1)),
    )
    read = checkpoint.read(legacy_checkpoint(state, [storage]), where="here")
    np.testing.assert_array_equal(read["whole"], [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(read["turned"], [[2, 5], [3, 6], [4, 7]])
    assert (read["scalar"].shape, read["scalar"][()]) == ((), 5)
    assert read["none"].shape == (0, 3)


def test_a_checkpoint_truncated_anywhere_is_an_error(torch_names: None) -> None:
    storage = Storage("7", np.arange(8, dtype=np.float32))
    content = legacy_checkpoint(OrderedDict(whole=Tensor(storage, 0, (2, 4), (4, 1))), [storage])
    for length in range(len(content)):
        with pytest.raises(InputError, match="here is not a readable checkpoint"):
            checkpoint.read(content[:length], where="here")
    with pytest.raises(InputError, match="after the last storage"):
        checkpoint.read(content + b"x", where="here")


@pytest.mark.parametrize(
    "arguments",
    [
        (0, (3, 3), (3, 1)),
        (8, (1,), (1,)),
        (-1, (1,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2, 2), (1,)),
        (0, (10**12,), (0,)),
    ],
)
def test_a_tensor_beyond_its_storage_is_an_error(torch_names: None, arguments: Any) -> None:
    storage = Storage("7", np.arange(8, dtype=np.float32))
    with pytest.raises(InputError, match="a tensor of shape"):
        checkpoint.read(legacy_checkpoint({"bad": Tensor(storage, *arguments)}, [storage]), where="here")


@pytest.mark.parametrize("count", [7, 9, 2**60, -1])
def test_a_storage_with_a_wrong_size_is_an_error(torch_names: None, count: int) -> None:
    storage = Storage("7", np.arange(8, dtype=np.float32), count)
    with pytest.raises(InputError, match="here is not a readable checkpoint"):
        checkpoint.read(legacy_checkpoint({"a": Tensor(storage, 0, (1,), (1,))}, [storage]), where="here")


class MaliciousObject:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, getattr])
def test_a_pickle_that_would_run_code_is_rejected_before_it_runs(
    function: Callable[..., Any], tmp_path: Path
) -> None:
    victim = tmp_path / "ran"
    argument = f"touch {victim}" if function is os.system else f"open({str(victim)!r}, 'w')"
    attack = MaliciousObject(function, argument)
    for content in (pickle.dumps(attack, protocol=2), legacy_checkpoint({"weight": attack}, [])):
        with pytest.raises(InputError, match=r"it refers to \w+\.\w+, which is not allowed|magic"):
            checkpoint.read(content, where="here")
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x02}q\x00.", b"\xff" * 100])
def test_a_file_of_another_format_is_an_error(content: bytes) -> None:
    with pytest.raises(InputError, match="here is not a readable checkpoint"):
        checkpoint.read(content, where="here")


def test_a_state_that_is_not_a_dictionary_of_tensors_is_an_error() -> None:
    for state in (5, [1], {"a": 5}, None):
        with pytest.raises(InputError, match="here is not a readable checkpoint"):
            checkpoint.read(legacy_checkpoint(state, []), where="here")

"""Writes to a full disk, a device or a pipe: errors that name the place, and no file in its place."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from serving.errors import BundleError, OutputError
from serving.registry.stores.local import LocalStore
from serving.registry.stores.store import silent
from serving.runtime.errors import RunError, output_errors
from serving.storage import files
from trainer.training.outputs import write_labels

FULL = os.strerror(errno.ENOSPC)


class OpError(Exception):
    """Like TensorFlow's class of this name, whose import takes seconds."""

    error_code = 8


@pytest.mark.parametrize("kind", [OpError, lambda text: RunError(text, "RESOURCE_EXHAUSTED")])
def test_a_checkpoint_that_does_not_fit_is_an_output_error(kind: Any) -> None:
    text = (
        "{{function_node __wrapped__SaveV2_dtypes_247_device_/CPU:0}} /models/.staging-x/variables/"
        f"variables.data-00000-of-00001.tempstate1; {FULL} [Op:SaveV2]\nHint: see the documentation"
    )
    with (
        pytest.raises(OutputError, match=f"^Cannot write to /models/food: {FULL}. Check the free space"),
        output_errors("/models/food"),
    ):
        raise kind(text)


def test_other_errors_of_a_save_stay_as_they_are() -> None:
    with pytest.raises(ValueError, match="not traceable"), output_errors("/models/food"):
        raise ValueError("not traceable")


@pytest.mark.parametrize("several", [False, True])
def test_a_bundle_that_does_not_fit_is_one_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    def copy(*_: Any, **__: Any) -> None:
        error = OSError(errno.ENOSPC, FULL, "food/1/a", None, "models/.staging-x/a")
        raise shutil.Error([("food/1/a", "models/.staging-x/a", str(error))] * 300) if several else error

    monkeypatch.setattr(shutil, "copytree", copy)
    (tmp_path / "food").mkdir()
    with pytest.raises(BundleError, match=f"cannot be copied to .*{FULL}: 'food/1/a'") as caught:
        LocalStore(tmp_path / "models").publish(tmp_path / "food", "", at_least=1, log=str, say=silent)
    assert len(str(caught.value)) < 400
    assert not list(tmp_path.glob("models/.staging*"))


def test_a_pipe_or_a_device_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # without it, the opening for writing would wait
    try:
        files.write(str(pipe), b"rows")
        assert os.read(reader, 10) == b"rows"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_labels_that_do_not_fit_are_an_output_error() -> None:
    with pytest.raises(OutputError, match=f"Cannot write /dev/full: {FULL}"):
        write_labels(["apple"], Path("/dev/full"))

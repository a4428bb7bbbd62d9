"""Runs of a graph that TensorFlow reports as cancelled although nothing cancels them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving import contract, runtime
from serving.protos.tensors import make_string_array
from serving.runtime import RunError, tensorflow_model
from serving.runtime.c_api import GraphSession
from serving.runtime.errors import ATTEMPTS
from serving.runtime.session import ClassicSession
from tests.support.trained import Trained
from trainer.preprocessing import Preprocessing
from trainer.training import tuning_photos

pytestmark = [pytest.mark.tf, pytest.mark.beam]

MESSAGE = "Function was cancelled before it was started"

Run = Callable[[], Any]
"""Decodes no photos; returns one output."""


@pytest.fixture
def path(trained: Trained) -> Path:
    return trained.result.bundle.path


class Faults:
    """Failures of the next runs of a graph.

    Args:
        make_error: returns the error of a run for a status code.

    Attributes:
        code: status code of the failures.
        left: number of runs that are still to fail.
        runs: number of runs so far.
    """

    def __init__(self, make_error: Callable[[str], Exception]) -> None:
        self.make_error, self.code, self.left, self.runs = make_error, "", 0, 0

    def inject(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that fails as often as `left` states, then runs."""

        def faulty(*args: Any, **kwargs: Any) -> Any:
            self.runs += 1
            if self.left:
                self.left -= 1
                raise self.make_error(self.code)
            return run(*args, **kwargs)

        return faulty


def make_run_error(code: str) -> Exception:
    return RunError(MESSAGE, code)


def make_op_error(code: str) -> Exception:
    import tensorflow as tf

    error = {"CANCELLED": tf.errors.CancelledError, "INTERNAL": tf.errors.InternalError}[code]
    return error(None, None, MESSAGE)


def prepare_onnx(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Faults]:
    faults = Faults(make_run_error)
    monkeypatch.setattr(GraphSession, "run", faults.inject(GraphSession.run))
    model = runtime.load(path, engine="onnx")
    model.prepare(contract.DECODE)
    return lambda: model.run(contract.DECODE, {contract.IMAGE_BYTES: []})[contract.STATUS], faults


def prepare_tensorflow(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Faults]:
    faults, freeze = Faults(make_op_error), tensorflow_model._freeze
    monkeypatch.setattr(tensorflow_model, "_freeze", lambda function: faults.inject(freeze(function)))
    model = runtime.load(path, engine="tensorflow")
    return lambda: model.run(contract.DECODE, {contract.IMAGE_BYTES: []})[contract.STATUS], faults


def prepare_session(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Faults]:
    faults, session = Faults(make_op_error), ClassicSession(path)
    monkeypatch.setattr(session._session, "run", faults.inject(session._session.run))
    return lambda: session.run(contract.DECODE, {contract.IMAGE_BYTES: []})[contract.STATUS], faults


def prepare_callable(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Faults]:
    faults, session = Faults(make_op_error), ClassicSession(path)
    make = session._session._make_callable_from_options
    monkeypatch.setattr(
        session._session, "_make_callable_from_options", lambda options: faults.inject(make(options))
    )
    run = session.make_callable(contract.DECODE)
    status = sorted(session.signatures[contract.DECODE].outputs).index(contract.STATUS)
    return lambda: run(make_string_array([]))[status], faults


def prepare_tuning(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Faults]:
    del path
    import tensorflow as tf

    faults, function = Faults(make_op_error), tf.function
    with monkeypatch.context() as patched:
        patched.setattr(tf, "function", lambda *args, **options: faults.inject(function(*args, **options)))
        decode = tuning_photos.make_decoder.__wrapped__(Preprocessing(height=8, width=8))
    nothing = tf.constant([], tf.string), tf.zeros([0, len(tuning_photos.WHOLE_PHOTO)])
    return lambda: decode(*nothing), faults


@pytest.mark.parametrize(("code", "failures"), [("CANCELLED", 4), ("CANCELLED", 5), ("INTERNAL", 1)])
@pytest.mark.parametrize(
    "prepare", [prepare_onnx, prepare_tensorflow, prepare_session, prepare_callable, prepare_tuning]
)
def test_runs_that_tensorflow_cancels_by_itself_are_repeated(
    prepare: Any, code: str, failures: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, faults = prepare(path, monkeypatch)
    run()
    faults.runs, faults.left, faults.code = 0, failures, code
    if code == "CANCELLED" and failures < ATTEMPTS:
        assert len(run()) == 0
        assert faults.runs == failures + 1
        return
    with pytest.raises(Exception, match=MESSAGE):
        run()
    assert faults.runs == failures

"""TensorFlow's C library: values in and out, errors, and memory."""

from __future__ import annotations

import gc
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from serving import protos
from serving.errors import InputError
from serving.protos import tensors
from serving.runtime import RunError, c_api
from serving.runtime.c_api import GraphSession

pytestmark = pytest.mark.tf


def make_session(dtype: int, op: str = "Identity", output: str = "T") -> GraphSession:
    """Return a session with one placeholder `x` and one op `y` on it."""
    graph = protos.GraphDef()
    graph.node.add(name="x", op="Placeholder").attr["dtype"].type = dtype
    node = graph.node.add(name="y", op=op, input=["x"])
    if output:
        node.attr[output].type = dtype
    return GraphSession(graph.SerializeToString(), threads=1)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 8, 9, 10, 17, 19, 22, 23])
@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 0, 3), (2, 3)])
def test_numbers_come_back_as_they_were(number: int, shape: tuple[int, ...]) -> None:
    dtype, _ = tensors.NUMERIC[number]
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    [found] = make_session(number).run({"x:0": values}, ["y:0"])
    assert found.dtype == dtype
    assert found.shape == shape
    assert (found == values).all()


@pytest.mark.parametrize("rows", [3, 3000], ids=["small", "memory that free() unmaps"])
def test_values_that_are_not_contiguous(rows: int) -> None:
    values = np.arange(rows * 1000, dtype=np.float32).reshape(rows, 1000).T
    [found] = make_session(1).run({"x:0": values}, ["y:0"])
    assert (found == values).all()


def test_values_of_the_other_byte_order() -> None:
    values = np.arange(4, dtype=">i4")
    [found] = make_session(3).run({"x:0": values}, ["y:0"])
    assert found.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_bfloat16_comes_back_as_it_was(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 1.5, ml_dtypes.bfloat16)
    [found] = make_session(tensors.DT_BFLOAT16).run({"x:0": values}, ["y:0"])
    assert found.dtype == values.dtype
    assert found.shape == shape
    assert (found == values).all()


@pytest.mark.parametrize("text", ["text", bytearray(b"text"), None, 0.0], ids=repr)
def test_strings_that_are_not_bytes_are_rejected(text: Any) -> None:
    with pytest.raises(RunError, match=f"only bytes, not {type(text).__name__}"):
        make_session(tensors.DT_STRING).run({"x:0": [b"", text]}, ["y:0"])


def test_outputs_of_other_dtypes_are_errors() -> None:
    graph = protos.GraphDef()
    node = graph.node.add(name="y", op="VarHandleOp")
    node.attr["dtype"].type = 1
    node.attr["shape"].shape.unknown_rank = True
    with pytest.raises(RunError, match="dtype resource"):
        GraphSession(graph.SerializeToString(), threads=1).run({}, ["y:0"])


def test_sessions_do_not_share_the_threads_of_the_first_one() -> None:
    first = make_session(1)
    before = len(list(Path("/proc/self/task").iterdir()))
    graph = protos.GraphDef()
    graph.node.add(name="x", op="NoOp")
    second = GraphSession(graph.SerializeToString(), threads=3)
    assert len(list(Path("/proc/self/task").iterdir())) == before + 3
    del first, second


def test_without_threads_ops_run_on_the_thread_of_the_caller() -> None:
    graph = protos.GraphDef()
    graph.node.add(name="y0", op="Placeholder").attr["dtype"].type = 1
    # Many small ops: a kernel of a large one (a product of matrices, on some CPUs) has threads of its own.
    for number in range(1, 3001):
        graph.node.add(name=f"y{number}", op="Sin", input=[f"y{number - 1}"]).attr["T"].type = 1
    values = np.linspace(-3, 3, 500, dtype=np.float32)

    def measure(threads: int) -> tuple[float, NDArray[Any]]:
        """Return the processor seconds of this thread, whatever others do, and the output."""
        session = GraphSession(graph.SerializeToString(), threads)
        session.run({"y0:0": values}, ["y3000:0"])
        start = time.thread_time()
        for _ in range(10):
            [found] = session.run({"y0:0": values}, ["y3000:0"])
        return time.thread_time() - start, found

    (own, found), (pooled, expected) = measure(0), measure(2)
    assert own > 3 * pooled
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "texts",
    [[], [b""], [b"a\0b", b"\xff\xfe", b"x" * 22, b"x" * 23, b"x" * (1 << 20)]],
    ids=["none", "empty", "short and long"],
)
def test_strings_come_back_as_they_were(texts: list[bytes]) -> None:
    [found] = make_session(tensors.DT_STRING).run({"x:0": texts}, ["y:0"])
    assert found.tolist() == texts


def test_a_scalar_string() -> None:
    [found] = make_session(tensors.DT_STRING).run({"x:0": np.array(b"text", object)}, ["y:0"])
    assert found.shape == ()
    assert found.item() == b"text"


def test_errors_have_the_status_and_the_message_of_the_op() -> None:
    session = make_session(tensors.DT_STRING, "DecodeJpeg", "")
    with pytest.raises(RunError) as caught:
        session.run({"x:0": np.array(b"text", object)}, ["y:0"])
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "Unknown image file format" in str(caught.value)
    with pytest.raises(RunError, match="no operation 'z'"):
        session.run({"x:0": np.array(b"text", object)}, ["z:0"])
    with pytest.raises(RunError):
        GraphSession(b"no graph", threads=1)


def test_without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match="tensorflow is not installed"):
        c_api.find_tensorflow()


def test_outputs_outlive_their_session_and_memory_is_freed() -> None:
    values = np.ones(1 << 20, np.float32)  # 4 MiB

    def use(count: int) -> list[Any]:
        session = make_session(1)
        return [session.run({"x:0": values}, ["y:0"])[0] for _ in range(count)]

    kept = use(1)
    gc.collect()
    assert (kept[0] == 1).all()
    use(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(50):
        use(5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB; 1 GB without


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # what Python says of it too
def test_a_forked_process_gets_an_error_and_does_not_hang() -> None:
    session = make_session(1)
    values = np.ones(3, np.float32)
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            session.run({"x:0": values}, ["y:0"])
        except InputError as error:
            code = 0 if "forked" in str(error) else 2
        else:
            code = 1
        del session
        gc.collect()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    [found] = session.run({"x:0": values}, ["y:0"])
    assert (found == 1).all()

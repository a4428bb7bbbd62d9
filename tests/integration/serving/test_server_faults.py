"""Hostile and unlucky callers: broken messages, wild tensors, slow senders, too many calls, swaps."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import protos
from serving.protos import tensors
from serving.server import RunningServer, ServerSettings, start
from tests.support.fake_model import LIMIT, Doublers, double, eventually, write_doubler

METHODS = (
    protos.PREDICT,
    protos.CLASSIFY,
    protos.REGRESS,
    protos.MULTI_INFERENCE,
    protos.GET_MODEL_METADATA,
    protos.GET_MODEL_STATUS,
    protos.RELOAD_CONFIG,
)

SAYS_WHY = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"}
"""Codes for a message that was understood, and refused."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    base = tmp_path_factory.mktemp("models") / "double"
    write_doubler(base / "1")
    with start(ServerSettings(base, port=0), loader=Doublers()) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        yield channel


def code_of(channel: grpc.Channel, path: str, body: bytes) -> str:
    try:
        channel.unary_unary(path)(body, timeout=LIMIT)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def still_answers(channel: grpc.Channel) -> bool:
    return bool(tensors.decode(double(channel, 2.0).outputs["y"], "y").tolist() == [4.0])


def request_of(path: str) -> protos.Message:
    name = {
        protos.PREDICT: "PredictRequest",
        protos.CLASSIFY: "ClassificationRequest",
        protos.REGRESS: "RegressionRequest",
        protos.MULTI_INFERENCE: "MultiInferenceRequest",
        protos.GET_MODEL_METADATA: "GetModelMetadataRequest",
        protos.GET_MODEL_STATUS: "GetModelStatusRequest",
        protos.RELOAD_CONFIG: "ReloadConfigRequest",
    }[path]
    return getattr(protos, name)


def parses(path: str, body: bytes) -> bool:
    try:
        request_of(path).FromString(body)
    except Exception:
        return False
    return True


SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(path=st.sampled_from(METHODS[:-1]), body=st.binary(max_size=200))
def test_bytes_that_are_no_message_get_the_code_of_grpcs_own_servers(
    channel: grpc.Channel, path: str, body: bytes
) -> None:
    code = code_of(channel, path, body)
    assert code in SAYS_WHY if parses(path, body) else code == "INTERNAL"


def valid() -> bytes:
    request = protos.PredictRequest(model_spec={"name": "double"})
    request.inputs["x"].CopyFrom(tensors.encode(np.arange(5, dtype=np.float32), typed_fields=True))
    return bytes(request.SerializeToString())


@SLOW
@given(at=st.integers(0, len(valid()) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_request_gets_an_answer_or_a_reason(
    channel: grpc.Channel, at: int, byte: int, cut: bool
) -> None:
    body = valid()[:at] if cut else valid()[:at] + bytes([byte]) + valid()[at + 1 :]
    code = code_of(channel, protos.PREDICT, body)
    if not parses(protos.PREDICT, body):
        assert code == "INTERNAL"
    else:  # a changed byte may well make a number negative, which this model refuses
        assert code in SAYS_WHY | {"OK", "OUT_OF_RANGE"}


@SLOW
@given(
    dtype=st.integers(-3, 200),
    sizes=st.lists(st.integers(-2, 2**62), max_size=4) | st.lists(st.integers(0, 3), max_size=4),
    values=st.lists(st.floats(width=32, allow_nan=False, min_value=0), max_size=5),
    strings=st.lists(st.binary(max_size=3), max_size=3),
    content=st.binary(max_size=20),
    unknown=st.booleans(),
)
def test_a_wild_tensor_is_refused_and_takes_no_memory(
    channel: grpc.Channel,
    dtype: int,
    sizes: list[int],
    values: list[float],
    strings: list[bytes],
    content: bytes,
    unknown: bool,
) -> None:
    request = protos.PredictRequest(model_spec={"name": "double"})
    x = request.inputs["x"]
    x.dtype = dtype
    x.tensor_shape.unknown_rank = unknown
    for size in sizes:
        x.tensor_shape.dim.add(size=size)
    x.float_val.extend(values)
    x.string_val.extend(strings)
    x.tensor_content = content
    code = code_of(channel, protos.PREDICT, request.SerializeToString())
    assert code in {"OK", "OUT_OF_RANGE", "INVALID_ARGUMENT"}
    if dtype != 1:
        assert code == "INVALID_ARGUMENT"


def test_a_shape_that_a_few_bytes_cannot_fill_is_refused(channel: grpc.Channel) -> None:
    request = protos.PredictRequest(model_spec={"name": "double"})
    request.inputs["x"].CopyFrom(protos.TensorProto(dtype=1, float_val=[1]))
    request.inputs["x"].tensor_shape.dim.add(size=400_000_000)
    assert code_of(channel, protos.PREDICT, request.SerializeToString()) == "INVALID_ARGUMENT"


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    path = f"/{protos.PREDICTION_SERVICE}/PredictStreamed"
    assert code_of(channel, path, b"") == "UNIMPLEMENTED"
    assert code_of(channel, "/some.Other/Method", b"") == "UNIMPLEMENTED"


# --- HTTP/2 by hand ---------------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(path: str) -> bytes:
    """Literal header fields without Huffman coding or a table (RFC 7541, 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    parts = [
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    ]
    return b"".join(parts)


def connected(server: RunningServer) -> socket.socket:
    found = socket.create_connection(("localhost", server.port), timeout=LIMIT)
    found.sendall(PREFACE + frame(SETTINGS, 0, 0))
    return found


def message(body: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(body)) + body


def ended(connection: socket.socket, stream: int) -> bool:
    """Whether the server ends a stream, by RST_STREAM or by trailers."""
    file = connection.makefile("rb")
    while start := file.read(9):
        kind, flags = start[3], start[4]
        file.read(int.from_bytes(start[:3], "big"))
        last = kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM)
        if last and int.from_bytes(start[5:], "big") == stream:
            return True
    return False


def test_senders_that_stop_half_way_hold_up_nobody(server: RunningServer, channel: grpc.Channel) -> None:
    slow = [connected(server) for _ in range(5)]
    try:
        whole = message(valid())
        for number, one in enumerate(slow):
            for stream in range(1, 2 * 90, 2):  # 450 calls, more than there are threads
                one.sendall(frame(HEADERS, END_HEADERS, stream, headers(protos.PREDICT)))
                one.sendall(frame(DATA, 0, stream, whole[: number * 3]))
        start = time.monotonic()
        assert still_answers(channel)
        assert time.monotonic() - start < LIMIT / 3
        assert threading.active_count() < 200
    finally:
        for one in slow:
            one.close()
    assert still_answers(channel)


def test_a_stream_that_ends_without_its_message_ends_here_too(
    server: RunningServer, channel: grpc.Channel
) -> None:
    for sent in (b"", message(valid())[:7]):
        with connected(server) as one:
            one.sendall(frame(HEADERS, END_HEADERS | (0 if sent else END_STREAM), 1, headers(protos.PREDICT)))
            if sent:
                one.sendall(frame(DATA, END_STREAM, 1, sent))
            assert ended(one, stream=1)
        assert still_answers(channel)


@SLOW
@given(garbage=st.binary(max_size=100), after=st.booleans())
def test_bytes_that_are_no_http_close_the_connection_alone(
    server: RunningServer, channel: grpc.Channel, garbage: bytes, after: bool
) -> None:
    with socket.create_connection(("localhost", server.port), timeout=LIMIT) as one:
        one.sendall((PREFACE + frame(SETTINGS, 0, 0) if after else b"") + garbage)
    assert still_answers(channel)


# --- More than there is room for --------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_doubler(tmp_path / "double" / "1")
    return tmp_path / "double"


def test_calls_beyond_the_limit_are_refused_at_once_and_the_rest_of_the_server_answers(base: Path) -> None:
    loader = Doublers(gated=True)
    with (
        start(ServerSettings(base, port=0, grpc_max_threads=4), loader=loader) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
        ThreadPoolExecutor(4) as pool,
    ):
        waiting = [pool.submit(double, channel, 1.0) for _ in range(4)]
        eventually(lambda: server._grpc._calls._held == 4)
        with pytest.raises(grpc.RpcError) as caught:
            double(channel, 1.0)
        assert (caught.value.code().name, caught.value.details()) == (
            "UNAVAILABLE",
            "The batch scheduling queue to which this task was submitted is full; "
            "currently 4 batches enqueued and max_enqueued_batches is 4",
        )
        status = protos.GetModelStatusRequest(model_spec={"name": "double"}).SerializeToString()
        assert code_of(channel, protos.GET_MODEL_STATUS, status) == "OK"
        loader.models[1].gate.set()
        for future in waiting:
            future.result(LIMIT)
        eventually(lambda: server._grpc._calls._held == 0)
        assert still_answers(channel)


def test_a_caller_that_leaves_makes_room_once_his_call_is_done(base: Path) -> None:
    loader = Doublers(gated=True)
    with (
        start(ServerSettings(base, port=0), loader=loader) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        call = channel.unary_unary(protos.PREDICT).future(valid(), timeout=LIMIT)
        eventually(lambda: loader.models[1].running > 0)
        call.cancel()
        loader.models[1].gate.set()
        eventually(lambda: server._grpc._calls._held == 0)
        assert still_answers(channel)


class Slow:
    """y = 2x, 5 ms a row."""

    threads = 2

    def run(self, signature: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        time.sleep(0.005 * len(inputs["x"]))
        return {"y": inputs["x"] * 2}


def test_more_than_it_can_bear_is_refused_and_nothing_is_left_of_it(base: Path) -> None:
    with (
        start(ServerSettings(base, port=0), loader=lambda _: Slow()) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        call = channel.unary_unary(protos.PREDICT)
        futures = [call.future(valid(), timeout=0.5) for _ in range(1500)]  # of five rows: some 19 s of work
        codes = Counter(future.code().name for future in futures)
        # The caller's clock, the queue's, or that of the server's transport, whichever is a moment ahead.
        late = {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"}
        assert codes.keys() <= late | {"OK", "UNAVAILABLE"}
        assert codes["OK"] > 0
        assert codes["UNAVAILABLE"] > 0
        eventually(lambda: server._grpc._calls._held == server._grpc._calls._bytes == 0)
        assert still_answers(channel)
        with server.manager.use(protos.ModelSpec(name="double")) as servable:
            eventually(lambda: servable._batcher.waiting == servable._batcher._running == 0)
            assert servable._batcher._bytes == 0


def batch_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "-batch-" in thread.name}


def test_no_request_fails_while_versions_come_and_go(base: Path) -> None:
    settings = ServerSettings(base, port=0, file_system_poll_wait_seconds=0.01)
    before = batch_threads()
    done = threading.Event()
    answered = [0] * 8
    versions: set[int] = set()
    with (
        start(settings, loader=Doublers()) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
        ThreadPoolExecutor(len(answered)) as pool,
    ):

        def flow(number: int) -> None:
            while not done.is_set():
                response = double(channel, float(number), 1.0)
                assert tensors.decode(response.outputs["y"], "y").tolist() == [2.0 * number, 2.0]
                versions.add(response.model_spec.version.value)
                answered[number] += 1

        flows = [pool.submit(flow, number) for number in range(len(answered))]
        try:
            for version in range(2, 32):
                so_far = sum(answered)
                write_doubler(base / str(version))
                eventually(lambda version=version: server.version == version)
                eventually(lambda so_far=so_far: sum(answered) > so_far + 35)
        finally:
            done.set()
        for future in flows:
            future.result(LIMIT)
    assert sum(answered) >= 1000
    assert len(versions) >= 30
    eventually(lambda: not batch_threads() - before)

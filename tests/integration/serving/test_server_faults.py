"""Fault tolerance: corrupt messages, arbitrary tensors, slow HTTP/2 senders, overload, version swaps."""

from __future__ import annotations

import gc
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import weakref
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
from tests.support.fake_model import (
    LIMIT,
    REQUEST_TYPES,
    FakeModel,
    FakeModelLoader,
    call_double,
    eventually,
    get_current_version,
    write_bundle_metadata,
    write_fake_model,
)

pytestmark = pytest.mark.server

METHODS = (
    protos.PREDICT,
    protos.CLASSIFY,
    protos.REGRESS,
    protos.MULTI_INFERENCE,
    protos.GET_MODEL_METADATA,
    protos.GET_MODEL_STATUS,
    protos.RELOAD_CONFIG,
)

REJECTIONS = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"}
"""Status codes of messages that were parsed and rejected."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    base = tmp_path_factory.mktemp("models") / "double"
    write_fake_model(base / "1")
    with start(ServerSettings(base, port=0), loader=FakeModelLoader()) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        yield channel


def get_status_code(channel: grpc.Channel, path: str, body: bytes) -> str:
    try:
        channel.unary_unary(path)(body, timeout=LIMIT)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def is_responsive(channel: grpc.Channel) -> bool:
    return bool(tensors.decode(call_double(channel, 2.0).outputs["y"], "y").tolist() == [4.0])


def find_request_class(path: str) -> protos.Message:
    return getattr(protos, REQUEST_TYPES[path])


def is_parseable(path: str, body: bytes) -> bool:
    try:
        find_request_class(path).FromString(body)
    except Exception:
        return False
    return True


SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(path=st.sampled_from(METHODS[:-1]), body=st.binary(max_size=200))
def test_unparseable_request_is_rejected_and_never_internal(
    channel: grpc.Channel, path: str, body: bytes
) -> None:
    code = get_status_code(channel, path, body)
    assert code in REJECTIONS if is_parseable(path, body) else code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "path",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
@pytest.mark.parametrize("body", [b"\xff\xff", b"\x0a\x01\xff", b"\x0a\x05a"])
def test_unparseable_health_check_or_reflection_request_is_rejected(
    channel: grpc.Channel, path: str, body: bytes
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream(path)(body, timeout=LIMIT))
    assert caught.value.code().name == "INVALID_ARGUMENT"
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"", timeout=LIMIT)


def test_error_details_that_are_not_ascii_fit_into_a_header(channel: grpc.Channel) -> None:
    request = protos.PredictRequest(model_spec={"name": "\U0001f355" * 5000}).SerializeToString()
    assert get_status_code(channel, protos.PREDICT, request) == "NOT_FOUND"


def test_invented_model_names_are_counted_without_a_name(
    server: RunningServer, channel: grpc.Channel
) -> None:
    for number in range(50):
        for path in (protos.PREDICT, protos.CLASSIFY, protos.REGRESS):
            request = find_request_class(path)(model_spec={"name": f"invented{number}"})
            get_status_code(channel, path, request.SerializeToString())
    metrics = server.metrics.render().decode()
    assert "invented" not in metrics
    assert ':tensorflow:serving:request_count{model_name="",status="NOT_FOUND"}' in metrics


def make_valid_body() -> bytes:
    request = protos.PredictRequest(model_spec={"name": "double"})
    request.inputs["x"].CopyFrom(tensors.encode(np.arange(5, dtype=np.float32), typed_fields=True))
    return bytes(request.SerializeToString())


@SLOW
@given(at=st.integers(0, len(make_valid_body()) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_corrupted_request_gets_a_response_or_a_status_error(
    channel: grpc.Channel, at: int, byte: int, cut: bool
) -> None:
    body = (
        make_valid_body()[:at]
        if cut
        else make_valid_body()[:at] + bytes([byte]) + make_valid_body()[at + 1 :]
    )
    code = get_status_code(channel, protos.PREDICT, body)
    if not is_parseable(protos.PREDICT, body):
        assert code == "INVALID_ARGUMENT"
    else:  # a changed byte may make a number negative, which the model rejects
        assert code in REJECTIONS | {"OK", "OUT_OF_RANGE"}


@SLOW
@given(
    dtype=st.integers(-3, 200),
    sizes=st.lists(st.integers(-2, 2**62), max_size=4) | st.lists(st.integers(0, 3), max_size=4),
    values=st.lists(st.floats(width=32, allow_nan=False, min_value=0), max_size=5),
    strings=st.lists(st.binary(max_size=3), max_size=3),
    content=st.binary(max_size=20),
    unknown=st.booleans(),
)
def test_arbitrary_tensor_proto_is_answered_or_rejected(
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
    code = get_status_code(channel, protos.PREDICT, request.SerializeToString())
    assert code in {"OK", "OUT_OF_RANGE", "INVALID_ARGUMENT"}
    if dtype != 1:
        assert code == "INVALID_ARGUMENT"


def test_tensor_shape_larger_than_its_content_is_rejected(channel: grpc.Channel) -> None:
    request = protos.PredictRequest(model_spec={"name": "double"})
    request.inputs["x"].CopyFrom(protos.TensorProto(dtype=1, float_val=[1]))
    request.inputs["x"].tensor_shape.dim.add(size=400_000_000)
    assert get_status_code(channel, protos.PREDICT, request.SerializeToString()) == "INVALID_ARGUMENT"


def test_unknown_rpc_is_unimplemented(channel: grpc.Channel) -> None:
    path = f"/{protos.PREDICTION_SERVICE}/PredictStreamed"
    assert get_status_code(channel, path, b"") == "UNIMPLEMENTED"
    assert get_status_code(channel, "/some.Other/Method", b"") == "UNIMPLEMENTED"


# --- HTTP/2 by hand ---------------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_STREAM, END_HEADERS = 1, 4


def encode_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def encode_headers(path: str) -> bytes:
    """Return literal header fields without Huffman coding or a table (RFC 7541, 6.2.2)."""
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


def open_http2_connection(server: RunningServer) -> socket.socket:
    found = socket.create_connection(("localhost", server.port), timeout=LIMIT)
    found.sendall(PREFACE + encode_frame(SETTINGS, 0, 0))
    return found


def frame_message(body: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(body)) + body


def is_stream_ended(connection: socket.socket, stream: int) -> bool:
    """Return whether the server ends a stream, by RST_STREAM or by trailers."""
    file = connection.makefile("rb")
    while start := file.read(9):
        kind, flags = start[3], start[4]
        file.read(int.from_bytes(start[:3], "big"))
        last = kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM)
        if last and int.from_bytes(start[5:], "big") == stream:
            return True
    return False


def test_incomplete_http2_requests_do_not_block_other_callers(
    server: RunningServer, channel: grpc.Channel
) -> None:
    slow = [open_http2_connection(server) for _ in range(5)]
    try:
        whole = frame_message(make_valid_body())
        for number, one in enumerate(slow):
            for stream in range(1, 2 * 90, 2):  # 450 calls, more than there are threads
                one.sendall(encode_frame(HEADERS, END_HEADERS, stream, encode_headers(protos.PREDICT)))
                one.sendall(encode_frame(DATA, 0, stream, whole[: number * 3]))
        start = time.monotonic()
        assert is_responsive(channel)
        assert time.monotonic() - start < LIMIT / 3
        assert threading.active_count() < 200
    finally:
        for one in slow:
            one.close()
    assert is_responsive(channel)


def test_http2_stream_closed_without_a_message_is_ended_by_the_server(
    server: RunningServer, channel: grpc.Channel
) -> None:
    for sent in (b"", frame_message(make_valid_body())[:7]):
        with open_http2_connection(server) as one:
            one.sendall(
                encode_frame(
                    HEADERS, END_HEADERS | (0 if sent else END_STREAM), 1, encode_headers(protos.PREDICT)
                )
            )
            if sent:
                one.sendall(encode_frame(DATA, END_STREAM, 1, sent))
            assert is_stream_ended(one, stream=1)
        assert is_responsive(channel)


@pytest.mark.parametrize("kind", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_answered(channel: grpc.Channel, kind: grpc.Compression) -> None:
    body = make_valid_body()
    assert len(channel.unary_unary(protos.PREDICT)(body, compression=kind, timeout=LIMIT))
    large = protos.PredictRequest.FromString(body)
    large.output_filter.append("y" * 200_000)
    with pytest.raises(grpc.RpcError, match="output tensor alias not found in signature: yyy"):
        channel.unary_unary(protos.PREDICT)(large.SerializeToString(), compression=kind, timeout=LIMIT)
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    check(protos.ModelSpec(name="ModelService").SerializeToString(), compression=kind, timeout=LIMIT)
    with pytest.raises(grpc.RpcError) as caught:
        check(b"\x0a\xff\xff\x7f" + bytes(1 << 20), compression=kind, timeout=LIMIT)
    assert caught.value.code().name == "INVALID_ARGUMENT"


@SLOW
@given(garbage=st.binary(max_size=100), after=st.booleans())
def test_garbage_bytes_close_only_their_own_connection(
    server: RunningServer, channel: grpc.Channel, garbage: bytes, after: bool
) -> None:
    with socket.create_connection(("localhost", server.port), timeout=LIMIT) as one:
        one.sendall((PREFACE + encode_frame(SETTINGS, 0, 0) if after else b"") + garbage)
    assert is_responsive(channel)


# --- Overload --------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_fake_model(tmp_path / "double" / "1")
    return tmp_path / "double"


def test_calls_beyond_grpc_max_threads_are_unavailable_and_status_still_works(base: Path) -> None:
    loader = FakeModelLoader(gated=True)
    with (
        start(ServerSettings(base, port=0, grpc_max_threads=4), loader=loader) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
        ThreadPoolExecutor(4) as pool,
    ):
        waiting = [pool.submit(call_double, channel, 1.0) for _ in range(4)]
        eventually(lambda: server._grpc._dispatcher.in_flight.total == 4)
        with pytest.raises(grpc.RpcError) as caught:
            call_double(channel, 1.0)
        assert (caught.value.code().name, caught.value.details()) == (
            "UNAVAILABLE",
            "The batch scheduling queue to which this task was submitted is full; "
            "currently 4 batches enqueued and max_enqueued_batches is 4",
        )
        status = protos.GetModelStatusRequest(model_spec={"name": "double"}).SerializeToString()
        assert get_status_code(channel, protos.GET_MODEL_STATUS, status) == "OK"
        loader.models[1].gate.set()
        for future in waiting:
            future.result(LIMIT)
        eventually(lambda: server._grpc._dispatcher.in_flight.total == 0)
        assert is_responsive(channel)


def test_cancelled_call_frees_its_place_once_the_model_returns(base: Path) -> None:
    loader = FakeModelLoader(gated=True)
    with (
        start(ServerSettings(base, port=0), loader=loader) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        call = channel.unary_unary(protos.PREDICT).future(make_valid_body(), timeout=LIMIT)
        eventually(lambda: loader.models[1].running > 0)
        call.cancel()
        loader.models[1].gate.set()
        eventually(lambda: server._grpc._dispatcher.in_flight.total == 0)
        assert is_responsive(channel)


def test_inputs_of_a_failed_request_are_freed_at_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector would find them at some time only, and they may be as large as a message."""
    seen: list[weakref.ref[Any]] = []
    run = FakeModel.run

    def watch(model: FakeModel, signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        seen.append(weakref.ref(inputs["x"]))
        return run(model, signature, inputs)

    monkeypatch.setattr(FakeModel, "run", watch)
    gc.disable()
    try:
        with (
            start(ServerSettings(base, port=0, rest_api_port=0), loader=FakeModelLoader()) as server,
            grpc.insecure_channel(f"localhost:{server.port}") as channel,
        ):
            with pytest.raises(grpc.RpcError, match="OUT_OF_RANGE"):
                call_double(channel, -1.0)
            url = f"http://localhost:{server.rest_port}/v1/models/double:predict"
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(url, b'{"inputs": [-1.0, 2.0]}', LIMIT)
            assert len(seen) == 2
            eventually(lambda: not any(reference() is not None for reference in seen))
    finally:
        gc.enable()


def test_work_of_a_cancelled_call_stops_and_the_next_call_is_answered(base: Path) -> None:
    write_bundle_metadata(base / "1")  # rows are independent, as in a bundle
    rows = protos.PredictRequest(model_spec={"name": "double"})
    rows.inputs["x"].CopyFrom(tensors.encode(np.ones(10_000, np.float32)))  # 25 s of work
    with (
        start(ServerSettings(base, port=0), loader=lambda _: Slow()) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
        grpc.insecure_channel(f"localhost:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as leaving,
        server.manager.use(protos.ModelSpec(name="double")) as servable,
    ):
        load = servable._batcher._load
        call = channel.unary_unary(protos.PREDICT).future(rows.SerializeToString())
        eventually(lambda: load.queued_rows > 0)
        call.cancel()
        eventually(lambda: load.queued_rows == load.running_rows == 0)
        abandoned = leaving.unary_unary(protos.PREDICT).future(rows.SerializeToString())
        eventually(lambda: load.queued_rows > 0)
        started = time.monotonic()
        assert is_responsive(channel), "another connection has its turn"
        leaving.close()
        eventually(lambda: load.queued_rows == load.running_rows == 0)
        assert time.monotonic() - started < 10
        assert abandoned.cancelled() or abandoned.done()
        calls = [channel.unary_unary(protos.PREDICT).future(rows.SerializeToString()) for _ in range(500)]
        for call in calls:
            call.cancel()
        started = time.monotonic()
        assert is_responsive(channel)
        assert time.monotonic() - started < 5
        eventually(lambda: server._grpc._dispatcher.in_flight.total == 0)


class Slow:
    """A model that computes y = 2x in 5 ms per row."""

    threads = 2
    engine = "tensorflow"

    def prepare(self, signature: str) -> None:
        """Do nothing, as all is loaded."""

    def run(self, signature: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        time.sleep(0.005 * len(inputs["x"]))
        return {"y": inputs["x"] * 2}


def test_overload_is_rejected_and_all_counters_return_to_zero(base: Path) -> None:
    with (
        start(ServerSettings(base, port=0), loader=lambda _: Slow()) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):
        call = channel.unary_unary(protos.PREDICT)
        futures = [
            call.future(make_valid_body(), timeout=0.5) for _ in range(1500)
        ]  # of five rows each: about 19 s of work
        codes = Counter(future.code().name for future in futures)
        # Whichever deadline fires first: the client's, the queue's, or that of the server's transport.
        late = {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"}
        assert codes.keys() <= late | {"OK", "UNAVAILABLE"}
        assert codes["OK"] > 0
        assert codes["UNAVAILABLE"] > 0
        eventually(
            lambda: server._grpc._dispatcher.in_flight.total == server._grpc._dispatcher.held_bytes.total == 0
        )
        assert is_responsive(channel)
        with server.manager.use(protos.ModelSpec(name="double")) as servable:
            eventually(
                lambda: servable._batcher._load.queued_rows == servable._batcher._load.running_rows == 0
            )
            assert servable._batcher._bytes.total == 0


def batch_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "-batch-" in thread.name}


def test_no_request_fails_while_versions_are_swapped(base: Path) -> None:
    settings = ServerSettings(base, port=0, file_system_poll_wait_seconds=0.01)
    before = batch_threads()
    done = threading.Event()
    answered = [0] * 8
    versions: set[int] = set()
    with (
        start(settings, loader=FakeModelLoader()) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
        ThreadPoolExecutor(len(answered)) as pool,
    ):

        def send_requests(number: int) -> None:
            while not done.is_set():
                response = call_double(channel, float(number), 1.0)
                assert tensors.decode(response.outputs["y"], "y").tolist() == [2.0 * number, 2.0]
                versions.add(response.model_spec.version.value)
                answered[number] += 1

        senders = [pool.submit(send_requests, number) for number in range(len(answered))]
        try:
            for version in range(2, 32):
                so_far = sum(answered)
                write_fake_model(base / str(version))
                eventually(lambda version=version: get_current_version(server) == version)
                eventually(lambda so_far=so_far: sum(answered) > so_far + 35)
        finally:
            done.set()
        for future in senders:
            future.result(LIMIT)
    assert sum(answered) >= 1000
    assert len(versions) >= 30
    eventually(lambda: not batch_threads() - before)

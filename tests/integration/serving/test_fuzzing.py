"""Hostile requests of any kind: the server neither ends nor reports a fault of its own, in bounded memory.

HUBHEAD_FUZZ_EXAMPLES sets the examples per property, which are few by default.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import protos
from serving.protos import tensors
from tests.support import processes
from tests.support.conformance_process import CONFORMANCE_SERVER
from tests.support.fake_model import REQUEST_TYPES

pytestmark = pytest.mark.server

EXAMPLES = int(os.environ.get("HUBHEAD_FUZZ_EXAMPLES", "100"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

SECONDS = 20.0
"""Time limit of a request; no request here is worth more than a second of work."""

MAX_RESIDENT_KIB = 4 << 20

OTHERS = (
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/tensorflow.serving.PredictionService/Nothing",
)
FAULTS = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
"""Status codes that report a fault of the server; none of the requests here may cause one."""


@dataclass(frozen=True)
class Fuzzed:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    channel: grpc.Channel
    rest_port: int

    def call(self, path: str, body: bytes) -> str:
        code, details = "OK", ""
        try:
            list(self.channel.unary_stream(path)(body, timeout=SECONDS))
        except grpc.RpcError as error:
            code, details = error.code().name, error.details()
        assert code not in FAULTS, (path, body[:300], code, details)
        return code

    def request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> int:
        connection = http.client.HTTPConnection("localhost", self.rest_port, timeout=SECONDS)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read()
            assert response.status < 500 or response.status == 501, (method, path, body[:300], text[:300])
            return response.status
        finally:
            connection.close()

    def check(self) -> None:
        """Check that the server answers, and what memory it took."""
        assert self.process.poll() is None, "the server has ended"
        good = protos.PredictRequest(model_spec={"name": "toy"})
        good.inputs["x"].CopyFrom(tensors.encode(np.ones(2, np.float32)))
        assert self.call(protos.PREDICT, good.SerializeToString()) == "OK"
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        assert peak < MAX_RESIDENT_KIB


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    directory = tmp_path_factory.mktemp("fuzzed")
    log = directory / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*CONFORMANCE_SERVER, str(directory)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=processes.environment(),
        )
    try:
        ports = processes.wait_ready(process, log)
        with grpc.insecure_channel(
            f"localhost:{ports.grpc}", [("grpc.max_send_message_length", -1)]
        ) as channel:
            yield Fuzzed(process, channel, ports.rest)
    finally:
        processes.end(process)
    assert "Traceback" not in log.read_text()


# --- Protobuf ---------------------------------------------------------------------------------------------

SMALL = st.integers(0, 3)
SIZES = SMALL | st.sampled_from([-1, 31, 200_000, 2**23, 2**31 - 1, 2**40, 2**62, 2**63 - 1])
TEXTS = st.sampled_from(
    ["", "toy", "serving_default", "classify", "text", "x", "inputs", "__saved_model_init_op"]
) | (st.text(max_size=5))
NUMBERS = st.integers(-3, 3) | st.sampled_from([2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**64 - 1])
REPEATS = st.sampled_from([0, 0, 1, 2, 5, 40, 3000])
MAX_REPEATED_BYTES = 1 << 18
"""Maximum bytes of a repeated field; repeated messages inside repeated ones would fill the memory."""


def messages(descriptor: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Return a strategy for messages of a type, with any of its fields."""

    @st.composite
    def draw_message(draw: st.DrawFn) -> Any:
        message = getattr(protos, descriptor.full_name.removeprefix("tensorflow.").removeprefix("serving."))()
        if not descriptor.fields:
            return message
        chosen = draw(
            st.lists(st.sampled_from(list(descriptor.fields)), max_size=4, unique_by=lambda f: f.name)
        )
        for field in chosen:
            fill(draw, message, field)
        return message

    def fill(draw: st.DrawFn, message: Any, field: Any) -> None:
        if field.message_type and (depth > 5 or field.message_type.full_name.startswith("google.protobuf")):
            return
        if field.message_type and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            for key in (
                draw(st.lists(TEXTS, max_size=3)) if field.message_type.fields[0].cpp_type == 9 else ()
            ):
                if value.message_type:
                    getattr(message, field.name)[key].CopyFrom(draw(messages(value.message_type, depth + 1)))
                else:
                    getattr(message, field.name)[key] = draw(SMALL)
        elif field.message_type and field.is_repeated:
            one = draw(messages(field.message_type, depth + 1))
            times = min(draw(REPEATS), MAX_REPEATED_BYTES // (one.ByteSize() + 2))
            getattr(message, field.name).extend([one] * times)
        elif field.message_type:
            getattr(message, field.name).CopyFrom(draw(messages(field.message_type, depth + 1)))
        elif field.is_repeated:
            getattr(message, field.name).extend([draw(values(field))] * draw(REPEATS))
        else:
            setattr(message, field.name, draw(values(field)))

    return draw_message()


def values(field: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a field without messages."""
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        return st.binary(max_size=20) if field.type == field.TYPE_BYTES else TEXTS
    if kind == field.CPPTYPE_BOOL:
        return st.booleans()
    if kind == field.CPPTYPE_ENUM:
        return st.sampled_from([number.number for number in field.enum_type.values])
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return st.floats(width=32)
    low, high = {
        field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        field.CPPTYPE_UINT32: (0, 2**32 - 1),
        field.CPPTYPE_UINT64: (0, 2**64 - 1),
    }[kind]
    return (SIZES if field.name == "size" else NUMBERS | SIZES).map(lambda value: min(max(value, low), high))


def requests() -> st.SearchStrategy[tuple[str, bytes]]:
    """Return a strategy for calls: any message of the RPC's type, most of them to a model that exists."""

    @st.composite
    def draw_request(draw: st.DrawFn) -> tuple[str, bytes]:
        path = draw(st.sampled_from(list(REQUEST_TYPES)))
        request = draw(messages(getattr(protos, REQUEST_TYPES[path]).DESCRIPTOR))
        if hasattr(request, "model_spec") and draw(st.booleans()):
            request.model_spec.Clear()
            request.model_spec.name = "toy"
        for task in request.tasks if path == protos.MULTI_INFERENCE else ():
            task.model_spec.name = "toy"
        if path == protos.RELOAD_CONFIG:  # an empty list unloads all models, as it should
            request.config.model_config_list.config.add(name="toy", base_path="/nothing/here")
        return path, request.SerializeToString()

    return draw_request()


@FUZZ
@given(requests())
def test_any_message_is_answered_or_rejected(fuzzed: Fuzzed, request_: tuple[str, bytes]) -> None:
    fuzzed.call(*request_)
    fuzzed.check()


@st.composite
def tensor_requests(draw: st.DrawFn) -> bytes:
    """Draw a Predict call whose tensor may state any shape and dtype."""
    tensor = draw(messages(protos.TensorProto.DESCRIPTOR))
    del tensor.tensor_shape.dim[:]
    for size in draw(st.lists(SIZES, max_size=4) | st.lists(st.just(1), max_size=60)):
        tensor.tensor_shape.dim.add(size=size)
    signature, alias = draw(st.sampled_from([("", "x"), ("text", "words"), ("whole", "i"), ("half", "h")]))
    if draw(st.booleans()):
        tensor.dtype = {"x": 1, "words": 7, "i": 3, "h": 19}[alias]
    request = protos.PredictRequest(model_spec={"name": "toy", "signature_name": signature})
    request.inputs[alias].CopyFrom(tensor)
    return bytes(request.SerializeToString())


@FUZZ
@given(tensor_requests())
def test_any_tensor_is_answered_or_rejected(fuzzed: Fuzzed, body: bytes) -> None:
    fuzzed.call(protos.PREDICT, body)
    fuzzed.check()


@FUZZ
@given(
    st.sampled_from([*REQUEST_TYPES, *OTHERS]),
    st.binary(max_size=200),
    st.lists(
        st.sampled_from([b"\x12\x00", b"\x0a\x00", b"\xff", b"\x12\x02\x12\x00", b"\x08\x01"]), max_size=3
    ),
    st.sampled_from([1, 100, 100_000]),
)
def test_any_bytes_are_answered_or_rejected(
    fuzzed: Fuzzed, path: str, body: bytes, parts: list[bytes], times: int
) -> None:
    fuzzed.call(path, body + b"".join(parts) * times)
    fuzzed.check()


# --- HTTP -------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | NUMBERS
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\ud800", {"b64": "\udfff"}, {"b64": "YQ"}, {"b64": "!"}, 10**400, -(10**4000)]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS | st.sampled_from(["\ud800", "x", "words", "b64"]), inner, max_size=3)
    ),
    max_leaves=12,
)
KEYS = ("instances", "inputs", "examples", "context", "signature_name", "\ud800")
SIGNATURES = (
    "serving_default",
    "ab",
    "text",
    "half",
    "whole",
    "total",
    "short",
    "classify",
    "regress",
    "\ud800",
)
PATHS = st.sampled_from(
    [
        *(f"/v1/models/toy:{verb}" for verb in ("predict", "classify", "regress")),
        f"/v1/models/toy/versions/{'9' * 5000}:predict",
        f"/v1/models/toy/versions/{'9' * 5000}/metadata",
        "/v1/models/toy/labels/%ff%00:predict",
        "/v1/models/%ed%a0%80:predict",
        "/v1/models/toy/metadata",
        "/v1/models",
        "/",
        "/v1/" + "a" * 3000,
    ]
)


@st.composite
def json_bodies(draw: st.DrawFn) -> bytes:
    """Draw a body, mostly an object with the keys of the REST API."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=50)) * draw(st.sampled_from([1, 1000]))
    body = draw(st.dictionaries(st.sampled_from(KEYS), JSON | st.lists(JSON, max_size=3), max_size=3))
    if draw(st.booleans()):
        body["signature_name"] = draw(st.sampled_from(SIGNATURES))
    return json.dumps(body).encode()


@FUZZ
@given(
    st.sampled_from(["POST", "POST", "POST", "GET", "OPTIONS", "PUT", "HEAD"]),
    PATHS,
    json_bodies(),
    st.sampled_from(
        [{}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "br"}, {"Content-Type": "text/html"}]
    ),
)
def test_any_http_request_is_answered_or_rejected(
    fuzzed: Fuzzed, method: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    fuzzed.request(method, path, body, headers)
    fuzzed.check()

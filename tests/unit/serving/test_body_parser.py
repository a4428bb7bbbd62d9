"""Protocol between the server and the process that parses heavy REST bodies."""

from __future__ import annotations

import io
import logging
from typing import Any

import grpc
import pytest

from serving import protos
from serving.server.rest import body_parser, body_parser_process, messages
from serving.server.status_error import StatusError

SPEC = protos.ModelSpec(name="m").SerializeToString()


def declare(dtype: str) -> bytes:
    """Return a SignatureDefMap with one input of a dtype, serialized."""
    signatures = protos.SignatureDefMap()
    info = signatures.signature_def["serving_default"].inputs["x"]
    info.name, info.dtype = "x:0", protos.DataType.Value(dtype)
    return bytes(signatures.SerializeToString())


def parse(verb: str, body: bytes, dtype: str = "DT_FLOAT") -> tuple[Any, bool]:
    """Return what the server makes of the response of the process."""
    kind, content = body_parser_process.parse(verb, SPEC, declare(dtype), body)
    return body_parser._parse_response(verb, kind, content)


def test_numbers_come_back_as_raw_bytes() -> None:
    request, rows = parse("predict", b'{"instances": [1, 2.5]}')
    assert rows
    assert request.model_spec.name == "m"
    assert request.inputs["x"].tensor_content == b"\0\0\x80\x3f\0\0\x20\x40"


def test_columns_and_rows_are_distinguished() -> None:
    assert not parse("predict", b'{"inputs": [1]}')[1]
    assert parse("predict", b'{"instances": [1]}')[1]


@pytest.mark.parametrize("verb", ["classify", "regress"])
def test_examples(verb: str) -> None:
    request, _ = parse(verb, b'{"signature_name": "s", "examples": [{"a": [1, 2]}]}')
    assert type(request) is messages.get_request_class(verb)
    assert request.model_spec.signature_name == "s"
    assert request.input.example_list.examples[0].features.feature["a"].int64_list.value == [1, 2]


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b"{", "INVALID_ARGUMENT", "JSON Parse error"),
        (rb'{"instances": [{"\ud800": 1}]}', "INVALID_ARGUMENT", "\ud800"),
        (b'{"instances": ["a"]}', "INVALID_ARGUMENT", "is not of expected type: float"),
    ],
)
def test_errors_keep_code_and_text(body: bytes, code: str, text: str) -> None:
    with pytest.raises(StatusError) as found:
        parse("predict", body)
    assert found.value.code is grpc.StatusCode[code]
    assert text in found.value.text


def test_more_fields_than_a_grpc_message_may_have_are_rejected() -> None:
    body = b'{"inputs": [' + b'"",' * 1_000_000 + b'""]}'
    with pytest.raises(StatusError, match="more than 1,000,000 fields") as found:
        parse("predict", body, "DT_STRING")
    assert found.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_bug_in_the_process_is_an_internal_error_with_a_traceback_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(messages, "parse_request", lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR), pytest.raises(StatusError) as found:
        parse("predict", b"{}")
    assert (found.value.code, found.value.text) == (
        grpc.StatusCode.INTERNAL,
        "ZeroDivisionError: division by zero",
    )
    assert "Traceback" in caplog.text


def test_the_process_ends_after_it_has_run_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(messages, "parse_request", fail)
    request = body_parser._REQUEST.pack(b"predict", len(SPEC), 0, 2) + SPEC + b"{}"
    requests, responses = io.BytesIO(2 * request), io.BytesIO()
    body_parser_process.serve(requests, responses)
    assert responses.getvalue() == body_parser._RESPONSE.pack(b"M", 0)
    with pytest.raises(StatusError, match="not enough memory") as found:
        body_parser._parse_response("predict", b"M", b"")
    assert found.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_both_sides_have_the_same_formats() -> None:
    assert body_parser._REQUEST.format == body_parser_process._REQUEST.format
    assert body_parser._RESPONSE.format == body_parser_process._RESPONSE.format

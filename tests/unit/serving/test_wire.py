"""Estimate of the memory of a serialized message."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from serving import protos
from serving.errors import InputError
from serving.protos import wire

COUNT = 10_000


def estimate(message: Any) -> int:
    return wire.estimate_memory(message.SerializeToString(), message.DESCRIPTOR)


def make_request(**fields: Any) -> Any:
    return protos.PredictRequest(inputs={"x": protos.TensorProto(**fields)})


def test_photo_takes_little_more_than_its_bytes() -> None:
    assert 1_000_000 < estimate(make_request(string_val=[b"a" * 1_000_000])) < 1_002_000


@pytest.mark.parametrize(
    ("message", "bytes_each"),
    [
        (make_request(string_val=[b""] * COUNT), 64),
        (make_request(tensor_shape={"dim": [{}] * COUNT}), 300),
        (make_request(variant_val=[{}] * COUNT), 300),
        (protos.MultiInferenceRequest(tasks=[{}] * COUNT), 300),
        (protos.ClassificationRequest(input={"example_list": {"examples": [{}] * COUNT}}), 300),
        (protos.ReloadConfigRequest(config={"model_config_list": {"config": [{}] * COUNT}}), 300),
        (make_request(int_val=[1] * COUNT), 16),
        (make_request(int_val=[-1] * COUNT), 16),
        (make_request(float_val=[1.0] * COUNT), 16),
        (make_request(bool_val=[True] * COUNT), 16),
    ],
)
def test_many_small_values_count_as_what_they_take_in_memory(message: Any, bytes_each: int) -> None:
    assert COUNT * bytes_each < estimate(message) < COUNT * (bytes_each + 100)


def test_repeated_entries_of_a_map_count_although_one_remains() -> None:
    body = b"\x12\x00" * COUNT
    assert len(protos.PredictRequest.FromString(body).inputs) == 1
    assert wire.estimate_memory(body, protos.PredictRequest.DESCRIPTOR) > COUNT * 300


@pytest.mark.parametrize("body", [b"\x12\x00", b"\xf8\x07\x01", b"\x0b\x0c"])
def test_message_of_very_many_fields_is_rejected(body: bytes) -> None:
    with pytest.raises(InputError, match="more than 1,000,000 fields"):
        wire.estimate_memory(body * (wire.MAX_FIELDS + 1), protos.PredictRequest.DESCRIPTOR)


@given(st.binary(max_size=60), st.sampled_from(["PredictRequest", "ClassificationRequest", "ModelSpec"]))
def test_any_bytes_have_an_estimate(body: bytes, kind: str) -> None:
    assert wire.estimate_memory(body, getattr(protos, kind).DESCRIPTOR) >= len(body)


@given(st.binary(max_size=60), st.integers(0, 100))
def test_corrupted_message_has_an_estimate(noise: bytes, at: int) -> None:
    body = make_request(string_val=[b"a" * 20], int_val=[1, 300], tensor_shape={"dim": [{"size": 1}]})
    corrupted = body.SerializeToString()[:at] + noise
    with contextlib.suppress(InputError):
        assert wire.estimate_memory(corrupted, body.DESCRIPTOR) >= len(corrupted)


def test_many_empty_messages_are_counted_without_keeping_anything_of_them() -> None:
    body = b"\x12\x00" * 300_000
    tracemalloc.start()
    try:
        found = wire.estimate_memory(body, protos.PredictRequest.DESCRIPTOR)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found > 300 * 300_000
    assert peak < 100_000


def test_fields_behind_a_message_inside_another_are_counted() -> None:
    inner = protos.PredictRequest(
        inputs={"x": {"tensor_shape": {"dim": [{"size": 1}]}, "int_val": [1] * 1000}}
    )
    behind = protos.PredictRequest(output_filter=["y"] * 1000)
    both = inner.SerializeToString() + behind.SerializeToString()
    total = wire.estimate_memory(both, inner.DESCRIPTOR)
    assert total == estimate(inner) + estimate(behind)


def test_messages_nested_deeper_than_protobuf_parses_are_not_read() -> None:
    body = b""
    for level in range(4000):  # a tensor of variants of tensors ...
        length = bytes([len(body) & 0x7F | 0x80, len(body) >> 7 & 0x7F | 0x80, len(body) >> 14])
        body = (b"\x7a" if level % 2 else b"\x1a") + length + body
    descriptor = protos.TensorProto.DESCRIPTOR
    with pytest.raises(DecodeError):
        protos.TensorProto.FromString(body)
    assert wire.estimate_memory(body, descriptor, max_fields=200) < len(body) + 200 * 400

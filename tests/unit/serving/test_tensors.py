"""Conversion between TensorProto and numpy."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import protos
from serving.errors import InputError
from serving.protos import tensors
from tests.support.tensors import make_tensor_proto, numeric_arrays


@given(numeric_arrays(), st.booleans())
def test_numbers_survive_a_round_trip(array: np.ndarray[Any, Any], typed_fields: bool) -> None:
    decoded = tensors.decode(tensors.encode(array, typed_fields=typed_fields), "x")
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)
    assert decoded.flags.writeable


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_strings_with_trailing_zero_bytes_survive_a_round_trip(strings: list[bytes]) -> None:
    strings = [text + b"\0" for text in strings]
    decoded = tensors.decode(tensors.encode(strings), "x")
    assert decoded.shape == (len(strings),)
    assert decoded.tolist() == strings


def test_a_string_array_keeps_its_shape() -> None:
    array = np.array([[b"a", b"b", b"c"], [b"d", b"", b"f"]], dtype=object)
    decoded = tensors.decode(tensors.encode(array), "x")
    assert decoded.shape == (2, 3)
    assert decoded.tolist() == array.tolist()


def test_big_endian_arrays_decode_to_the_same_numbers() -> None:
    assert tensors.decode(tensors.encode(np.array([1, 258], dtype=">i4")), "x").tolist() == [1, 258]


def test_missing_values_repeat_the_last_one_or_are_zeros() -> None:
    assert tensors.decode(make_tensor_proto("DT_FLOAT", [4], float_val=[1, 2]), "x").tolist() == [1, 2, 2, 2]
    assert tensors.decode(make_tensor_proto("DT_INT64", [2, 1], int64_val=[7]), "x").tolist() == [[7], [7]]
    assert tensors.decode(make_tensor_proto("DT_INT32", [3]), "x").tolist() == [0, 0, 0]
    assert tensors.decode(make_tensor_proto("DT_STRING", [2], string_val=[b"a"]), "x").tolist() == [
        b"a",
        b"a",
    ]
    assert tensors.decode(make_tensor_proto("DT_STRING", [1]), "x").tolist() == [b""]


def test_half_and_bfloat16_are_decoded_from_their_bits() -> None:
    assert tensors.decode(make_tensor_proto("DT_HALF", [2], half_val=[0x3C00, 0xC000]), "x").tolist() == [
        1.0,
        -2.0,
    ]
    bits = make_tensor_proto("DT_BFLOAT16", [2], half_val=[0x3F80, 0xC000])
    assert tensors.decode(bits, "x").tolist() == [1.0, -2.0]
    content = make_tensor_proto("DT_BFLOAT16", [2], tensor_content=b"\x80\x3f\x00\xc0")
    assert tensors.decode(content, "x").dtype == np.float32
    assert tensors.decode(content, "x").tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    ("proto", "text"),
    [
        (make_tensor_proto("DT_FLOAT", [1], float_val=[1, 2]), r"\[1\]: it has 2 values"),
        (make_tensor_proto("DT_FLOAT", [2], tensor_content=b"1234567"), r"\[2\]: it has 7 bytes of 4 each"),
        (make_tensor_proto("DT_STRING", [0], string_val=[b"a"]), r"it has 1 values"),
        (
            make_tensor_proto("DT_STRING", [2], tensor_content=b"\x01\x05ab"),
            "do not encode that many strings",
        ),
        (make_tensor_proto("DT_STRING", [1], tensor_content=b"\xff\xff"), "do not encode that many strings"),
        (make_tensor_proto("DT_FLOAT", [-1], float_val=[1]), "no complete shape"),
        (make_tensor_proto("DT_FLOAT", [2**40]), "are repeated only up to 67108864 bytes"),
        (
            make_tensor_proto("DT_FLOAT", [2**40, 2**40], float_val=[1]),
            "are repeated only up to 67108864 bytes",
        ),
        (
            make_tensor_proto("DT_STRING", [2**40], string_val=[b"a"]),
            "are repeated only up to 67108864 bytes",
        ),
        (make_tensor_proto("DT_STRING", [8388608], string_val=[b"a" * 20_000]), "are repeated only up to"),
        (make_tensor_proto("DT_STRING", [4_000_000], string_val=[b"a", b""]), "are repeated only up to"),
        (make_tensor_proto("DT_STRING", [2**23], tensor_content=b"\0" * 2**23), "8388608 strings"),
        (make_tensor_proto("DT_FLOAT", [2**40, 0]), "too large"),
        (make_tensor_proto("DT_STRING", [0, 2**30]), "too large"),
        (make_tensor_proto("DT_STRING", [2**62, 2**62, 0]), "too large"),
        (make_tensor_proto("DT_STRING", [1] * 33, string_val=[b"a"]), "33 dimensions, more than 32"),
        (make_tensor_proto("DT_FLOAT", [1] * 100, float_val=[1]), "100 dimensions, more than 32"),
        (make_tensor_proto("DT_UINT8", [1], int_val=[300]), "a value out of range"),
        (make_tensor_proto("DT_COMPLEX64", [1], scomplex_val=[1, 2, 3]), "imaginary"),
        (make_tensor_proto("DT_VARIANT", [1]), "variant, which is not supported"),
        (make_tensor_proto("DT_INVALID", [1]), "invalid, which is not supported"),
    ],
)
def test_values_that_do_not_match_the_shape_raise_an_error_naming_the_tensor(
    proto: protos.Message, text: str
) -> None:
    with pytest.raises(InputError, match=text) as caught:
        tensors.decode(proto, "pixels")
    assert "'pixels'" in str(caught.value)


@given(st.binary(max_size=40), st.integers(0, 5))
def test_arbitrary_bytes_as_a_string_list_decode_or_raise_input_error(content: bytes, count: int) -> None:
    proto = make_tensor_proto("DT_STRING", [count], tensor_content=content)
    try:
        strings = tensors.decode(proto, "x")
    except InputError:
        return
    assert strings.shape == (count,)
    assert not content or sum(map(len, strings)) <= len(content)


@pytest.mark.parametrize(
    "proto",
    [
        make_tensor_proto("DT_STRING", [1], tensor_content=b"\xff" * 1_000_000),
        make_tensor_proto("DT_STRING", [400_000], tensor_content=b"\xff" * 400_000),
        make_tensor_proto("DT_FLOAT", [2**62] * 100_000, float_val=[1]),
        make_tensor_proto("DT_STRING", [2**62] * 100_000, string_val=[b"a"]),
    ],
    ids=["endless length", "endless lengths", "many sizes", "many sizes of strings"],
)
def test_malformed_tensor_is_rejected_in_linear_time(proto: protos.Message) -> None:
    start = time.process_time()
    with pytest.raises(InputError):
        tensors.decode(proto, "x")
    assert time.process_time() - start < 1.0  # in quadratic time these take minutes


def test_parsing_of_a_string_list_grows_linearly() -> None:
    def measure(count: int) -> float:
        proto = make_tensor_proto("DT_STRING", [count], tensor_content=b"\x01" * count + b"a" * count)
        seconds = []
        for _ in range(3):
            start = time.process_time()
            assert tensors.decode(proto, "x").tolist() == [b"a"] * count
            seconds.append(time.process_time() - start)
        return min(seconds)

    assert measure(160_000) < 24 * measure(20_000)  # 8 if it is linear, 64 if it is quadratic


def test_unsupported_arrays_raise_input_error() -> None:
    with pytest.raises(InputError, match="datetime64"):
        tensors.encode(np.array(["2020-01-01"], dtype="datetime64[D]"))
    with pytest.raises(InputError, match="only bytes"):
        tensors.encode(np.array([1, None], dtype=object))

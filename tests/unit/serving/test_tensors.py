"""TensorProto and numpy agree with each other and with TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import protos
from serving.errors import InputError
from serving.protos import tensors
from tests.support.tensors import numbers, proto_of


@given(numbers(), st.booleans())
def test_numbers_survive_the_way_there_and_back(array: np.ndarray[Any, Any], typed_fields: bool) -> None:
    back = tensors.decode(tensors.encode(array, typed_fields=typed_fields), "x")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    assert back.flags.writeable


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_strings_survive_with_zero_bytes_at_their_end(strings: list[bytes]) -> None:
    strings = [text + b"\0" for text in strings]
    back = tensors.decode(tensors.encode(strings), "x")
    assert back.shape == (len(strings),)
    assert back.tolist() == strings


def test_an_array_of_strings_keeps_its_shape() -> None:
    array = np.array([[b"a", b"b", b"c"], [b"d", b"", b"f"]], dtype=object)
    back = tensors.decode(tensors.encode(array), "x")
    assert back.shape == (2, 3)
    assert back.tolist() == array.tolist()


def test_big_endian_arrays_arrive_as_the_same_numbers() -> None:
    assert tensors.decode(tensors.encode(np.array([1, 258], dtype=">i4")), "x").tolist() == [1, 258]


def test_fewer_values_repeat_the_last_and_none_are_zeros() -> None:
    assert tensors.decode(proto_of("DT_FLOAT", [4], float_val=[1, 2]), "x").tolist() == [1, 2, 2, 2]
    assert tensors.decode(proto_of("DT_INT64", [2, 1], int64_val=[7]), "x").tolist() == [[7], [7]]
    assert tensors.decode(proto_of("DT_INT32", [3]), "x").tolist() == [0, 0, 0]
    assert tensors.decode(proto_of("DT_STRING", [2], string_val=[b"a"]), "x").tolist() == [b"a", b"a"]
    assert tensors.decode(proto_of("DT_STRING", [1]), "x").tolist() == [b""]


def test_half_and_bfloat16_are_read_from_their_bits() -> None:
    assert tensors.decode(proto_of("DT_HALF", [2], half_val=[0x3C00, 0xC000]), "x").tolist() == [1.0, -2.0]
    bits = proto_of("DT_BFLOAT16", [2], half_val=[0x3F80, 0xC000])
    assert tensors.decode(bits, "x").tolist() == [1.0, -2.0]
    content = proto_of("DT_BFLOAT16", [2], tensor_content=b"\x80\x3f\x00\xc0")
    assert tensors.decode(content, "x").dtype == np.float32
    assert tensors.decode(content, "x").tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    ("proto", "text"),
    [
        (proto_of("DT_FLOAT", [1], float_val=[1, 2]), r"\[1\]: it holds 2 values"),
        (proto_of("DT_FLOAT", [2], tensor_content=b"1234567"), r"\[2\]: it holds 7 bytes of 4 each"),
        (proto_of("DT_STRING", [0], string_val=[b"a"]), r"it holds 1 values"),
        (proto_of("DT_STRING", [2], tensor_content=b"\x01\x05ab"), "no list of so many strings"),
        (proto_of("DT_STRING", [1], tensor_content=b"\xff\xff"), "no list of so many strings"),
        (proto_of("DT_FLOAT", [-1], float_val=[1]), "no complete shape"),
        (proto_of("DT_FLOAT", [2**40]), "are filled up to 67108864 bytes"),
        (proto_of("DT_FLOAT", [2**40, 2**40], float_val=[1]), "are filled up to 67108864 bytes"),
        (proto_of("DT_STRING", [2**40], string_val=[b"a"]), "are filled up to 67108864 bytes"),
        (proto_of("DT_UINT8", [1], int_val=[300]), "outside its dtype"),
        (proto_of("DT_COMPLEX64", [1], scomplex_val=[1, 2, 3]), "imaginary"),
        (proto_of("DT_VARIANT", [1]), "variant, which cannot be sent"),
        (proto_of("DT_INVALID", [1]), "invalid, which cannot be sent"),
    ],
)
def test_values_that_do_not_fit_are_an_error_with_the_tensors_name(proto: protos.Message, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        tensors.decode(proto, "pixels")
    assert "'pixels'" in str(caught.value)


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_as_a_list_of_strings_decode_or_are_refused(content: bytes, count: int) -> None:
    proto = proto_of("DT_STRING", [count], tensor_content=content)
    try:
        strings = tensors.decode(proto, "x")
    except InputError:
        return
    assert strings.shape == (count,)
    assert not content or sum(map(len, strings)) <= len(content)


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(InputError, match="datetime64"):
        tensors.encode(np.array(["2020-01-01"], dtype="datetime64[D]"))
    with pytest.raises(InputError, match="bytes only"):
        tensors.encode(np.array([1, None], dtype=object))

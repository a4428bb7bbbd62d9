"""TensorProto and numpy agree with each other and with TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from serving import protos
from serving.errors import InputError
from serving.protos import tensors

DTYPES = ["f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16"]


def numbers() -> st.SearchStrategy[np.ndarray[Any, Any]]:
    return st.sampled_from(DTYPES).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    )


def proto_of(dtype: str, shape: list[int], **values: Any) -> protos.Message:
    proto = protos.TensorProto(dtype=protos.DataType.Value(dtype), **values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


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


@pytest.mark.tf
@settings(deadline=None, max_examples=50)
@given(numbers(), st.booleans())
def test_tensorflow_reads_what_is_encoded(array: np.ndarray[Any, Any], typed_fields: bool) -> None:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    ours = tensors.encode(array, typed_fields=typed_fields).SerializeToString()
    theirs = tf.make_ndarray(tensor_pb2.TensorProto.FromString(ours))
    assert theirs.dtype == array.dtype
    np.testing.assert_array_equal(theirs, array)


@pytest.mark.tf
@settings(deadline=None, max_examples=50)
@given(numbers())
def test_what_tensorflow_encodes_is_read(array: np.ndarray[Any, Any]) -> None:
    import tensorflow as tf

    proto = protos.TensorProto.FromString(tf.make_tensor_proto(array).SerializeToString())
    np.testing.assert_array_equal(tensors.decode(proto, "x"), array)


@pytest.mark.tf
def test_dtypes_are_those_of_tensorflow() -> None:
    import tensorflow as tf

    for dtype in DTYPES:
        expected = tf.as_dtype(np.dtype(dtype))
        number = tensors.encode(np.zeros(1, dtype)).dtype
        assert number == expected.as_datatype_enum
        assert tensors.dtype_name(number) == expected.name.replace("float32", "float").replace(
            "float64", "double"
        ).replace("float16", "half")


@pytest.mark.tf
def test_bfloat16_of_tensorflow_arrives_as_equal_floats() -> None:
    import tensorflow as tf

    values = tf.constant([1.0, -2.5, 3e38], tf.bfloat16)
    proto = protos.TensorProto.FromString(tf.make_tensor_proto(values.numpy()).SerializeToString())
    np.testing.assert_array_equal(tensors.decode(proto, "x"), tf.cast(values, tf.float32).numpy())


@pytest.mark.tf
def test_the_packed_list_of_strings_is_the_one_tensorflow_reads() -> None:
    import tensorflow as tf

    long = b"x" * 300
    content = bytes([2, 0, 0xAC, 0x02]) + b"ab" + long  # lengths 2, 0 and 300 as varints
    proto = proto_of("DT_STRING", [3], tensor_content=content)
    assert tensors.decode(proto, "x").tolist() == [b"ab", b"", long]
    assert tf.io.parse_tensor(proto.SerializeToString(), tf.string).numpy().tolist() == [b"ab", b"", long]

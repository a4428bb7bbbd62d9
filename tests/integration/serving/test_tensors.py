"""TensorProto conversion compared with TensorFlow's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import protos
from serving.protos import tensors
from tests.support.tensors import DTYPES, make_tensor_proto, numeric_arrays


@pytest.mark.tf
@settings(deadline=None, max_examples=50)
@given(numeric_arrays(), st.booleans())
def test_tensorflow_decodes_our_encoding(array: np.ndarray[Any, Any], typed_fields: bool) -> None:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    ours = tensors.encode(array, typed_fields=typed_fields).SerializeToString()
    theirs = tf.make_ndarray(tensor_pb2.TensorProto.FromString(ours))
    assert theirs.dtype == array.dtype
    np.testing.assert_array_equal(theirs, array)


@pytest.mark.tf
@settings(deadline=None, max_examples=50)
@given(numeric_arrays())
def test_we_decode_the_encoding_of_tensorflow(array: np.ndarray[Any, Any]) -> None:
    import tensorflow as tf

    proto = protos.TensorProto.FromString(tf.make_tensor_proto(array).SerializeToString())
    np.testing.assert_array_equal(tensors.decode(proto, "x"), array)


@pytest.mark.tf
def test_dtype_numbers_and_names_match_tensorflow() -> None:
    import tensorflow as tf

    for dtype in DTYPES:
        expected = tf.as_dtype(np.dtype(dtype))
        number = tensors.encode(np.zeros(1, dtype)).dtype
        assert number == expected.as_datatype_enum
        assert tensors.dtype_name(number) == expected.name.replace("float32", "float").replace(
            "float64", "double"
        ).replace("float16", "half")


@pytest.mark.tf
def test_bfloat16_of_tensorflow_decodes_to_equal_float32() -> None:
    import tensorflow as tf

    values = tf.constant([1.0, -2.5, 3e38], tf.bfloat16)
    proto = protos.TensorProto.FromString(tf.make_tensor_proto(values.numpy()).SerializeToString())
    np.testing.assert_array_equal(tensors.decode(proto, "x"), tf.cast(values, tf.float32).numpy())


@pytest.mark.tf
def test_strings_in_tensor_content_decode_as_in_tensorflow() -> None:
    import tensorflow as tf

    long = b"x" * 300
    content = bytes([2, 0, 0xAC, 0x02]) + b"ab" + long  # lengths 2, 0 and 300 as varints
    proto = make_tensor_proto("DT_STRING", [3], tensor_content=content)
    assert tensors.decode(proto, "x").tolist() == [b"ab", b"", long]
    assert tf.io.parse_tensor(proto.SerializeToString(), tf.string).numpy().tolist() == [b"ab", b"", long]

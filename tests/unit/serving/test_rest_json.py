"""Conversion between JSON and tensors by the rules of TensorFlow Serving's REST API."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serving import protos
from serving.protos import tensors
from serving.server.rest import json_tensors, messages
from serving.server.status_error import StatusError

FLOAT, DOUBLE, INT32, UINT8, INT16, STRING, INT64, BOOL, HALF, UINT16 = 1, 2, 3, 4, 5, 7, 9, 10, 19, 17
DTYPES = {
    np.float32: FLOAT,
    np.float64: DOUBLE,
    np.int32: INT32,
    np.uint8: UINT8,
    np.int16: INT16,
    np.int8: 6,
    np.int64: INT64,
    np.bool_: BOOL,
    np.uint32: 22,
    np.uint64: 23,
}


def infos(**dtypes: int) -> dict[str, Any]:
    return {alias: protos.TensorInfo(dtype=dtype) for alias, dtype in dtypes.items()}


def error_of(value: Any, dtype: int) -> StatusError:
    with pytest.raises(StatusError) as caught:
        json_tensors.parse_tensor(value, dtype)
    return caught.value


numbers = st.sampled_from(list(DTYPES)).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
)


@given(numbers)
@example(np.array(np.finfo(np.float32).max))
def test_numbers_round_trip(array: Any) -> None:
    dtype = DTYPES[array.dtype.type]
    text = json_tensors.format_columns({"x": tensors.encode(array)})
    value = json.loads(text)
    assert np.shape(value) == array.shape or array.size == 0
    decoded = tensors.decode(json_tensors.parse_tensor(value, dtype), "x")
    if 0 not in array.shape:  # JSON does not tell the dimensions below an empty list
        assert decoded.shape == array.shape
        assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded.ravel(), array.ravel())


@given(st.lists(st.binary(max_size=20), max_size=5), st.booleans())
def test_bytes_round_trip(values: list[bytes], columnar: bool) -> None:
    outputs = {"photo_bytes": tensors.encode(values)}
    text = json_tensors.format_columns(outputs) if columnar else json_tensors.format_rows(outputs)
    assert json.loads(text) == [{"b64": base64.b64encode(value).decode()} for value in values]
    assert tensors.decode(json_tensors.parse_tensor(json.loads(text), STRING), "x").tolist() == values


@given(st.lists(st.text(max_size=20), max_size=5))
def test_text_round_trips(values: list[str]) -> None:
    usable = [value for value in values if value.encode(errors="replace").decode() == value]
    text = json_tensors.format_columns({"words": tensors.encode([value.encode() for value in usable])})
    assert json.loads(text) == usable
    decoded = tensors.decode(json_tensors.parse_tensor(json.loads(text), STRING), "x")
    assert decoded.tolist() == [value.encode() for value in usable]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    st.sampled_from([*DTYPES.values(), STRING, HALF]),
)
def test_any_json_value_is_a_tensor_or_a_status_error(value: Any, dtype: int) -> None:
    try:
        proto = json_tensors.parse_tensor(value, dtype)
    except StatusError:
        return
    assert tensors.decode(proto, "x").ndim == len(proto.tensor_shape.dim)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1.0"),
        (0.2, "0.2"),
        (9000000, "9e+06"),
        (0.00003, "3e-05"),
        (1 / 3, "0.333333343"),
        (123456.7, "123456.703"),
        (16777216, "16777216.0"),
        (-0.0, "-0.0"),
        (3.4028235e38, "3.40282347e+38"),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
    ],
)
def test_floats_have_the_fewest_digits_that_round_trip(value: float, text: str) -> None:
    assert json_tensors.format_floats(np.array([value], np.float32)) == [text]


def test_doubles_have_seventeen_digits_if_six_lose_precision() -> None:
    assert json_tensors.format_floats(np.array([1 / 3, 0.5])) == ["0.33333333333333331", "0.5"]


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        ("a", FLOAT, 'JSON Value: "a" Type: String is not of expected type: float'),
        (None, FLOAT, "JSON Value: null Type: Null is not of expected type: float"),
        (True, FLOAT, "JSON Value: true Type: True is not of expected type: float"),
        (1.0, INT32, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        (2**31, INT32, "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
        (256, UINT8, "JSON Value: 256 Type: Number is not of expected type: uint8"),
        (False, INT64, "JSON Value: false Type: False is not of expected type: int64"),
        (1, BOOL, "JSON Value: 1 Type: Number is not of expected type: bool"),
        (3, STRING, "JSON Value: 3 Type: Number is not of expected type: string"),
        (
            {"b64": "YQ=="},
            INT32,
            'JSON Value: {\n    "b64": "YQ=="\n} Type: Object is not of expected type: int32',
        ),
        ({"b64": 1}, STRING, 'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 data'),
        ({"b64": "&&&"}, STRING, "Unable to base64 decode"),
        (2**24, FLOAT, "Cannot convert JSON value: 16777216 to float without loss of precision."),
        (2**53, DOUBLE, "Cannot convert JSON value: 9007199254740992 to double without loss of precision."),
        (1e39, FLOAT, "Cannot convert JSON value: 1e+39 to float without loss of precision."),
        (10**400, DOUBLE, None),
        ([[1], 2], INT32, "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        ([1, [2]], INT32, "Encountered list at unexpected level: 1 expected < 1"),
        ([[1], [2, 3]], INT32, "Encountered list at unexpected size: 2 at level: 1 expected size: 1"),
        ("\ud800", STRING, "JSON Value: '\\ud800' is not valid Unicode text"),
    ],
)
def test_invalid_tensor_is_rejected_with_tensorflow_servings_text(value: Any, dtype: int, text: str) -> None:
    error = error_of(value, dtype)
    assert error.code.name == "INVALID_ARGUMENT"
    if text is not None:
        assert error.text == text


def test_integers_are_accepted_for_floats() -> None:
    proto = json_tensors.parse_tensor([1, 2.5, -(2**24) + 1, 10**30], FLOAT)
    np.testing.assert_array_equal(
        tensors.decode(proto, "x"), np.array([1, 2.5, -(2**24) + 1, 1e30], np.float32)
    )


@pytest.mark.parametrize("dtype", [HALF, tensors.DT_BFLOAT16, UINT16])
def test_dtypes_without_a_json_form_are_rejected_in_requests_and_responses(dtype: int) -> None:
    error = error_of([1], dtype)
    name = tensors.dtype_name(dtype)
    assert (error.code.name, error.text) == (
        "UNIMPLEMENTED",
        f"Conversion of JSON Value: 1 to type: {name}",
    )
    with pytest.raises(StatusError, match=f"Failed to write JSON value for tensor type: {name}"):
        json_tensors.format_columns({"y": protos.TensorProto(dtype=dtype)})


def test_base64_padding_is_optional_and_white_space_is_ignored() -> None:
    for text in ("YWI=", "YWI", " Y W\nI="):
        assert json_tensors.decode_base64({"b64": text}) == b"ab"


def test_first_error_in_reading_order_is_reported() -> None:
    assert error_of([["a", 1], [2]], INT32).text.startswith('JSON Value: "a"')


def test_value_in_an_error_message_is_truncated() -> None:
    assert len(error_of("x" * 100_000, FLOAT).text) < 700
    assert len(json_tensors.format_value(list(range(10**6)))) < 600


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [33, 65, 300, 5000])
def test_deeply_nested_lists_are_rejected(depth: int) -> None:
    assert "at most 32 dimensions" in error_of(nested(depth), FLOAT).text
    assert error_of([1, nested(depth)], FLOAT).text == "Encountered list at unexpected level: 1 expected < 1"
    assert error_of({"a": nested(depth)}, FLOAT).text.startswith("JSON Value: ")


# --- Bodies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"{", "JSON Parse error: Expecting property name"),
        (b"\xff\xfe", "JSON Parse error: Not UTF-8 at offset: 0"),
        (b"[" * 100_000, "JSON Parse error: "),
        (b"1" * 10_000, "JSON Parse error: "),
        (b"[1]", "JSON Value: [\n    1\n] Is not object"),
    ],
)
def test_body_that_is_not_an_object_is_rejected(body: bytes, text: str) -> None:
    with pytest.raises(StatusError) as caught:
        messages.parse_body(body)
    assert caught.value.text.startswith(text)


def inputs(body: dict[str, Any], **dtypes: int) -> dict[str, Any]:
    found, _ = messages.parse_predict_inputs(body, infos(**dtypes))
    return {alias: tensors.decode(proto, alias).tolist() for alias, proto in found.items()}


def test_rows_and_columns_of_one_and_of_several_inputs() -> None:
    assert inputs({"instances": [[1], [2]]}, x=FLOAT) == {"x": [[1.0], [2.0]]}
    assert inputs({"instances": [{"x": [1]}, {"x": [2]}]}, x=FLOAT) == {"x": [[1.0], [2.0]]}
    assert inputs({"instances": [{"b64": "YQ=="}, "b"]}, x=STRING) == {"x": [b"a", b"b"]}
    assert inputs({"instances": [{"a": 1, "b": "c"}]}, a=INT32, b=STRING) == {"a": [1], "b": [b"c"]}
    assert inputs({"inputs": [[1], [2]]}, x=FLOAT) == {"x": [[1.0], [2.0]]}
    assert inputs({"inputs": 3}, x=INT64) == {"x": 3}
    assert inputs({"inputs": {"x": [1]}}, x=FLOAT) == {"x": [1.0]}
    assert inputs({"inputs": {"b64": "YQ=="}}, x=STRING) == {"x": b"a"}
    assert inputs({"inputs": {"a": [1], "b": ["c", "d"]}}, a=INT32, b=STRING) == {"a": [1], "b": [b"c", b"d"]}


@pytest.mark.parametrize(
    ("body", "dtypes", "text"),
    [
        ({}, {"x": FLOAT}, "Missing 'inputs' or 'instances' key"),
        ({"inputs": 1, "instances": [1]}, {"x": FLOAT}, "expecting only one of 'inputs' or 'instances'"),
        ({"instances": 1}, {"x": FLOAT}, "Excepting 'instances' to be an list/array"),
        ({"instances": []}, {"x": FLOAT}, "No values in 'instances' array"),
        ({"instances": [1]}, {"a": FLOAT, "b": FLOAT}, "instances is a plain list, but expecting"),
        ({"instances": [{"x": 1}, 2]}, {"x": FLOAT}, "Expecting object but got list at item 1 of input list"),
        ({"instances": [1, {"x": 2}]}, {"x": FLOAT}, "Expecting value/list but got object at item 1"),
        (
            {"instances": [{"z": 1}]},
            {"x": FLOAT},
            "Failed to process element: 0 key: z of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON object: does not have named input: z",
        ),
        ({"instances": [{"a": 1}]}, {"a": FLOAT, "b": FLOAT}, "keys must be equal to: a,b"),
        ({"instances": [[1], [1, 2]]}, {"x": FLOAT}, "Expecting tensor size: 1 but got: 2"),
        ({"instances": [[[1, 2]], [[1], [2]]]}, {"x": FLOAT}, "Expecting shape [1,2] but got: [2,1]"),
        (
            {"instances": [1, "a"]},
            {"x": FLOAT},
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"a\"",
        ),
        ({"inputs": [1]}, {"a": FLOAT, "b": FLOAT}, "inputs is a plain value/list, but expecting an object"),
        ({"inputs": {"a": [1]}}, {"a": FLOAT, "b": FLOAT}, "Missing named input: b in 'inputs' object."),
    ],
)
def test_body_that_does_not_match_the_signature_is_rejected(
    body: dict[str, Any], dtypes: dict[str, int], text: str
) -> None:
    with pytest.raises(StatusError) as caught:
        messages.parse_predict_inputs(body, infos(**dtypes))
    assert text in caught.value.text


def test_outputs_are_formatted_as_rows_or_columns() -> None:
    one = {"y": tensors.encode(np.array([[1, 2], [3, 4]], np.float32))}
    assert messages.format_predictions(one, rows=True) == '{"predictions": [[1.0, 2.0], [3.0, 4.0]]}'
    assert messages.format_predictions(one, rows=False) == '{"outputs": [[1.0, 2.0], [3.0, 4.0]]}'
    two = one | {"name": tensors.encode([b"a", b"\xff"])}
    assert json.loads(messages.format_predictions(two, rows=True)) == {
        "predictions": [{"name": "a", "y": [1, 2]}, {"name": "\ufffd", "y": [3, 4]}]
    }
    assert json.loads(messages.format_predictions(two, rows=False)) == {
        "outputs": {"name": ["a", "\ufffd"], "y": [[1, 2], [3, 4]]}
    }
    assert (
        messages.format_predictions({"y": tensors.encode(np.array(True))}, rows=False) == '{"outputs": true}'
    )


def test_outputs_without_a_common_batch_dimension_are_rejected() -> None:
    with pytest.raises(StatusError, match="Tensor name: y has no shape information"):
        json_tensors.format_rows({"y": tensors.encode(np.array(1))})
    with pytest.raises(StatusError, match="Tensor name: b has inconsistent batch size: 2 expecting: 1"):
        json_tensors.format_rows({"a": tensors.encode(np.ones(1)), "b": tensors.encode(np.ones(2))})


def test_examples_have_the_features_of_the_json_body() -> None:
    found = messages.parse_examples(
        {"examples": [{"f": [1.5, 2.0], "i": 3, "t": True, "s": "a", "b": [{"b64": "/w=="}], "none": []}]}
    )
    features = found.example_list.examples[0].features.feature
    assert list(features["f"].float_list.value) == [1.5, 2.0]
    assert list(features["i"].int64_list.value) == [3]
    assert list(features["t"].int64_list.value) == [1]
    assert list(features["s"].bytes_list.value) == [b"a"]
    assert list(features["b"].bytes_list.value) == [b"\xff"]
    assert features["none"].WhichOneof("kind") is None
    with_context = messages.parse_examples({"context": {"c": 1}, "examples": [{}]})
    assert with_context.example_list_with_context.context.features.feature["c"].int64_list.value == [1]
    assert len(with_context.example_list_with_context.examples) == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "key 'examples' is expected and was not found"),
        ({"examples": 1}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{}], "context": []}, "Example must be JSON object but got JSON Array"),
        ({"examples": [{"a": None}]}, "Feature: a has element with unexpected JSON type: Null"),
        ({"examples": [{"a": [[1]]}]}, "Feature: a has element with unexpected JSON type: Array"),
        ({"examples": [{"a": {"c": 1}}]}, "Feature: a has element with unexpected JSON type: Object"),
        ({"examples": [{"a": [1.5, "x"]}]}, "Unexpected element type in feature: a expecting type: float"),
        ({"examples": [{"a": 2**63}]}, "Feature: a has uint64 element. Only int64 is supported."),
        ({"examples": [{"a": 10**400}]}, "without loss of precision"),
    ],
)
def test_invalid_examples_are_rejected(body: dict[str, Any], text: str) -> None:
    with pytest.raises(StatusError) as caught:
        messages.parse_examples(body)
    assert text in caught.value.text


def test_classifications_and_regressions_are_formatted_as_json() -> None:
    result = protos.ClassificationResult()
    result.classifications.add().classes.add(label='a "b"', score=0.9)
    result.classifications.add()
    assert messages.format_classifications(result) == '{"results": [[["a \\"b\\"", 0.9]], []]}'
    values = protos.RegressionResult()
    values.regressions.add(value=2)
    assert messages.format_regressions(values) == '{"results": [2.0]}'
    for empty, answer in (
        (protos.ClassificationResult(), messages.format_classifications),
        (protos.RegressionResult(), messages.format_regressions),
    ):
        with pytest.raises(StatusError, match="Cannot convert empty"):
            answer(empty)


# --- Any body ---------------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just({"b64": "YQ=="}),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "x", "b64"]) | st.text(max_size=2), inner, max_size=3)
    ),
)
bodies = st.dictionaries(
    st.sampled_from(["instances", "inputs", "examples", "context", "signature_name"]), anything
)


@given(st.binary(max_size=60) | bodies.map(lambda body: json.dumps(body).encode()))
def test_any_body_is_a_request_or_a_status_error(content: bytes) -> None:
    try:
        body = messages.parse_body(content)
    except StatusError:
        return
    for read in (
        messages.get_signature_name,
        messages.parse_examples,
        lambda body: messages.parse_predict_inputs(body, infos(x=FLOAT)),
        lambda body: messages.parse_predict_inputs(body, infos(a=STRING, b=INT32)),
    ):
        with contextlib.suppress(StatusError):
            read(body)

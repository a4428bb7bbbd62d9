"""Conversion of REST bodies to request messages, and of responses to bodies (http_rest_api_handler.cc).

The messages are those of gRPC, so that the same code answers both protocols.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from serving import protos
from serving.server.models.inference import SIGNATURE_DEF, format_shape, get_signature_key
from serving.server.rest import json_tensors
from serving.server.rest.json_tensors import Instance, Json, format_value, is_base64, json_type, quote
from serving.server.status_error import StatusError, invalid_argument

MAX_ROWS = 1 << 18
"""Maximum rows or examples of a body; a million empty ones would take many seconds to convert."""

Infos = Mapping[str, Any]
"""TensorInfos by input alias, as a signature declares them."""


# --- Requests ---------------------------------------------------------------------------------------------


FindSignature = Callable[[str], Any]
"""Returns the SignatureDef of a signature key, or None if there is none."""


def get_request_class(verb: str) -> protos.Message:
    """Return the class of the request message of an endpoint."""
    return {
        "predict": protos.PredictRequest,
        "classify": protos.ClassificationRequest,
        "regress": protos.RegressionRequest,
    }[verb]


def parse_request(
    verb: str, spec: protos.Message, body: bytes | bytearray, find_signature: FindSignature
) -> tuple[protos.Message, bool]:
    """Return the request message of a body.

    Args:
        verb: endpoint: "predict", "classify" or "regress".
        spec: ModelSpec of the request; the signature key that the body names is set in it.
        body: body of the request.
        find_signature: function that returns a signature of the model.

    Returns:
        The message; and True if the response is to be in rows, False for columns.

    Raises:
        StatusError: the body is not such a request, or does not match the signature.
    """
    content = parse_body(body)
    spec.signature_name = get_signature_name(content)
    if verb != "predict":
        return get_request_class(verb)(model_spec=spec, input=parse_examples(content)), True
    name = get_signature_key(spec)
    signature = find_signature(name)
    if signature is None:
        raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
    if not signature.inputs:
        raise invalid_argument(f"Failed to get input map for signature: {spec.signature_name or 'DEFAULT'}")
    inputs, rows = parse_predict_inputs(content, signature.inputs)
    return protos.PredictRequest(model_spec=spec, inputs=inputs), rows


def parse_body(body: bytes | bytearray) -> dict[str, Json]:
    """Parse a body, which must be a JSON object.

    Raises:
        StatusError: the body is not JSON, or not an object.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    try:
        value = json.loads(body.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise invalid_argument(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except UnicodeDecodeError as error:
        raise invalid_argument(f"JSON Parse error: Not UTF-8 at offset: {error.start}") from error
    except RecursionError as error:
        raise invalid_argument("JSON Parse error: Lists or objects are nested too deep") from error
    except ValueError as error:  # an integer with thousands of digits
        raise invalid_argument(f"JSON Parse error: {error}") from error
    if not isinstance(value, dict):
        raise invalid_argument(f"JSON Value: {format_value(value)} Is not object")
    return value


def get_signature_name(body: Mapping[str, Json]) -> str:
    """Return the signature key that a body names; "" for the default.

    Raises:
        StatusError: the name is not a string.
    """
    name = body.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {format_value(body)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return json_tensors.encode_utf8(name).decode()


def parse_predict_inputs(body: Mapping[str, Json], infos: Infos) -> tuple[dict[str, protos.Message], bool]:
    """Return the tensors in a body for `:predict`.

    Args:
        body: the parsed body.
        infos: inputs that the signature declares.

    Returns:
        TensorProtos by input alias; and True for rows ("instances"), False for columns ("inputs").

    Raises:
        StatusError: the body does not match the signature.
    """
    infos = dict(infos)  # a map of protobuf raises an error for keys that are not valid Unicode
    if "instances" in body and "inputs" in body:
        raise invalid_argument(
            f"JSON Value: {format_value(body)} Not formatted correctly expecting only one of 'inputs' or "
            "'instances' keys to exist "
        )
    if "instances" in body:
        rows = body["instances"]
        if not isinstance(rows, list):
            raise invalid_argument(
                f"JSON Value: {format_value(body)} Excepting 'instances' to be an list/array"
            )
        if not rows:
            raise invalid_argument(f"JSON Value: {format_value(body)} No values in 'instances' array")
        _check_rows(rows)
        return _parse_rows(rows, infos), True
    if "inputs" in body:
        return _parse_columns(body["inputs"], infos), False
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _check_rows(rows: list[Json]) -> None:
    if len(rows) > MAX_ROWS:
        raise invalid_argument(f"The body has {len(rows)} rows, more than {MAX_ROWS}.")


def _is_named(value: Json) -> bool:
    """Return whether a value is an object with input aliases, not `{"b64": "..."}`."""
    return isinstance(value, dict) and not is_base64(value)


def _parse_rows(rows: list[Json], infos: Infos) -> dict[str, protos.Message]:
    """Return the tensors of a body in rows. The first row decides whether all must be objects.

    Raises:
        StatusError: a row does not match the signature, or differs in form or shape from the first one.
    """
    named = _is_named(rows[0])
    if not isinstance(rows[0], dict) and len(infos) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    # Fast path: whole columns. At the first irregularity all rows are read again, one by one, which finds the
    # error that comes first and names its row.
    if not named or all(isinstance(row, dict) and row.keys() == infos.keys() for row in rows):
        columns = {alias: [row[alias] for row in rows] for alias in infos} if named else {min(infos): rows}
        with suppress(StatusError):
            return {
                alias: json_tensors.parse_tensor(column, infos[alias].dtype)
                for alias, column in columns.items()
            }
    parts: dict[str, list[Instance]] = {}
    for number, row in enumerate(rows):
        if named != _is_named(row):
            expected, got = ("object", "list") if named else ("value/list", "object")
            raise invalid_argument(f"Expecting {expected} but got {got} at item {number} of input list")
        for alias, value in row.items() if named else [(min(infos), row)]:
            try:
                _append_value(parts, alias, value, infos)
            except StatusError as error:
                key = f" key: {alias}" if named else ""
                raise invalid_argument(
                    f"Failed to process element: {number}{key} of 'instances' list. "
                    f"Error: {error.code.name}: {error.text}"
                ) from error
        if named and set(row) != set(infos):
            raise invalid_argument(
                f"Failed to process element: {number} of 'instances' list. JSON object: {format_value(row)} "
                f"keys must be equal to: {','.join(sorted(infos))}"
            )
    return {
        alias: json_tensors.stack_instances(column, infos[alias].dtype) for alias, column in parts.items()
    }


def _append_value(parts: dict[str, list[Instance]], alias: str, value: Json, infos: Infos) -> None:
    """Append one row's value to the column of its input.

    Raises:
        StatusError: the input is unknown, or the value differs in shape from the first one.
    """
    if alias not in infos:
        raise invalid_argument(f"JSON object: does not have named input: {alias}")
    shape, leaves = json_tensors.parse_instance(value, infos[alias].dtype)
    column = parts.setdefault(alias, [])
    if column:
        first_shape, first_leaves = column[0]
        if len(first_leaves) != len(leaves):
            raise invalid_argument(f"Expecting tensor size: {len(first_leaves)} but got: {len(leaves)}")
        if first_shape != shape:
            raise invalid_argument(
                f"Expecting shape {format_shape(first_shape)} but got: {format_shape(shape)}"
            )
    column.append((shape, leaves))


def _parse_columns(value: Json, infos: Infos) -> dict[str, protos.Message]:
    """Return the tensors of a body in columns: the value of the only input, or an object with all inputs.

    Raises:
        StatusError: an input is missing, or does not match the signature.
    """
    if not _is_named(value):
        if len(infos) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        return {alias: json_tensors.parse_tensor(value, info.dtype) for alias, info in infos.items()}
    found = {}
    for alias, info in sorted(infos.items()):
        if alias not in value:
            raise invalid_argument(f"Missing named input: {alias} in 'inputs' object.")
        found[alias] = json_tensors.parse_tensor(value[alias], info.dtype)
    return found


def parse_examples(body: Mapping[str, Json]) -> protos.Message:
    """Return the Input message of a body for `:classify` or `:regress`.

    Raises:
        StatusError: there are no examples, or one is not a valid Example.
    """
    found = protos.Input()
    if "context" in body:
        found.example_list_with_context.context.CopyFrom(_parse_example(body["context"]))
    if "examples" not in body:
        raise invalid_argument(
            f"JSON Value: {format_value(body)} When method is classify, key 'examples' is expected "
            "and was not found"
        )
    values = body["examples"]
    if not isinstance(values, list):
        raise invalid_argument(
            f"JSON Value: {format_value(body)} Expecting 'examples' value to be an list/array"
        )
    if not values:
        raise invalid_argument(f"JSON Value: {format_value(body)} 'examples' value is an empty array")
    _check_rows(values)
    target = found.example_list_with_context if "context" in body else found.example_list
    target.examples.extend(_parse_example(value) for value in values)
    return found


def _parse_example(value: Json) -> protos.Message:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {json_type(value)}")
    example = protos.Example()
    for name, content in value.items():
        feature = example.features.feature[json_tensors.encode_utf8(name).decode()]
        for item in content if isinstance(content, list) else [content]:
            _add_to_feature(feature, name, item)
    return example


def _add_to_feature(feature: protos.Message, name: str, value: Json) -> None:
    """Append one value to a feature; the first value determines the kind of the feature.

    Raises:
        StatusError: the value has another kind, or a type that no feature can hold.
    """
    converted: Any
    if isinstance(value, str):
        field, converted = "bytes_list", json_tensors.encode_utf8(value)
    elif is_base64(value):
        field, converted = "bytes_list", json_tensors.decode_base64(value)
    elif isinstance(value, bool):
        field, converted = "int64_list", int(value)
    elif isinstance(value, int) and -(2**63) <= value < 2**64:
        field, converted = "int64_list", value
    elif isinstance(value, (int, float)):
        field, converted = "float_list", value
    else:
        raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {json_type(value)}")
    before = feature.WhichOneof("kind")
    if before not in (None, field):
        kind = before.removesuffix("_list")
        raise invalid_argument(f"Unexpected element type in feature: {name} expecting type: {kind}")
    if field == "float_list":
        json_tensors.check_float(value, single=True)
    elif field == "int64_list" and converted >= 2**63:
        raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
    getattr(feature, field).value.append(converted)


# --- Responses --------------------------------------------------------------------------------------------


def format_predictions(outputs: Mapping[str, protos.Message], *, rows: bool) -> str:
    """Return the body of a response to `:predict`.

    Args:
        outputs: TensorProtos by output alias.
        rows: whether the request was in rows; the response has the same format.

    Raises:
        StatusError: an output has no JSON form, or is not divided into rows.
    """
    if rows:
        return f'{{"predictions": {json_tensors.format_rows(outputs)}}}'
    return f'{{"outputs": {json_tensors.format_columns(outputs)}}}'


def format_classifications(result: protos.Message) -> str:
    """Return the body of a response to `:classify`: pairs of class label and score for each example."""
    if not result.classifications:
        raise invalid_argument("Cannot convert empty ClassificationResults to JSON")
    rows = []
    for found in result.classifications:
        scores = json_tensors.format_floats(np.array([one.score for one in found.classes], np.float32))
        pairs = zip(found.classes, scores, strict=True)
        rows.append(f"[{', '.join(f'[{quote(one.label)}, {score}]' for one, score in pairs)}]")
    return f'{{"results": [{", ".join(rows)}]}}'


def format_regressions(result: protos.Message) -> str:
    """Return the body of a response to `:regress`: a value for each example."""
    if not result.regressions:
        raise invalid_argument("Cannot convert empty RegressionResults to JSON")
    values = json_tensors.format_floats(np.array([one.value for one in result.regressions], np.float32))
    return f'{{"results": [{", ".join(values)}]}}'


def format_status(response: protos.Message) -> str:
    """Format a GetModelStatusResponse as JSON."""
    return json.dumps(_to_json(response), indent=1, ensure_ascii=False)


def format_metadata(response: protos.Message) -> str:
    """Format a GetModelMetadataResponse as JSON, with its signatures unpacked."""
    signatures = protos.SignatureDefMap()
    response.metadata[SIGNATURE_DEF].Unpack(signatures)
    content = {
        "model_spec": _to_json(response.model_spec),
        "metadata": {SIGNATURE_DEF: _to_json(signatures)},
    }
    return json.dumps(content, indent=1, ensure_ascii=False)


def format_error(text: str) -> str:
    """Return the body of an error response."""
    return f'{{"error": {quote(text)}}}'


def _to_json(message: protos.Message) -> Any:
    from google.protobuf import json_format

    to_dict: Callable[..., Any] = json_format.MessageToDict
    return to_dict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=protos.pool(),
    )

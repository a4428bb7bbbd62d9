"""Bodies of the REST API to request messages, and responses to bodies (http_rest_api_handler.cc).

The messages are those of gRPC, so that one place answers both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from serving import protos
from serving.server.models.inference import SIGNATURE_DEF
from serving.server.rest import json_tensors
from serving.server.rest.json_tensors import Json, is_base64, kind, quoted, shown
from serving.server.status_error import Refusal, invalid

Infos = Mapping[str, Any]
"""Alias to TensorInfo: the inputs of a signature."""


# --- Requests ---------------------------------------------------------------------------------------------


def document(body: bytes | bytearray) -> dict[str, Json]:
    """The object in a body.

    Raises:
        Refusal: no JSON, or something else.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        value = json.loads(body.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: Not UTF-8 at offset: {error.start}") from error
    except RecursionError as error:
        raise invalid("JSON Parse error: Lists or objects are nested too deep") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(value, dict):
        raise invalid(f"JSON Value: {shown(value)} Is not object")
    return value


def signature_name(body: Mapping[str, Json]) -> str:
    """The signature that is asked for; "" for the default.

    Raises:
        Refusal: it is no string.
    """
    name = body.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {shown(body)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return json_tensors.utf8(name).decode()


def predict_inputs(body: Mapping[str, Json], infos: Infos) -> tuple[dict[str, protos.Message], bool]:
    """The tensors of a body for `:predict`.

    Args:
        body: what `document` gave.
        infos: the inputs that the signature declares.

    Returns:
        Alias to TensorProto, and whether the body is in rows ("instances"), not columns ("inputs").

    Raises:
        Refusal: they do not fit.
    """
    if "instances" in body and "inputs" in body:
        raise invalid(
            f"JSON Value: {shown(body)} Not formatted correctly expecting only one of 'inputs' or "
            "'instances' keys to exist "
        )
    if "instances" in body:
        rows = body["instances"]
        if not isinstance(rows, list):
            raise invalid(f"JSON Value: {shown(body)} Excepting 'instances' to be an list/array")
        if not rows:
            raise invalid(f"JSON Value: {shown(body)} No values in 'instances' array")
        return _of_rows(rows, infos), True
    if "inputs" in body:
        return _of_columns(body["inputs"], infos), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _is_named(value: Json) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _of_rows(rows: list[Json], infos: Infos) -> dict[str, protos.Message]:
    named = _is_named(rows[0])
    if not isinstance(rows[0], dict) and len(infos) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    parts: dict[str, list[tuple[tuple[int, ...], list[Any]]]] = {}
    for number, row in enumerate(rows):
        if named != _is_named(row):
            raise invalid(
                f"Expecting object but got list at item {number} of input list"
                if named
                else f"Expecting value/list but got object at item {number} of input list"
            )
        for alias, value in row.items() if named else [(min(infos), row)]:
            try:
                _add(parts, alias, value, infos)
            except Refusal as refusal:
                key = f" key: {alias}" if named else ""
                raise invalid(
                    f"Failed to process element: {number}{key} of 'instances' list. "
                    f"Error: {refusal.code.name}: {refusal.text}"
                ) from refusal
        if named and set(row) != set(infos):
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: {shown(row)} "
                f"keys must be equal to: {','.join(sorted(infos))}"
            )
    return {alias: json_tensors.stacked(column, infos[alias].dtype) for alias, column in parts.items()}


def _add(
    parts: dict[str, list[tuple[tuple[int, ...], list[Any]]]], alias: str, value: Json, infos: Infos
) -> None:
    if alias not in infos:
        raise invalid(f"JSON object: does not have named input: {alias}")
    shape, leaves = json_tensors.part(value, infos[alias].dtype)
    column = parts.setdefault(alias, [])
    if column:
        first_shape, first_leaves = column[0]
        if len(first_leaves) != len(leaves):
            raise invalid(f"Expecting tensor size: {len(first_leaves)} but got: {len(leaves)}")
        if first_shape != shape:
            raise invalid(f"Expecting shape {_dims(first_shape)} but got: {_dims(shape)}")
    column.append((shape, leaves))


def _dims(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _of_columns(value: Json, infos: Infos) -> dict[str, protos.Message]:
    if not _is_named(value):
        if len(infos) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        return {alias: json_tensors.tensor(value, info.dtype) for alias, info in infos.items()}
    found = {}
    for alias, info in sorted(infos.items()):
        if alias not in value:
            raise invalid(f"Missing named input: {alias} in 'inputs' object.")
        found[alias] = json_tensors.tensor(value[alias], info.dtype)
    return found


def examples(body: Mapping[str, Json]) -> protos.Message:
    """The Input message of a body for `:classify` or `:regress`.

    Raises:
        Refusal: there are no examples, or not as they should be.
    """
    found = protos.Input()
    context = body.get("context")
    if "context" in body:
        found.example_list_with_context.context.CopyFrom(_example(context))
    if "examples" not in body:
        raise invalid(
            f"JSON Value: {shown(body)} When method is classify, key 'examples' is expected and was not found"
        )
    values = body["examples"]
    if not isinstance(values, list):
        raise invalid(f"JSON Value: {shown(body)} Expecting 'examples' value to be an list/array")
    if not values:
        raise invalid(f"JSON Value: {shown(body)} 'examples' value is an empty array")
    home = found.example_list_with_context if "context" in body else found.example_list
    home.examples.extend(_example(value) for value in values)
    return found


def _example(value: Json) -> protos.Message:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {kind(value)}")
    example = protos.Example()
    for name, content in value.items():
        feature = example.features.feature[json_tensors.utf8(name).decode()]
        for item in content if isinstance(content, list) else [content]:
            _add_to_feature(feature, name, item)
    return example


_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def _add_to_feature(feature: protos.Message, name: str, value: Json) -> None:
    """One value; the first decides of which kind a feature is."""
    converted: Any
    if isinstance(value, str):
        held, converted = "bytes_list", json_tensors.utf8(value)
    elif is_base64(value):
        held, converted = "bytes_list", json_tensors.from_base64(value)
    elif isinstance(value, bool):
        held, converted = "int64_list", int(value)
    elif isinstance(value, int) and -(2**63) <= value < 2**64:
        held, converted = "int64_list", value
    elif isinstance(value, (int, float)):
        held, converted = "float_list", value
    else:
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {kind(value)}")
    before = feature.WhichOneof("kind")
    if before not in (None, held):
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {_KINDS[before]}")
    if held == "float_list":
        json_tensors.check_decimal(value, single=True)
    elif held == "int64_list" and converted >= 2**63:
        raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    getattr(feature, held).value.append(converted)


# --- Responses --------------------------------------------------------------------------------------------


def predicted(outputs: Mapping[str, protos.Message], *, rows: bool) -> str:
    """The body that answers `:predict`.

    Raises:
        Refusal: an output has no JSON.
    """
    if rows:
        return f'{{"predictions": {json_tensors.predictions(outputs)}}}'
    return f'{{"outputs": {json_tensors.columns(outputs)}}}'


def classified(result: protos.Message) -> str:
    """The body that answers `:classify`: pairs of label and score, for each example."""
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    rows = []
    for found in result.classifications:
        scores = json_tensors.decimals(np.array([one.score for one in found.classes], np.float32))
        pairs = zip(found.classes, scores, strict=True)
        rows.append(f"[{', '.join(f'[{quoted(one.label)}, {score}]' for one, score in pairs)}]")
    return f'{{"results": [{", ".join(rows)}]}}'


def regressed(result: protos.Message) -> str:
    """The body that answers `:regress`: a value for each example."""
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    values = json_tensors.decimals(np.array([one.value for one in result.regressions], np.float32))
    return f'{{"results": [{", ".join(values)}]}}'


def status(response: protos.Message) -> str:
    """A GetModelStatusResponse as JSON."""
    return json.dumps(_as_json(response), indent=1, ensure_ascii=False)


def metadata(response: protos.Message) -> str:
    """A GetModelMetadataResponse as JSON, its signatures unpacked."""
    signatures = protos.SignatureDefMap()
    response.metadata[SIGNATURE_DEF].Unpack(signatures)
    told = {
        "model_spec": _as_json(response.model_spec),
        "metadata": {SIGNATURE_DEF: _as_json(signatures)},
    }
    return json.dumps(told, indent=1, ensure_ascii=False)


def error(text: str) -> str:
    """The body of every refusal."""
    return f'{{"error": {quoted(text)}}}'


def _as_json(message: protos.Message) -> Any:
    from google.protobuf import json_format

    to_dict: Callable[..., Any] = json_format.MessageToDict
    return to_dict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=protos.pool(),
    )

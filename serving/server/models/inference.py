"""Conversion of PredictionService requests to a signature's tensors, and of tensors to responses.

Status codes and texts are those of TensorFlow Serving (servables/tensorflow/predict_util.cc, classifier.cc,
regressor.cc, multi_inference.cc, util.cc, get_model_metadata_impl.cc, and saved_model/util.cc of
TensorFlow), since clients match on them. The method name of a signature is not checked, as by default there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import contract, protos
from serving.errors import InputError
from serving.protos import tensors
from serving.server.status_error import failed_precondition, invalid_argument, unimplemented

SIGNATURE_DEF = "signature_def"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

EXAMPLES = "inputs"
"""Input alias of a Classify or Regress signature: string [N], serialized tf.Example protos."""

_MAX_CONTEXT_BYTES = 1 << 26
"""Maximum bytes of the copies of a context, which a message has once and the model's input per example."""

CLASSES, SCORES, OUTPUTS = "classes", "scores", "outputs"

Signatures = Mapping[str, Any]
"""SignatureDefs by signature key."""

Tensors = Mapping[str, NDArray[Any]]
"""Arrays by input or output alias."""


def get_signature_key(spec: protos.Message) -> str:
    """Return the signature key that a ModelSpec names, or the default one."""
    return spec.signature_name or contract.SERVING_DEFAULT


def find_predict_signature(signatures: Signatures, name: str) -> protos.Message:
    """Return the SignatureDef for a PredictRequest.

    Raises:
        StatusError: there is none of that name, or it is internal to TensorFlow (`__...`).
    """
    if name not in signatures or name.startswith("__"):
        raise failed_precondition(f'Serving signature key "{name}" not found.')
    return signatures[name]


def decode_predict_inputs(signature: protos.Message, sent: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return the arrays to feed, with the checks of GetInputValues and DirectSession, in their order.

    Args:
        signature: SignatureDef of the request.
        sent: TensorProtos of the request by input alias.

    Raises:
        StatusError: the tensors do not match the signature.
    """
    required, defaults = signature.inputs, signature.defaults
    if len(sent) > len(required) or (len(sent) < len(required) and not defaults):
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(required)} "
            f"len({_format_set(sent)}) != len({_format_set(required)}). "
            f"Sent extra: {_format_set(set(sent) - set(required))}. "
            f"Missing but required: {_format_set(set(required) - set(sent))}."
        )
    protos_by_alias, inputs = {}, {}
    for alias in sorted(required):
        if alias not in sent and alias not in defaults:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {required[alias].name}) not found in request "
                f"and no default value provided. Inputs expected to be in the request {_format_set(sent)}, "
                f"or default input alias set: {','.join(sorted(defaults))}"
            )
        protos_by_alias[alias] = sent[alias] if alias in sent else defaults[alias]
    for alias, proto in protos_by_alias.items():
        try:
            inputs[alias] = tensors.decode(proto, alias)
        except InputError as error:
            raise invalid_argument(f"tensor parsing error: {alias}") from error
    if not set(sent) <= set(required):
        used = ",".join(sorted(set(sent) & set(required)))
        raise invalid_argument(
            f"Inputs contains invalid_argument name. Used request inputs: {used}, "
            f"request input: {','.join(sorted(sent))}"
        )
    # DirectSession numbers the arguments by feed name, and checks dtypes last.
    by_feed_name = sorted(required, key=lambda alias: required[alias].name)
    for index, alias in enumerate(by_feed_name):
        declared, given = required[alias].dtype, protos_by_alias[alias].dtype
        if declared != given:
            raise invalid_argument(
                f"Expects arg[{index}] to be {tensors.dtype_name(declared)} "
                f"but {tensors.dtype_name(given)} is provided"
            )
    return inputs


def select_predict_outputs(signature: protos.Message, output_filter: Iterable[str]) -> tuple[str, ...]:
    """Return the aliases of the requested outputs, sorted; all outputs if the filter is empty.

    Raises:
        StatusError: an alias is unknown or listed twice.
    """
    seen: set[str] = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_format_set(signature.outputs)}."
            )
        if alias in seen:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return tuple(sorted(seen or signature.outputs))


def serialize_examples(request_input: protos.Message) -> dict[str, NDArray[Any]]:
    """Return the arrays to feed to a Classify or Regress signature.

    The serialized context of an ExampleListWithContext is prepended to each serialized example. Parsing the
    concatenation merges both messages, so an example's own feature overrides that of the context
    (InputToSerializedExampleTensor).

    Args:
        request_input: Input message of the request.

    Returns:
        string [N] under the alias "inputs".

    Raises:
        StatusError: there are no examples.
    """
    kind = request_input.WhichOneof("kind")
    found = getattr(request_input, kind) if kind else None
    if found is None or not found.examples:
        raise invalid_argument("Input is empty.")
    context = found.context.SerializeToString() if kind == "example_list_with_context" else b""
    if len(context) * len(found.examples) > _MAX_CONTEXT_BYTES:
        raise invalid_argument(
            f"A context of {len(context)} bytes for {len(found.examples)} examples is too large."
        )
    rows = [context + example.SerializeToString() for example in found.examples]
    return {EXAMPLES: tensors.make_string_array(rows)}


def find_examples_signature(signatures: Signatures, name: str) -> protos.Message:
    """Return the SignatureDef for a ClassificationRequest or RegressionRequest.

    Raises:
        StatusError: there is none of that name.
    """
    if name not in signatures:
        raise invalid_argument(f"No signature was found with the name: {name}")
    return signatures[name]


def select_classify_outputs(signature: protos.Message) -> tuple[str, ...]:
    """Return which of the outputs "classes" and "scores" a Classify signature has.

    Raises:
        StatusError: the signature is not a Classify signature.
    """
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if EXAMPLES not in signature.inputs:
        raise failed_precondition(f"No classification inputs found in SignatureDef: {signature}")
    wanted = tuple(alias for alias in (CLASSES, SCORES) if alias in signature.outputs)
    if not wanted:
        raise failed_precondition(
            f'Expected classification signature outputs to contain at least one of "{CLASSES}" or '
            f'"{SCORES}". Signature was: {signature}'
        )
    return wanted


def select_regress_outputs(signature: protos.Message) -> tuple[str, ...]:
    """Return the only output of a Regress signature.

    Raises:
        StatusError: the signature is not a Regress signature.
    """
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if EXAMPLES not in signature.inputs:
        raise failed_precondition(f"No regression inputs found in SignatureDef: {signature}")
    if OUTPUTS not in signature.outputs:
        raise failed_precondition(f"No regression outputs found in SignatureDef: {signature}")
    return (OUTPUTS,)


def build_classification_result(outputs: Tensors, count: int) -> protos.Message:
    """Return a ClassificationResult; classes keep the order of the model's columns.

    Args:
        outputs: "classes" (bytes [count, k]), "scores" (float32 [count, k]) or both.
        count: number of examples in the request.

    Raises:
        StatusError: the outputs have another shape or dtype.
    """
    for alias, kind, dtype in ((CLASSES, "O", "DT_STRING"), (SCORES, "f4", "DT_FLOAT")):
        if alias not in outputs:
            continue
        values = outputs[alias]
        if values.ndim != 2:
            raise invalid_argument(
                f"Expected Tensor shape: [batch_size num_classes] but got {format_shape(values.shape)}"
            )
        if values.dtype != np.dtype(kind):
            raise invalid_argument(f"Expected {alias} Tensor of {dtype}. Got: {_dtype_name(values)}")
        if len(values) != count:
            raise invalid_argument(f"Expected {alias} output batch size of {count}. Got: {len(values)}")
    widths = [values.shape[1] for values in outputs.values()]
    if len(set(widths)) > 1:
        raise invalid_argument(
            "Tensors class and score should match in dim_size(1). "
            f"Got {outputs[CLASSES].shape[1]} vs. {outputs[SCORES].shape[1]}"
        )
    result = protos.ClassificationResult()
    labels = outputs[CLASSES].tolist() if CLASSES in outputs else [[b""] * widths[0]] * count
    scores = outputs[SCORES].tolist() if SCORES in outputs else [[0.0] * widths[0]] * count
    for row, values in zip(labels, scores, strict=True):
        classes = result.classifications.add().classes
        for label, score in zip(row, values, strict=True):
            # The label field is a protobuf string, which can hold only UTF-8.
            classes.add(label=label.decode("utf-8", "replace"), score=score)
    return result


def build_regression_result(outputs: Tensors, count: int) -> protos.Message:
    """Return a RegressionResult.

    Args:
        outputs: "outputs", float32 [count] or [count, 1].
        count: number of examples in the request.

    Raises:
        StatusError: the output has another shape or dtype.
    """
    values = outputs[OUTPUTS]
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] != 1):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] "
            f"but got {format_shape(values.shape)}"
        )
    if len(values) != count:
        raise invalid_argument(f"Input batch size did not match output batch size: {count} vs. {len(values)}")
    if values.dtype != np.float32:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype_name(values)}")
    return protos.RegressionResult(regressions=[{"value": value} for value in values.ravel().tolist()])


EXAMPLES_METHODS = {
    CLASSIFY_METHOD: ("classification_result", select_classify_outputs, build_classification_result),
    REGRESS_METHOD: ("regression_result", select_regress_outputs, build_regression_result),
}
"""Field of InferenceResult, function that selects the outputs, and builder of the result, by method name."""


def select_multi_inference_outputs(
    signatures: Signatures, tasks: Iterable[protos.Message]
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the method name and the output aliases of each signature, in the order of the InferenceTasks.

    Raises:
        StatusError: the tasks name different models, repeat a signature, or name an unknown one.
    """
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    models = set[str]()
    for task in tasks:
        spec, name = task.model_spec, get_signature_key(task.model_spec)
        if not spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        models.add(spec.name)
        if len(models) > 1:
            raise invalid_argument(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        if name in found:
            raise invalid_argument(f"Duplicate evaluation of signature: {name}")
        if name not in signatures:
            raise invalid_argument(f"Requested signature not found in model graph: {name}")
        if task.method_name not in EXAMPLES_METHODS:
            raise unimplemented(f"Unsupported signature method_name: {task.method_name}")
        _, select_outputs, _ = EXAMPLES_METHODS[task.method_name]
        found[name] = task.method_name, select_outputs(signatures[name])
    return found


def check_metadata_fields(fields: Sequence[str]) -> None:
    """Check that a GetModelMetadataRequest asks for the signatures and for nothing else.

    Raises:
        StatusError: it asks for no field, or for another one.
    """
    if not fields:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in fields:
        if field != SIGNATURE_DEF:
            raise invalid_argument(f"Metadata field {field} is not supported")


def _format_set(names: Iterable[str]) -> str:
    return f"{{{','.join(sorted(names))}}}"


def format_shape(shape: Sequence[int]) -> str:
    """Format a shape as TensorShape::DebugString does."""
    return f"[{','.join(map(str, shape))}]"


def _dtype_name(values: NDArray[Any]) -> str:
    """Return the DataType name of an array, such as DT_INT64."""
    return str(protos.DataType.Name(tensors.encode(values[:0]).dtype))

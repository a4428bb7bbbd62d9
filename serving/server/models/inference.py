"""Requests of PredictionService into a signature's tensors, and its tensors into responses.

Codes and texts are those of TensorFlow Serving (servables/tensorflow/predict_util.cc, classifier.cc,
regressor.cc, multi_inference.cc, util.cc, get_model_metadata_impl.cc, and saved_model/util.cc of
TensorFlow), since clients match on them. A method's name is not checked, as in its default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from serving import contract, protos
from serving.errors import InputError
from serving.protos import tensors
from serving.server.status_error import Refusal, invalid

SIGNATURE_DEF = "signature_def"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

EXAMPLES = "inputs"
"""The only input of a signature for Classify or Regress: string [N], serialized tf.Example."""

CLASSES, SCORES, OUTPUTS = "classes", "scores", "outputs"

Signatures = Mapping[str, Any]
"""SignatureDef by name."""

Tensors = Mapping[str, NDArray[Any]]


def key(spec: protos.Message) -> str:
    """The signature that a ModelSpec asks for."""
    return spec.signature_name or contract.SERVING_DEFAULT


def predict_signature(signatures: Signatures, name: str) -> protos.Message:
    """The SignatureDef of a PredictRequest.

    Raises:
        Refusal: there is none, or it is TensorFlow's own.
    """
    if name not in signatures or name.startswith("__"):
        raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    return signatures[name]


def predict_inputs(signature: protos.Message, sent: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The tensors to feed, in the order and with the checks of GetInputValues and DirectSession.

    Raises:
        Refusal: they do not fit the signature.
    """
    required, defaults = signature.inputs, signature.defaults
    if len(sent) > len(required) or (len(sent) < len(required) and not defaults):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(required)} "
            f"len({_set(sent)}) != len({_set(required)}). Sent extra: {_set(set(sent) - set(required))}. "
            f"Missing but required: {_set(set(required) - set(sent))}."
        )
    protos_by_alias = {}
    for alias in sorted(required):
        if alias not in sent and alias not in defaults:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {required[alias].name}) not found in request "
                f"and no default value provided. Inputs expected to be in the request {_set(sent)}, "
                f"or default input alias set: {','.join(sorted(defaults))}"
            )
        protos_by_alias[alias] = sent[alias] if alias in sent else defaults[alias]
    used = set(sent) & set(required)
    inputs = {}
    for alias, proto in protos_by_alias.items():
        try:
            inputs[alias] = tensors.decode(proto, alias)
        except InputError as error:
            raise invalid(f"tensor parsing error: {alias}") from error
    if len(used) != len(sent):
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {','.join(sorted(used))}, "
            f"request input: {','.join(sorted(sent))}"
        )
    by_feed_name = sorted(required, key=lambda alias: required[alias].name)
    for index, alias in enumerate(by_feed_name):
        declared, given = required[alias].dtype, protos_by_alias[alias].dtype
        if declared != given:
            raise invalid(
                f"Expects arg[{index}] to be {tensors.dtype_name(declared)} "
                f"but {tensors.dtype_name(given)} is provided"
            )
    return inputs


def predict_outputs(signature: protos.Message, output_filter: Iterable[str]) -> tuple[str, ...]:
    """The aliases of the outputs that are asked for.

    Raises:
        Refusal: one is unknown, or there twice.
    """
    seen: set[str] = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_set(signature.outputs)}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return tuple(sorted(seen or signature.outputs))


def examples(request_input: protos.Message) -> dict[str, NDArray[Any]]:
    """The feed of a signature for Classify or Regress.

    The context of an ExampleListWithContext goes before each example. Serialized messages that are
    strung together are merged, so an example's own feature wins (InputToSerializedExampleTensor).

    Raises:
        Refusal: there are no examples.
    """
    kind = request_input.WhichOneof("kind")
    found = getattr(request_input, kind) if kind else None
    if found is None or not found.examples:
        raise invalid("Input is empty.")
    context = found.context.SerializeToString() if kind == "example_list_with_context" else b""
    rows = np.empty(len(found.examples), dtype=object)
    rows[:] = [context + example.SerializeToString() for example in found.examples]
    return {EXAMPLES: rows}


def examples_signature(signatures: Signatures, name: str) -> protos.Message:
    """The SignatureDef of a ClassificationRequest or RegressionRequest.

    Raises:
        Refusal: there is none.
    """
    if name not in signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return signatures[name]


def classify_outputs(signature: protos.Message) -> tuple[str, ...]:
    """Those of "classes" and "scores" that a signature for Classify has.

    Raises:
        Refusal: it is not of that form.
    """
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if EXAMPLES not in signature.inputs:
        raise _precondition(f"No classification inputs found in SignatureDef: {signature}")
    wanted = tuple(alias for alias in (CLASSES, SCORES) if alias in signature.outputs)
    if not wanted:
        raise _precondition(
            f'Expected classification signature outputs to contain at least one of "{CLASSES}" or '
            f'"{SCORES}". Signature was: {signature}'
        )
    return wanted


def regress_outputs(signature: protos.Message) -> tuple[str, ...]:
    """The only output of a signature for Regress.

    Raises:
        Refusal: it is not of that form.
    """
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if EXAMPLES not in signature.inputs:
        raise _precondition(f"No regression inputs found in SignatureDef: {signature}")
    if OUTPUTS not in signature.outputs:
        raise _precondition(f"No regression outputs found in SignatureDef: {signature}")
    return (OUTPUTS,)


def classification(outputs: Tensors, count: int) -> protos.Message:
    """A ClassificationResult, in the order of the model's columns.

    Args:
        outputs: "classes" (bytes [count, k]), "scores" (float32 [count, k]) or both.
        count: how many examples were sent.

    Raises:
        Refusal: they are not of that form.
    """
    for alias, kind, dtype in ((CLASSES, "O", "DT_STRING"), (SCORES, "f4", "DT_FLOAT")):
        if alias not in outputs:
            continue
        values = outputs[alias]
        if values.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(values)}")
        if values.dtype != np.dtype(kind):
            raise invalid(f"Expected {alias} Tensor of {dtype}. Got: {_dtype(values)}")
        if len(values) != count:
            raise invalid(f"Expected {alias} output batch size of {count}. Got: {len(values)}")
    widths = [values.shape[1] for values in outputs.values()]
    if len(set(widths)) > 1:
        raise invalid(
            "Tensors class and score should match in dim_size(1). "
            f"Got {outputs[CLASSES].shape[1]} vs. {outputs[SCORES].shape[1]}"
        )
    result = protos.ClassificationResult()
    labels = outputs[CLASSES].tolist() if CLASSES in outputs else [[b""] * widths[0]] * count
    scores = outputs[SCORES].tolist() if SCORES in outputs else [[0.0] * widths[0]] * count
    for row, values in zip(labels, scores, strict=True):
        classes = result.classifications.add().classes
        for label, score in zip(row, values, strict=True):
            # Labels travel as a protobuf string, which holds UTF-8 alone.
            classes.add(label=label.decode("utf-8", "replace"), score=score)
    return result


def regression(outputs: Tensors, count: int) -> protos.Message:
    """A RegressionResult.

    Args:
        outputs: "outputs", float32 [count] or [count, 1].
        count: how many examples were sent.

    Raises:
        Refusal: they are not of that form.
    """
    values = outputs[OUTPUTS]
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] != 1):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] "
            f"but got {_shape(values)}"
        )
    if len(values) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(values)}")
    if values.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype(values)}")
    result = protos.RegressionResult()
    for value in values.ravel().tolist():
        result.regressions.add(value=value)
    return result


def multi_inference_outputs(
    signatures: Signatures, tasks: Iterable[protos.Message]
) -> dict[str, tuple[str, ...]]:
    """Return the output aliases to compute for each signature, in the order of the InferenceTasks.

    Raises:
        Refusal: the tasks do not go together.
    """
    found: dict[str, tuple[str, ...]] = {}
    model, feed = "", ""
    for task in tasks:
        spec, name = task.model_spec, key(task.model_spec)
        if not spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        model = model or spec.name
        if spec.name != model:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if name in found:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        outputs_of = {CLASSIFY_METHOD: classify_outputs, REGRESS_METHOD: regress_outputs}
        if task.method_name not in outputs_of:
            raise Refusal(
                grpc.StatusCode.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}"
            )
        found[name] = outputs_of[task.method_name](signatures[name])
        name_of_feed = signatures[name].inputs[EXAMPLES].name
        feed = feed or name_of_feed
        if name_of_feed != feed:
            raise invalid("Input tensor must be the same for all Signatures.")
    return found


def check_metadata_fields(fields: Sequence[str]) -> None:
    """Refuse a GetModelMetadataRequest that asks for anything but the signatures.

    Raises:
        Refusal: it does.
    """
    if not fields:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in fields:
        if field != SIGNATURE_DEF:
            raise invalid(f"Metadata field {field} is not supported")


def _precondition(details: str) -> Refusal:
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, details)


def _set(names: Iterable[str]) -> str:
    return f"{{{','.join(sorted(names))}}}"


def _shape(values: NDArray[Any]) -> str:
    """As TensorShape::DebugString writes it."""
    return f"[{','.join(str(size) for size in values.shape)}]"


def _dtype(values: NDArray[Any]) -> str:
    """A DataType's name, such as DT_INT64."""
    return str(protos.DataType.Name(tensors.encode(values[:0]).dtype))

"""A SavedModel loaded for the highest throughput on CPU cores.

The batch job and the local server run a model with its variables frozen into constants, one
intra-op thread, and one calling thread per core with small batches. Measured on two cores with
EfficientNet-Lite0 (tests/bench), a signature as loaded has about 60 % of that throughput.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import client, contract
from serving.client import Signature, TensorInfo
from serving.client.photos import check_several
from serving.contract import PhotoRejection, Prediction
from serving.errors import BundleError, HubheadError
from serving.photos.converter import Converter
from serving.process import cores as cores
from serving.process import get_cpu_model, map_ahead
from serving.protos import tensors
from serving.runtime.session import ClassicSession
from serving.runtime.tensorflow_import import import_tensorflow

MICRO_BATCH = 8
"""Photos per call. For small photos 8 is 4 % faster than 4, and about as fast as 16 (tests/bench)."""

_SMALL_VARIABLES = 1 << 20
"""Bytes of variables up to which freezing, which takes seconds, gains nothing."""

_TRACEBACK_PREFIXES = (
    "Graph execution error:",
    "Detected at node ",
    "  File ",
    "    ",
    "<stack unavailable>",
    "<stack traces unavailable>",
)
"""Prefixes of the lines that eager TensorFlow adds before the message of a failed op."""

Value = NDArray[Any] | Sequence[bytes]

Function = Callable[..., list[Any]]
"""A signature as a function of its input tensors, in order, to the values of its outputs."""


class RunError(HubheadError):
    """TensorFlow failed to run a signature.

    Attributes:
        code: name of the gRPC status code with which TensorFlow Serving would answer.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Model:
    """A SavedModel whose signatures can be run from any number of threads.

    Throughput is highest with `threads` callers and small batches; see `imap`.

    Attributes:
        path: directory of the SavedModel.
        threads: number of concurrent callers it is configured for.
        signatures: signatures by name.
        engine: what runs the backbone, one of serving.contract.ENGINES but `auto`.
        cpu: name of the CPU that it runs on.
    """

    engine = "tensorflow"

    def __init__(
        self,
        path: Path,
        loaded: Any | None,
        threads: int,
        signatures: Mapping[str, Signature] | None = None,
    ) -> None:
        """Wrap a loaded SavedModel.

        Args:
            path: directory of the SavedModel.
            loaded: what `tf.saved_model.load` returned; None to run all signatures in a session, as
                TensorFlow Serving does.
            threads: number of concurrent callers that TensorFlow is configured for.
            signatures: signatures by name; None for those of `loaded`, or of the session.

        Raises:
            BundleError: it cannot be loaded in a session.
        """
        self.path = path
        self.threads = threads
        self.cpu = get_cpu_model()
        self._loaded = loaded  # owns the variables, which must outlive the functions
        if signatures is None:
            signatures = _describe_functions(loaded) if loaded else self._session.describe_signatures()
        self.signatures = signatures
        self._frozen: dict[str, Function] = {}
        self._freezing = threading.Lock()
        self._converter = Converter()

    def run(self, signature: str, inputs: Mapping[str, Value]) -> dict[str, NDArray[Any]]:
        """Run one signature. Strings are returned as object arrays of bytes.

        Args:
            signature: name of the signature.
            inputs: values by input name.

        Returns:
            Values by output name.

        Raises:
            BundleError: the model has no such signature.
            RunError: the inputs do not match the signature, or TensorFlow failed.
        """
        import tensorflow as tf

        described = self._find_signature(signature)
        if inputs.keys() != described.inputs.keys():
            raise RunError(
                f"Signature {signature} takes {sorted(described.inputs)}, not {sorted(inputs)}.",
                "INVALID_ARGUMENT",
            )
        try:
            function = self._frozen_function(signature)
            values = [tf.constant(inputs[name], info.dtype) for name, info in described.inputs.items()]
            return dict(zip(described.outputs, map(_to_array, function(*values)), strict=True))
        except tf.errors.OpError as error:
            raise RunError(clean_error_message(error.message), _grpc_code(error.error_code)) from error
        except UnicodeDecodeError as error:
            # The op's message quotes input bytes that are not UTF-8, so Python could not build an OpError.
            message = error.object.decode("utf-8", "backslashreplace")
            raise RunError(clean_error_message(message), "INVALID_ARGUMENT") from error
        except (TypeError, ValueError) as error:
            raise RunError(str(error), "INVALID_ARGUMENT") from error

    def _find_signature(self, name: str) -> Signature:
        if name not in self.signatures:
            raise make_signature_error(self.path, name, self.signatures)
        return self.signatures[name]

    def _frozen_function(self, signature: str) -> Function:
        """Return the frozen function of a signature; its first use takes about a second."""
        with self._freezing:
            if signature not in self._frozen:
                self._frozen[signature] = _call_alone_first(self._make_function(signature))
            return self._frozen[signature]

    def _make_function(self, signature: str) -> Function:
        """Return a signature as a function of its input tensors, in order, to the values of its outputs."""
        if self._loaded:
            with suppress(Exception):  # an input named "self", for one, which Python cannot pass by name
                frozen = _freeze(self._loaded.signatures[signature])
                return lambda *values: [tensor.numpy() for tensor in frozen(*values)]
        run = self._session.make_callable(signature)
        return lambda *values: run(*(_to_array(value.numpy()) for value in values))

    @cached_property
    def _session(self) -> ClassicSession:
        return ClassicSession(self.path, self.threads)

    def imap(
        self, signature: str, input_name: str, items: Iterable[bytes], *, micro_batch: int = MICRO_BATCH
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Run any number of items through a signature with one input, on all cores.

        At most two micro-batches per thread are read ahead, so memory does not grow with the
        number of items.

        Args:
            signature: name of the signature.
            input_name: name of its input.
            items: encoded inputs.
            micro_batch: items per call.

        Returns:
            Iterator over the outputs by name, one dict per micro-batch, in the order of the items.
        """
        iterator = iter(items)
        chunks = iter(lambda: list(islice(iterator, micro_batch)), [])

        def run(chunk: list[bytes]) -> dict[str, NDArray[Any]]:
            return self.run(signature, {input_name: chunk})

        return map_ahead(run, chunks, self.threads, ahead=2 * self.threads - 1)

    def classify(self, photos: Iterable[bytes], *, convert: bool = True) -> list[Prediction]:
        """Classify encoded photos with a hubhead bundle, as the client does over gRPC.

        Args:
            photos: encoded photos.
            convert: whether to convert formats that the graph cannot decode (serving/photos/converter.py).

        Returns:
            One prediction for each photo, in order.

        Raises:
            InputError: a single photo was given in place of a list.
        """
        # For each photo, why it is not sent to the model, or None. Filled while `imap` consumes `images`.
        rejections: list[PhotoRejection | None] = []

        def images() -> Iterator[bytes]:
            for photo in check_several(photos):
                image = self._converter.convert_if_needed(photo) if convert else photo
                rejections.append(image if isinstance(image, PhotoRejection) else None)
                if not isinstance(image, PhotoRejection):
                    yield image

        predictions: list[Prediction] = []
        for outputs in self.imap(contract.SERVING_DEFAULT, contract.IMAGE_BYTES, images()):
            predictions.extend(client.predictions(outputs, len(outputs[contract.STATUS])))
        remaining = iter(predictions)
        return [
            Prediction.from_rejection(rejection) if rejection else next(remaining) for rejection in rejections
        ]


def load(path: str | os.PathLike[str], threads: int | None = None, engine: str = "auto") -> Model:
    """Load a SavedModel directory for the highest throughput.

    Args:
        path: directory of a version (`serving.bundle.resolve` finds the newest of a base path).
        threads: number of concurrent callers; by default the cores this process may use.
        engine: what runs the backbone, one of serving.contract.ENGINES; `auto` is TensorFlow if it has a GPU.

    Raises:
        BundleError: TensorFlow cannot load the directory as a SavedModel, or the bundle is not made for the
            engine.
        InputError: the engine is not installed.
    """
    from serving.runtime import onnx_model

    tf = import_tensorflow()
    threads = threads or cores()
    configure_threads(threads)
    directory = Path(path)
    if engine == "auto" and tf.config.list_physical_devices("GPU"):
        engine = "tensorflow"
    if onnx_model.is_selected(directory, engine):
        return onnx_model.OnnxModel(directory, threads)
    try:
        loaded = tf.saved_model.load(str(directory))
    except Exception as error:  # TensorFlow may raise anything
        with suppress(BundleError):  # a graph of TensorFlow 1 that does not match its signatures
            return Model(directory, None, threads)
        raise make_load_error(directory, error) from error
    return Model(directory, loaded, threads)


def configure_threads(threads: int) -> None:
    """Configure TensorFlow for one thread per op and `threads` ops at a time.

    This is possible only before the first use of TensorFlow in the process, and ignored later.
    """
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        # TensorFlow is already initialized (a test, a notebook): results are the same, only slower.
        return


def make_load_error(path: str | os.PathLike[str], error: Exception) -> BundleError:
    """Return the error for a directory that cannot be loaded, with the first line of the cause."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return BundleError(f"{path} cannot be loaded as a SavedModel: {first}", remedy="Export the bundle again.")


def make_signature_error(path: str | os.PathLike[str], name: str, known: Iterable[str]) -> BundleError:
    """Return the error for a signature that a model does not have."""
    return BundleError(f"{path} has no signature {name!r}.", remedy=f"It has: {', '.join(known)}.")


def _freeze(function: Any) -> Any:
    """Return a signature as a function of its inputs in order, with its variables inlined as constants.

    Variables are not inlined if the function uses other resources, such as tables, or if they are
    so small that it gains nothing, as in hubhead's own bundles.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    specs = _inputs(function)
    outputs = _outputs(function)

    def positional(*values: Any) -> list[Any]:
        results = function(**dict(zip(specs, values, strict=True)))
        return [results[name] for name in outputs]

    concrete = tf.function(positional, autograph=False).get_concrete_function(
        *(tf.TensorSpec(spec.shape, spec.dtype, name=f"input_{i}") for i, spec in enumerate(specs.values()))
    )
    variables = concrete.graph.variables
    resources = {id(tensor) for tensor in concrete.graph.internal_captures if tensor.dtype == tf.resource}
    size = sum((variable.shape.num_elements() or 0) * variable.dtype.size for variable in variables)
    freeze = size > _SMALL_VARIABLES and len(resources) == len(variables)
    return convert_variables_to_constants_v2(concrete) if freeze else concrete


def _call_alone_first(function: Function) -> Function:
    """Return a function whose first call others wait for: each call before its end would compile it too."""
    lock, is_compiled = threading.Lock(), threading.Event()

    def call(*values: Any) -> list[NDArray[Any]]:
        if is_compiled.is_set():
            return function(*values)
        with lock:
            outputs = function(*values)
            is_compiled.set()
            return outputs

    return call


def _to_array(value: Any) -> NDArray[Any]:
    """Return a value of TensorFlow as an array: scalars come as numbers of NumPy, or as bytes."""
    if isinstance(value, np.ndarray):
        return value
    return np.array(value, object if isinstance(value, bytes) else None)


def _describe_functions(loaded: Any) -> dict[str, Signature]:
    return {
        name: Signature(_describe(_inputs(function)), _describe(_outputs(function)))
        for name, function in loaded.signatures.items()
        if not name.startswith("__")  # internal, such as __saved_model_init_op
    }


def _inputs(function: Any) -> dict[str, Any]:
    return dict(sorted(function.structured_input_signature[1].items()))


def _outputs(function: Any) -> dict[str, Any]:
    return dict(sorted(function.structured_outputs.items()))


def _describe(specs: Mapping[str, Any]) -> dict[str, TensorInfo]:
    found = {}
    for name, spec in specs.items():
        shape = None if spec.shape.rank is None else tuple(spec.shape.as_list())
        found[name] = TensorInfo(tensors.dtype_name(spec.dtype.as_datatype_enum), shape)
    return found


def clean_error_message(text: str) -> str:
    """Return the message of a failed op as TensorFlow Serving sends it.

    Eager TensorFlow adds the Python traceback of the code that built the graph before it, which
    would reveal local paths to callers, and names of functions in this process around it.
    """
    lines = dropwhile(lambda line: not line or line.startswith(_TRACEBACK_PREFIXES), text.splitlines())
    message = "\n".join(lines).partition(" [Op:")[0] or text
    return re.sub(r"\{\{function_node \S+\}\} ?", "", message)


def _grpc_code(number: int) -> str:
    import grpc

    return next((code.name for code in grpc.StatusCode if code.value[0] == number), "UNKNOWN")

"""A loaded SavedModel at full speed on CPU cores.

Measured on two cores with EfficientNet-Lite0 (tests/bench): a signature as loaded reaches
about 60 % of what the same graph gives with its variables frozen into constants, one
intra-op thread, and one calling thread a core with small batches. So that is how a model
runs here, in the batch job and in the local server alike.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from serving import client, contract
from serving.client import Signature, TensorInfo
from serving.contract import PhotoRejection, Prediction
from serving.errors import BundleError, HubheadError
from serving.photos.converter import Converter
from serving.process import cores as cores
from serving.protos import tensors
from serving.runtime.tensorflow_import import import_tensorflow

MICRO_BATCH = 8
"""Photos a call: from the bytes of small photos 4 % faster than 4, and about as fast as 16 (tests/bench)."""

_SMALL = 1 << 20
"""Bytes of variables that are not worth the seconds that inlining takes."""

_STACK = (
    "Graph execution error:",
    "Detected at node ",
    "  File ",
    "    ",
    "<stack unavailable>",
    "<stack traces unavailable>",
)
"""How the lines begin that eager TensorFlow puts before the message of a failed op."""

Value = NDArray[Any] | Sequence[bytes]


class RunError(HubheadError):
    """TensorFlow refused a call.

    Attributes:
        code: the name of the gRPC status code that TensorFlow Serving would answer with.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class _Callable:
    """A frozen function that takes and gives tensors in the order of its signature."""

    dtypes: tuple[Any, ...]
    call: Callable[..., Sequence[Any]]


class Model:
    """A SavedModel whose signatures run from any number of threads at once.

    Fastest with `threads` callers and small batches; see `imap`.
    """

    def __init__(self, path: Path, loaded: Any, threads: int) -> None:
        self.path = path
        self.threads = threads
        # Names that begin so are TensorFlow's own, such as __saved_model_init_op.
        self._functions = {
            name: function for name, function in loaded.signatures.items() if not name.startswith("__")
        }
        self.signatures = {name: _signature(function) for name, function in self._functions.items()}
        self._loaded = loaded  # its variables live as long as it does
        self._frozen: dict[str, _Callable] = {}
        self._freezing = threading.Lock()
        self._converter = Converter()

    def run(self, signature: str, inputs: Mapping[str, Value]) -> dict[str, NDArray[Any]]:
        """Call one signature. Strings come back as object arrays of bytes.

        Raises:
            BundleError: the model has no such signature.
            RunError: wrong inputs, or TensorFlow failed.
        """
        import tensorflow as tf

        item = self._callable(signature)
        names = self.signatures[signature].inputs
        if inputs.keys() != names.keys():
            raise RunError(
                f"Signature {signature} takes {sorted(names)}, not {sorted(inputs)}.", "INVALID_ARGUMENT"
            )
        try:
            values = [
                tf.constant(inputs[name], dtype) for name, dtype in zip(names, item.dtypes, strict=True)
            ]
            outputs = item.call(*values)
            return {
                name: tensor.numpy()
                for name, tensor in zip(self.signatures[signature].outputs, outputs, strict=True)
            }
        except tf.errors.OpError as error:
            raise RunError(own_words(error.message), _grpc_code(error.error_code)) from error
        except UnicodeDecodeError as error:
            # An op quoted bytes that it was sent, so that Python could not make an OpError of its message.
            message = error.object.decode("utf-8", "backslashreplace")
            raise RunError(own_words(message), "INVALID_ARGUMENT") from error
        except (TypeError, ValueError) as error:
            raise RunError(str(error), "INVALID_ARGUMENT") from error

    def _callable(self, signature: str) -> _Callable:
        """The frozen function of a signature; freezing takes about a second, at its first use."""
        if signature not in self.signatures:
            raise BundleError(
                f"{self.path} has no signature {signature!r}.",
                remedy=f"It has: {', '.join(self.signatures)}.",
            )
        with self._freezing:
            if signature not in self._frozen:
                self._frozen[signature] = _freeze(self._functions[signature])
            return self._frozen[signature]

    def imap(
        self, signature: str, input_name: str, items: Iterable[bytes], *, micro_batch: int = MICRO_BATCH
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Run any number of items through a one-input signature on all cores.

        Yields one dict a micro-batch, in the order of the items. At most two micro-batches
        a thread are read ahead, so memory does not grow with the number of items.
        """
        iterator = iter(items)
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: list[Future[dict[str, NDArray[Any]]]] = []
            while chunk := list(islice(iterator, micro_batch)):
                waiting.append(pool.submit(self.run, signature, {input_name: chunk}))
                if len(waiting) >= 2 * self.threads:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()

    def classify(self, photos: Iterable[bytes], *, convert: bool = True) -> list[Prediction]:
        """Classify encoded photos with a hubhead bundle, as the client does over gRPC.

        Args:
            photos: encoded bytes.
            convert: whether to convert formats that the graph does not decode (serving/photos/converter.py).
        """
        refusals: list[PhotoRejection | None] = []

        def images() -> Iterator[bytes]:
            for photo in photos:
                image = self._converter.convert_if_needed(photo) if convert else photo
                refusals.append(image if isinstance(image, PhotoRejection) else None)
                if not isinstance(image, PhotoRejection):
                    yield image

        answers: list[Prediction] = []
        for outputs in self.imap(contract.SERVING_DEFAULT, contract.IMAGE_BYTES, images()):
            answers.extend(client.predictions(outputs, len(outputs[contract.STATUS])))
        given = iter(answers)
        return [Prediction.from_rejection(refusal) if refusal else next(given) for refusal in refusals]


def load(path: str | os.PathLike[str], threads: int | None = None) -> Model:
    """Load a SavedModel directory and freeze its signatures.

    Args:
        path: a version directory (`serving.bundle.resolve` finds the newest of a base path).
        threads: callers that run at once; default: the cores this process may use.

    Raises:
        BundleError: the directory is no SavedModel that TensorFlow can load.
    """
    tf = import_tensorflow()
    threads = threads or cores()
    one_thread_an_op(threads)
    directory = Path(path)
    try:
        loaded = tf.saved_model.load(str(directory))
    except (OSError, ValueError, tf.errors.OpError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(
            f"{directory} cannot be loaded as a SavedModel: {first}", remedy="Export the bundle again."
        ) from error
    return Model(directory, loaded, threads)


def one_thread_an_op(threads: int) -> None:
    """Set TensorFlow's pools, which is possible only before its first use in the process."""
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        # TensorFlow is running already (a test, a notebook): slower, and right all the same.
        return


def _freeze(function: Any) -> _Callable:
    """A signature as a function of its inputs in order, its large variables inlined as constants.

    It stays as it is where it holds other resources, such as tables, and where its variables are
    so small that inlining them gains nothing, as in hubhead's own bundles.
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
    freeze = size > _SMALL and len(resources) == len(variables)
    return _Callable(
        tuple(spec.dtype for spec in specs.values()),
        convert_variables_to_constants_v2(concrete) if freeze else concrete,
    )


def _inputs(function: Any) -> dict[str, Any]:
    return dict(sorted(function.structured_input_signature[1].items()))


def _outputs(function: Any) -> dict[str, Any]:
    return dict(sorted(function.structured_outputs.items()))


def _signature(function: Any) -> Signature:
    return Signature(
        {name: _info(spec) for name, spec in _inputs(function).items()},
        {name: _info(spec) for name, spec in _outputs(function).items()},
    )


def _info(spec: Any) -> TensorInfo:
    shape = None if spec.shape.rank is None else tuple(spec.shape.as_list())
    return TensorInfo(tensors.dtype_name(spec.dtype.as_datatype_enum), shape)


def own_words(text: str) -> str:
    """A failed op's own words, as TensorFlow Serving sends them.

    Before them, eager TensorFlow puts the Python stack that built the graph, which would tell
    callers this machine's paths; around them, functions' names in this process.
    """
    lines = dropwhile(lambda line: not line or line.startswith(_STACK), text.splitlines())
    own = "\n".join(lines).partition(" [Op:")[0] or text
    return re.sub(r"\{\{function_node \S+\}\} ?", "", own)


def _grpc_code(number: int) -> str:
    import grpc

    return next((code.name for code in grpc.StatusCode if code.value[0] == number), "UNKNOWN")

"""A SavedModel that TensorFlow runs as a whole.

Its variables are frozen into constants, with one intra-op thread, and one calling thread per core with small
batches. Measured on two cores with EfficientNet-Lite0 (tests/bench), a signature as loaded has about 60 % of
that throughput.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.client import Signature, TensorInfo
from serving.errors import BundleError
from serving.process import call_alone_first
from serving.protos import tensors
from serving.runtime.errors import RunError, make_load_error, repeat_cancelled
from serving.runtime.model import Model, Value
from serving.runtime.session import ClassicSession
from serving.runtime.tensorflow_import import import_tensorflow

_INVALID_ARGUMENT = 3
"""Number of this gRPC status code."""

_SMALL_VARIABLES = 1 << 20
"""Bytes of variables up to which freezing, which takes seconds, gains nothing."""

Function = Callable[..., list[Any]]
"""A signature as a function of its input tensors, in order, to the values of its outputs."""


class TensorFlowModel(Model):
    """A SavedModel as TensorFlow's Python package loads it.

    Args:
        path: directory of the SavedModel.
        loaded: what `tf.saved_model.load` returned; None to run all signatures in a session, as
            TensorFlow Serving does.
        threads: number of concurrent callers that TensorFlow is configured for.

    Raises:
        BundleError: it cannot be loaded in a session.
    """

    engine = "tensorflow"

    def __init__(self, path: Path, loaded: Any | None, threads: int) -> None:
        self._loaded = loaded  # owns the variables, which must outlive the functions
        super().__init__(path, threads, _describe_functions(loaded) if loaded else {})
        if not loaded:
            self.signatures = self._session.describe_signatures()
        self._frozen: dict[str, Function] = {}
        self._freezing = threading.Lock()

    def _execute(
        self, name: str, signature: Signature, inputs: Mapping[str, Value]
    ) -> dict[str, NDArray[Any]]:
        import tensorflow as tf

        try:
            function = self._frozen_function(name)
            values = [tf.constant(inputs[key], info.dtype) for key, info in signature.inputs.items()]
            return dict(zip(signature.outputs, map(_to_array, function(*values)), strict=True))
        except tf.errors.OpError as error:
            raise RunError.from_status(error.error_code, error.message) from error
        except UnicodeDecodeError as error:
            # The op's message quotes input bytes that are not UTF-8, so Python could not build an OpError.
            message = error.object.decode("utf-8", "backslashreplace")
            raise RunError.from_status(_INVALID_ARGUMENT, message) from error
        except (TypeError, ValueError) as error:
            raise RunError(str(error), "INVALID_ARGUMENT") from error

    def _frozen_function(self, signature: str) -> Function:
        """Return the frozen function of a signature; its first use takes about a second."""
        with self._freezing:
            if signature not in self._frozen:
                self._frozen[signature] = call_alone_first(self._make_function(signature))
            return self._frozen[signature]

    def _make_function(self, signature: str) -> Function:
        """Return a signature as a function of its input tensors, in order, to the values of its outputs."""
        if self._loaded:
            with suppress(Exception):  # an input named "self", for one, which Python cannot pass by name
                frozen = _freeze(self._loaded.signatures[signature])
                return repeat_cancelled(lambda *values: [tensor.numpy() for tensor in frozen(*values)])
        run = self._session.make_callable(signature)
        return lambda *values: run(*(_to_array(value.numpy()) for value in values))

    @cached_property
    def _session(self) -> ClassicSession:
        return ClassicSession(self.path, self.threads)


def load(directory: Path, threads: int) -> TensorFlowModel:
    """Load a SavedModel.

    Args:
        directory: directory of a version.
        threads: number of concurrent callers.

    Raises:
        BundleError: TensorFlow cannot load it.
    """
    tf = import_tensorflow()
    configure_threads(threads)
    try:
        loaded = tf.saved_model.load(str(directory))
    except Exception as error:  # TensorFlow may raise anything
        with suppress(BundleError):  # a graph of TensorFlow 1 that does not match its signatures
            return TensorFlowModel(directory, None, threads)
        raise make_load_error(directory, error) from error
    return TensorFlowModel(directory, loaded, threads)


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

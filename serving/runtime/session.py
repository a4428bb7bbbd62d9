"""A SavedModel loaded as TensorFlow Serving loads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serving.client import Signature
from serving.client.responses import decode_signatures
from serving.errors import BundleError
from serving.runtime.errors import repeat_cancelled
from serving.runtime.tensorflow_import import import_tensorflow

PARITY_TOLERANCE = 2e-3
"""Largest allowed difference of a probability between two code paths.

Paths differ in batch size and threads, hence in the order of float32 sums, by about 1e-6 of
an embedding's entries. If an entry lies at a rounding boundary of float16, that becomes a step
of 2**-11 of the entry; the logits, which are sums over all entries, then differ by at most about
1e-3 and a probability by a quarter of that.
"""


class ClassicSession:
    """A SavedModel in a TensorFlow 1 session, which is how TensorFlow Serving loads and runs it.

    Args:
        directory: directory of the SavedModel.
        threads: number of concurrent callers, each with one thread per op; None for TensorFlow's choice.

    Attributes:
        signatures: SignatureDefs by signature key.

    Raises:
        BundleError: it cannot be loaded.
    """

    def __init__(self, directory: Path, threads: int | None = None) -> None:
        tf = import_tensorflow()
        config = tf.compat.v1.ConfigProto()
        if threads:
            config.intra_op_parallelism_threads, config.inter_op_parallelism_threads = 1, threads
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            with self._session.graph.as_default():
                # Deprecated for new code, but the same as what TensorFlow Serving does.
                meta = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory))
        except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
            raise BundleError(f"The SavedModel in {directory} cannot be loaded: {error}") from error
        self.signatures = meta.signature_def

    def __enter__(self) -> ClassicSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session.close()

    def describe_signatures(self) -> dict[str, Signature]:
        """Return the signatures by name; dtypes are those of the graph, which declarations may contradict."""
        for definition in self.signatures.values():
            for info in (*definition.inputs.values(), *definition.outputs.values()):
                if info.name:  # a sparse tensor has several names
                    tensor = self._session.graph.get_tensor_by_name(info.name)
                    info.dtype = tensor.dtype.as_datatype_enum
        return decode_signatures(self.signatures)

    def make_callable(self, signature: str) -> Callable[..., list[Any]]:
        """Return a signature as a function of its inputs, in the order of their aliases, to its outputs.

        Its errors are those of the ops, without Python's traceback of the code that built the graph.
        """
        from tensorflow.core.protobuf import config_pb2

        definition = self.signatures[signature]
        feeds, fetches = (
            [infos[alias].name for alias in sorted(infos)]
            for infos in (definition.inputs, definition.outputs)
        )
        # The public make_callable rejects arrays whose shapes the graph does not declare.
        options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
        return repeat_cancelled(self._session._make_callable_from_options(options))

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a signature and return its outputs by name; strings are object arrays of bytes.

        Raises:
            BundleError: the SavedModel has no such signature.
        """
        if signature not in self.signatures:
            raise BundleError(f"The SavedModel has no signature {signature!r}.")
        definition = self.signatures[signature]
        feeds = {definition.inputs[name].name: value for name, value in inputs.items()}
        fetches = {name: info.name for name, info in definition.outputs.items()}
        return dict(repeat_cancelled(self._session.run)(fetches, feeds))

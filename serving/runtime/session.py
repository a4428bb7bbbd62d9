"""A SavedModel loaded as TensorFlow Serving loads it, and the checks a bundle must pass there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import contract
from serving.client import Signature
from serving.client.responses import decode_signatures
from serving.contract import Status
from serving.errors import BundleError
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
        return self._session._make_callable_from_options(options)  # type: ignore[no-any-return]

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
        return dict(self._session.run(fetches, feeds))


def check_answers(
    session: ClassicSession,
    labels: Sequence[str],
    photos: Sequence[bytes] = (),
    probabilities: NDArray[np.float32] | None = None,
    tolerance: float = PARITY_TOLERANCE,
) -> None:
    """Check the model's responses to valid photos, a text and an empty file, and to no photos.

    Args:
        session: loaded model.
        labels: class labels in the order of the columns.
        photos: N photos used in training; if there are none, a generated photo.
        probabilities: float32 [N,K], their probabilities in training; None to check only statuses.
        tolerance: largest allowed difference of a probability.

    Raises:
        BundleError: a status is wrong, or a probability differs from that in training.
    """
    # Valid and invalid photos share a batch, so that this also shows that they do not affect each other.
    valid = list(photos) or [sample_jpeg()]
    outputs = session.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: [*valid, b"no photo", b""]})
    statuses = [status.decode() for status in outputs[contract.STATUS]]
    usable = [Status(status).usable for status in statuses[:-2]]
    if not all(usable) or statuses[-2:] != [Status.NOT_AN_IMAGE, Status.EMPTY]:
        raise BundleError(f"The model returns {statuses} for valid photos, a text and an empty file.")
    empty = session.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: []})
    if any(len(output) for output in empty.values()):
        raise BundleError("The model returns rows for a request without photos.")
    if probabilities is None:
        return
    column = {label.encode(): index for index, label in enumerate(labels)}
    columns = np.vectorize(column.get, otypes=[np.intp])(outputs[contract.CLASSES][: len(photos)])
    expected = np.take_along_axis(probabilities, columns, axis=1)
    difference = float(np.abs(outputs[contract.SCORES][: len(photos)] - expected).max(initial=0.0))
    if difference > tolerance:
        raise BundleError(
            f"The model's probabilities differ from those in training by up to {difference:.2g}, "
            f"more than the {tolerance:g} that rounding explains.",
            remedy="Nothing was published. If files of the embedding store were modified, delete the store.",
        )


def sample_jpeg() -> bytes:
    """Return a small generated photo, for warm-up and checks."""
    tf = import_tensorflow()

    ramp = tf.range(256)
    pixels = tf.stack([*tf.meshgrid(ramp, ramp), tf.fill((256, 256), 128)], axis=-1)
    return bytes(tf.io.encode_jpeg(tf.cast(pixels, tf.uint8)).numpy())

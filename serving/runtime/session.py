"""A SavedModel as TensorFlow Serving loads it, and what a bundle has to answer there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import contract
from serving.contract import Status
from serving.errors import BundleError
from serving.runtime.tensorflow_import import import_tensorflow

PARITY_TOLERANCE = 2e-3
"""Largest difference of a probability between two paths to it.

Paths differ in batch size and threads, hence in the order of float32 sums, by about 1e-6 of
an embedding's entries. Rounding to float16 turns that, where an entry lies on the edge, into
one step of 2**-11 of that entry; the logits, sums over all entries, then move by at most some
1e-3 and a probability by a quarter of that.
"""


class ClassicSession:
    """A SavedModel in a classic session: how TensorFlow Serving loads and runs it.

    Raises:
        BundleError: it does not load.
    """

    def __init__(self, directory: Path) -> None:
        tf = import_tensorflow()

        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            with self._session.graph.as_default():
                # Deprecated for new code, but what it does is what TensorFlow Serving does.
                meta = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory))
        except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
            raise BundleError(f"The SavedModel in {directory} does not load: {error}") from error
        self._signatures = meta.signature_def

    def __enter__(self) -> ClassicSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session.close()

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of a signature as arrays; strings as objects of bytes.

        Raises:
            BundleError: it has no such signature.
        """
        if signature not in self._signatures:
            raise BundleError(f"The SavedModel has no signature {signature!r}.")
        definition = self._signatures[signature]
        fed = {definition.inputs[name].name: value for name, value in inputs.items()}
        fetched = {name: info.name for name, info in definition.outputs.items()}
        return dict(self._session.run(fetched, fed))


def check_answers(
    session: ClassicSession,
    labels: Sequence[str],
    photos: Sequence[bytes] = (),
    probabilities: NDArray[np.float32] | None = None,
    tolerance: float = PARITY_TOLERANCE,
) -> None:
    """Ask the written model about good photos, a text and an empty file in one call, and about none.

    Args:
        session: the model.
        labels: in the order of the columns.
        photos: N photos that the training path knows; none: a generated one.
        probabilities: float32 [N,K] of the training path.
        tolerance: largest difference of a probability.

    Raises:
        BundleError: a status is wrong, or the model differs from the training path.
    """
    good = list(photos) or [sample_jpeg()]
    answer = session.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: [*good, b"no photo", b""]})
    found = [status.decode() for status in answer[contract.STATUS]]
    usable = [Status(status).usable for status in found[:-2]]
    if not all(usable) or found[-2:] != [Status.NOT_AN_IMAGE, Status.EMPTY]:
        raise BundleError(f"The model answers {found} for good photos, a text and an empty file.")
    nothing = session.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: []})
    if any(len(output) for output in nothing.values()):
        raise BundleError("The model answers a request without photos.")
    if probabilities is None:
        return
    column = {label.encode(): index for index, label in enumerate(labels)}
    expected = np.array(
        [
            [row[column[name]] for name in names]
            for row, names in zip(probabilities, answer[contract.CLASSES], strict=False)
        ]
    )
    difference = float(np.abs(answer[contract.SCORES][: len(photos)] - expected).max(initial=0.0))
    if difference > tolerance:
        raise BundleError(
            f"The model's probabilities differ from the training path's by up to "
            f"{difference:.2g}, more than the {tolerance:g} that float arithmetic explains.",
            remedy="Nothing was published. If files of the embedding store were changed, remove it.",
        )


def sample_jpeg() -> bytes:
    """A small generated photo, for warm-up and checks."""
    tf = import_tensorflow()

    ramp = tf.range(256, dtype=tf.int32)
    pixels = tf.stack([ramp[None, :] + 0 * ramp[:, None], ramp[:, None] + 0 * ramp[None, :]], axis=-1)
    pixels = tf.cast(tf.concat([pixels, 128 + 0 * pixels[:, :, :1]], axis=-1), tf.uint8)
    return bytes(tf.io.encode_jpeg(pixels).numpy())

"""The head of a bundle over stored embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import contract
from serving.bundle import Bundle
from serving.contract import Decisions

BLOCK_ROWS = 1024
"""Embeddings a call. Products of another number of rows are summed in another order, and differ in the
last bit; with one number for all a photo's scores do not depend on what it is scored together with."""


SignatureFunction = Callable[[Mapping[str, Any]], Mapping[str, NDArray[Any]]]


class HeadRunner:
    """The head of a bundle, loaded without its backbone when it is first needed.

    Args:
        bundle: of it.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @cached_property
    def run(self) -> SignatureFunction:
        """Signature `classify_embedding`: inputs by name to outputs by name.

        Raises:
            BundleError: the directory is no SavedModel, or has no such signature.
        """
        from serving import runtime
        from serving.runtime import single_signature

        # Before the session, since TensorFlow's pools are made once a process, and the backbone needs them.
        runtime.one_thread_an_op(runtime.cores())
        run = single_signature.load(self.bundle.path, contract.CLASSIFY_EMBEDDING)
        run({contract.EMBEDDING: np.zeros((BLOCK_ROWS, self.bundle.metadata.dimension), np.float32)})
        return run


def classify_embeddings(
    run: SignatureFunction, about: Bundle, vectors: NDArray[np.float16], usable: NDArray[np.bool_]
) -> Decisions:
    """What the model says of stored embeddings, from any number of threads.

    Args:
        run: signature `classify_embedding` of a bundle: inputs by name to outputs by name.
        about: the bundle.
        vectors: float16 [N,D].
        usable: bool [N]; where False there is no embedding, and no label comes out.
    """
    metadata = about.metadata
    rows = np.flatnonzero(usable)
    probabilities = np.zeros((len(usable), len(metadata.labels)), np.float32)
    known = np.ones(len(usable), bool)
    for start in range(0, len(rows), BLOCK_ROWS):
        chosen = rows[start : start + BLOCK_ROWS]
        block = np.zeros((BLOCK_ROWS, vectors.shape[1]), np.float32)
        block[: len(chosen)] = vectors[chosen]
        outputs = run({contract.EMBEDDING: block})
        probabilities[chosen] = outputs[contract.PROBABILITIES][: len(chosen)]
        if contract.KNOWN in outputs:  # bundles from before it refuse none
            known[chosen] = outputs[contract.KNOWN][: len(chosen)]
    return contract.decide(
        probabilities,
        usable,
        threshold=metadata.calibration["threshold"],
        top_k=metadata.top_k,
        known=known,
    )

"""Classification of stored embeddings by the head of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import contract
from serving.bundle import Bundle, BundleMetadata
from serving.client import Signature
from serving.contract import Decisions
from serving.errors import BundleError
from serving.text import first_line

BLOCK_ROWS = 1024
"""Embeddings per call of the head. Matrix products of other sizes add in another order and differ in
the last bit; with a fixed size, the scores of a photo do not depend on the photos beside it."""


SignatureFunction = Callable[[Mapping[str, Any]], Mapping[str, NDArray[Any]]]
"""One signature of a SavedModel: inputs by name to outputs by name."""


class HeadRunner:
    """Head of a bundle, loaded without the backbone on first use.

    Args:
        bundle: bundle that contains the head.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @cached_property
    def run(self) -> SignatureFunction:
        """The signature `classify_embedding` for embeddings float16 [N,D], loaded and warmed up.

        Raises:
            BundleError: the directory is not a SavedModel, has no such signature, or its graph has another
                number of labels or floats per embedding than its metadata.
        """
        from serving.runtime.errors import RunError
        from serving.runtime.subgraph import Subgraph

        # Each op has one thread, and there is a caller for each core at most: the ops run on its thread. On a
        # Xeon (Skylake) a block takes 18.7 instead of 21.7 ms, and as long as before with a caller per core.
        graph = Subgraph(
            self.bundle.path, [contract.CLASSIFY_EMBEDDING], 0, float16_inputs=[contract.EMBEDDING]
        )
        run = partial(graph.run, contract.CLASSIFY_EMBEDDING)
        metadata, path = self.bundle.metadata, self.bundle.path
        try:
            found = run({contract.EMBEDDING: np.zeros((BLOCK_ROWS, metadata.dimension), np.float16)})
        except RunError as error:
            raise BundleError(
                f"The head of {path} does not run on embeddings of {metadata.dimension} floats, as "
                f"{contract.METADATA_FILE} describes them: {first_line(error)}.",
                remedy="Export the bundle again.",
            ) from error
        shape = found[contract.PROBABILITIES].shape if contract.PROBABILITIES in found else ()
        if shape != (BLOCK_ROWS, len(metadata.labels)):
            raise BundleError(
                f"{path} has {len(metadata.labels)} labels in {contract.METADATA_FILE}, and its graph gives "
                f"probabilities of shape {list(shape)} for {BLOCK_ROWS} photos.",
                remedy="Export the bundle again.",
            )
        return run


def check_dimension(signatures: Mapping[str, Signature], metadata: BundleMetadata, path: Path) -> None:
    """Check that the graph of a bundle has embeddings of the length that its metadata states.

    Args:
        signatures: signatures of the graph by name; without `embed` nothing is checked.
        metadata: metadata of the bundle.
        path: directory of the bundle, for the error.

    Raises:
        BundleError: it has embeddings of another length.
    """
    embed = signatures.get(contract.EMBED)
    info = embed and embed.outputs.get(contract.EMBEDDING)
    if info and info.shape and info.shape[-1] not in (None, metadata.dimension):
        raise BundleError(
            f"{path} has embeddings of {metadata.dimension} floats in {contract.METADATA_FILE}, and of "
            f"{info.shape[-1]} in its graph.",
            remedy="Export the bundle again.",
        )


def pad_block(vectors: NDArray[np.float16]) -> NDArray[np.float16]:
    """Return a block of BLOCK_ROWS rows: the vectors, then zeros."""
    return np.pad(vectors, [(0, BLOCK_ROWS - len(vectors)), (0, 0)])


def classify_embeddings(
    run: SignatureFunction, bundle: Bundle, vectors: NDArray[np.float16], usable: NDArray[np.bool_]
) -> Decisions:
    """Classify stored embeddings. Thread-safe.

    Args:
        run: signature `classify_embedding` of the bundle, as `HeadRunner.run`.
        bundle: bundle whose threshold and number of top labels apply.
        vectors: embeddings, float16 [N,D].
        usable: bool [N]; False where there is no embedding. Such rows get no label.
    """
    metadata = bundle.metadata
    rows = np.flatnonzero(usable)
    probabilities = np.zeros((len(usable), len(metadata.labels)), np.float32)
    known = np.ones(len(usable), bool)
    for start in range(0, len(rows), BLOCK_ROWS):
        chosen = rows[start : start + BLOCK_ROWS]
        is_whole = len(chosen) == BLOCK_ROWS == chosen[-1] - chosen[0] + 1
        block = vectors[chosen[0] : chosen[-1] + 1] if is_whole else pad_block(vectors[chosen])
        outputs = run({contract.EMBEDDING: block})
        probabilities[chosen] = outputs[contract.PROBABILITIES][: len(chosen)]
        if contract.KNOWN in outputs:  # older bundles have no such output and accept every photo
            known[chosen] = outputs[contract.KNOWN][: len(chosen)]
    return contract.decide(
        probabilities,
        usable,
        threshold=metadata.threshold,
        top_k=metadata.top_k,
        known=known,
    )

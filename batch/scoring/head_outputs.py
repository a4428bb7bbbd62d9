"""Outputs of several heads for stored embeddings, kept as small arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import EmbeddingStore, layout
from batch.output.schema import USABLE, encode_status_column
from batch.scoring import head_runner
from batch.scoring.head_runner import SignatureFunction
from serving.bundle import Bundle
from serving.contract import Decisions
from serving.errors import OutputError
from serving.process import cores, map_ahead

if TYPE_CHECKING:
    import pyarrow as pa

NOT_STORED = -1
"""Status code of contents that the embedding store does not have."""

_COLUMNS = [layout.VECTOR, layout.STATUS, "detail", "height", "width"]
_PENDING_PER_CORE = 2


class HeadOutputs:
    """Status, size and decisions of each head for a set of photo contents.

    Rows are read in the order of the store, each once, and classified on all cores. Embeddings are dropped
    after that, so memory holds some dozens of bytes per content and model.

    Args:
        digests: sha256 of the contents, sorted, dtype S32 [N].
        bundles: bundle of each head.

    Attributes:
        status: status codes, int8 [N]; NOT_STORED where the store has no row.
        heights: photo heights, int32 [N].
        widths: photo widths, int32 [N].
    """

    def __init__(self, digests: NDArray[np.bytes_], bundles: Sequence[Bundle]) -> None:
        count = len(digests)
        self._digests, self._bundles = digests, bundles
        self.status = np.full(count, NOT_STORED, np.int8)
        self.heights, self.widths = np.zeros(count, np.int32), np.zeros(count, np.int32)
        self._details: dict[int, str] = {}  # of rejected photos only
        sizes = [min(bundle.metadata.top_k, len(bundle.metadata.labels)) for bundle in bundles]
        self._decisions = [
            (np.zeros((count, k), np.int32), np.zeros((count, k), np.float32), np.full(count, -1, np.int32))
            for k in sizes
        ]  # as Decisions, in half of the memory

    def classify(self, store: EmbeddingStore, heads: Sequence[SignatureFunction]) -> None:
        """Run the heads on every row that the store has of the contents, on all cores.

        Raises:
            OutputError: the store has a status that this version does not know.
        """

        def classify(block: tuple[NDArray[np.int64], pa.Table]) -> None:
            self._classify_block(*block, store.dimension, heads)

        blocks = store.iter_blocks(self._digests, _COLUMNS)
        for _ in map_ahead(classify, blocks, cores(), _PENDING_PER_CORE * cores()):
            pass

    def _classify_block(
        self,
        positions: NDArray[np.int64],
        block: pa.Table,
        dimension: int,
        heads: Sequence[SignatureFunction],
    ) -> None:
        """Classify one block of the store. Blocks have distinct positions, so no lock is needed."""
        import pyarrow.compute as pc

        codes = encode_status_column(block[layout.STATUS].combine_chunks())
        if (codes < 0).any():
            raise OutputError(
                "The embedding store has a status that this version of hubhead does not know.",
                remedy="Use the version of hubhead that wrote the store, or a newer one.",
            )
        self.status[positions] = codes
        self.heights[positions] = block["height"].to_numpy()
        self.widths[positions] = block["width"].to_numpy()
        details: Any = block["detail"].combine_chunks()
        if details.null_count < len(details):
            rows = np.flatnonzero(pc.is_valid(details).to_numpy(zero_copy_only=False))
            self._details.update(zip(positions[rows].tolist(), details.take(rows).to_pylist(), strict=True))
        vectors = layout.to_vectors(block, dimension)
        for run, bundle, (top, scores, label) in zip(heads, self._bundles, self._decisions, strict=True):
            found = head_runner.classify_embeddings(run, bundle, vectors, USABLE[codes])
            top[positions], scores[positions], label[positions] = found.top, found.scores, found.label

    def decisions(self, model: int, at: NDArray[np.int64]) -> Decisions:
        """Return a model's decisions for contents, by their positions in the sorted digests."""
        top, scores, label = self._decisions[model]
        return Decisions(top[at].astype(np.int64), scores[at], label[at].astype(np.int64))

    def merge_details(self, at: NDArray[np.int64], stored: NDArray[np.bool_], before: Any) -> Any:
        """Return the column `detail` for contents.

        Args:
            at: positions of the contents.
            stored: bool [N], which of them have a row in the store.
            before: column `detail` of the previous scores, kept where the store has no row.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        rejected = np.flatnonzero(stored & ~USABLE[self.status[at]])
        details: Any = pa.array([self._details.get(int(row)) for row in at[rejected]], pa.string())
        kept = pc.if_else(pa.array(stored), pa.scalar(None, pa.string()), before)
        mask = np.zeros(len(at), bool)
        mask[rejected] = True
        return pc.replace_with_mask(kept, pa.array(mask), details)

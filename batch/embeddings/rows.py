"""What the store keeps of photos."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.contract import Status


@dataclass(frozen=True)
class Embeddings:
    """What the model made of some photos' bytes, one row a distinct content.

    Attributes:
        shas: N sha256 digests of 32 bytes.
        vectors: float16 [N,D]; zeros where the status is not usable.
        statuses: N statuses.
        details: N phrases about refused photos, None for the others.
        heights, widths: int32 [N], pixels of the upright photo, 0 where unknown.
    """

    shas: Sequence[bytes]
    vectors: NDArray[np.float16]
    statuses: Sequence[Status]
    details: Sequence[str | None]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]

    def row_by_digest(self) -> dict[bytes, int]:
        """The row of each sha256; what is missing here is not in the store."""
        return {sha: row for row, sha in enumerate(self.shas)}

    def sorted_by_digest(self) -> Embeddings:
        """The same rows in the order of their digests."""
        order = sorted(range(len(self.shas)), key=self.shas.__getitem__)
        return Embeddings(
            shas=[self.shas[row] for row in order],
            vectors=self.vectors[order],
            statuses=[self.statuses[row] for row in order],
            details=[self.details[row] for row in order],
            heights=self.heights[order],
            widths=self.widths[order],
        )


def hash_photo(content: bytes) -> bytes:
    """The key of a photo's bytes in the store."""
    return hashlib.sha256(content).digest()

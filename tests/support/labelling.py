"""Photos in clusters, as embeddings, for tests of labelling sessions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.labelling.candidates import Candidates

LABELS = ("pizza", "soup", "sushi")


@dataclass(frozen=True)
class LabelledCandidates:
    """Candidates whose labels the tests know.

    Attributes:
        candidates: photos /photos/N.jpg, with embeddings around one centre for each of LABELS.
        targets: int64 [N], index of each photo's label.
    """

    candidates: Candidates
    targets: NDArray[np.int64]

    def label(self, row: int) -> str:
        """Return the label of a photo."""
        return LABELS[self.targets[row]]


def make_candidates(count: int, *, spread: float = 1.0, seed: int = 0) -> LabelledCandidates:
    """Return photos of three labels; with a small spread they are easy to tell apart."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, len(LABELS), count)
    centres = random.normal(size=(len(LABELS), 16)) * 2
    embeddings = centres[targets] + spread * random.normal(size=(count, 16))
    return LabelledCandidates(from_embeddings(embeddings), targets)


def from_embeddings(embeddings: NDArray[np.float64]) -> Candidates:
    """Return candidates with these embeddings, [N,D]."""
    digests = b"".join(hashlib.sha256(str(row).encode()).digest() for row in range(len(embeddings)))
    uris = [f"/photos/{row}.jpg" for row in range(len(embeddings))]
    return Candidates(uris, np.frombuffer(digests, "S32"), embeddings.astype(np.float16))

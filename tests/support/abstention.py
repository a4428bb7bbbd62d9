"""Helpers of the abstention tests: fitted novelty scores, and the two terms of the score."""

from __future__ import annotations

import numpy as np

from trainer import heads
from trainer.evaluation.novelty import Novelty, compute_terms
from trainer.heads import Floats, Ints


def to_blocks(embeddings: Floats) -> heads.Blocks:
    """Return all embeddings as blocks, without classes."""
    return heads.Blocks.from_array(embeddings, np.zeros(len(embeddings), np.int64))


def fit_novelty(embeddings: Floats, targets: Ints, kept: float = 0.95) -> Novelty:
    """Return the novelty score of a head with default settings."""
    classes = int(targets.max()) + 1
    fitted, selection = heads.fit(embeddings, targets, classes)
    return Novelty.fit(fitted, selection, embeddings, targets, kept=kept)


def energy(novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats) -> Floats:
    """Return the negative energy term of the score; with the signature of all scores that are compared."""
    return -compute_terms(novelty.head, novelty.centre, novelty.directions, to_blocks(rows))[1]


def residual(novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats) -> Floats:
    """Return the residual term of the score; with the signature of all scores that are compared."""
    return compute_terms(novelty.head, novelty.centre, novelty.directions, to_blocks(rows))[0]

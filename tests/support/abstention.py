"""Test data and helpers: abstention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trainer import heads
from trainer.evaluation import abstention
from trainer.evaluation.abstention import Novelty
from trainer.heads import Floats, Ints

if TYPE_CHECKING:
    pass


# --- Novelty --------------------------------------------------------------------------------------------


def of_all(embeddings: Floats) -> heads.Blocks:
    return heads.Blocks.of(embeddings, np.zeros(len(embeddings), np.int64))


def fit_novelty(embeddings: Floats, targets: Ints, kept: float = 0.95) -> Novelty:
    classes = int(targets.max()) + 1
    fitted, selection = heads.fit(embeddings, targets, classes)
    return Novelty.fit(fitted, selection, embeddings, targets, kept=kept)


def energy(novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats) -> Floats:
    return -abstention._terms(novelty.head, novelty.centre, novelty.directions, of_all(rows))[1]


def residual(novelty: Novelty, embeddings: Floats, targets: Ints, rows: Floats) -> Floats:
    return abstention._terms(novelty.head, novelty.centre, novelty.directions, of_all(rows))[0]

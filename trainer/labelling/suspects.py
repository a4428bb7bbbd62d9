"""Suspected label errors as photos to answer, beside the nearest photos of both labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.dataset import Example
from trainer.evaluation.suspects import SuspectRow
from trainer.heads import Floats, Ints, Vectors
from trainer.labelling.types import Suspect

MAX_SUSPECTS = 2000
"""Suspected photos of a session; its answers make a new training, which finds the next ones."""

_NEIGHBOURS = 3

_COMPARED = 5000
"""Photos of a label that a suspected one is compared with at most."""


def describe_suspects(
    found: Sequence[SuspectRow], examples: Sequence[Example], labels: Sequence[str], embeddings: Vectors
) -> list[Suspect]:
    """Return the suspects with the nearest photos of their given and their suggested label.

    Args:
        found: suspected labels, by rows of the examples, the most suspicious one first.
        examples: N photos with labels.
        labels: label names.
        embeddings: float32 or float16 [N,D].
    """
    targets = np.array([example.label for example in examples], np.int64)
    digests = [example.sha256 for example in examples]
    suspected = np.array([one.row for one in found], np.int64)
    rows_of = {
        label: np.setdiff1d(np.flatnonzero(targets == label), suspected)[:_COMPARED]
        for label in {label for one in found for label in (int(targets[one.row]), one.suggested)}
    }
    suspects: dict[str, Suspect] = {}
    for one in found[:MAX_SUSPECTS]:
        given = int(targets[one.row])
        suspects.setdefault(
            digests[one.row],
            Suspect(
                one.row,
                labels[given],
                tuple(
                    (labels[label], _find_nearest(one.row, rows_of[label], embeddings))
                    for label in (given, one.suggested)
                ),
            ),
        )
    return list(suspects.values())


def _find_nearest(row: int, rows: Ints, embeddings: Vectors) -> tuple[int, ...]:
    """Return the rows whose embeddings have the highest cosine with that of a row, nearest first."""
    vector, others = _normalize(embeddings[[row]]), _normalize(embeddings[rows])
    order = np.argsort(-(others @ vector[0]), kind="stable")[:_NEIGHBOURS]
    return tuple(rows[order].tolist())


def _normalize(embeddings: Vectors) -> Floats:
    found = np.asarray(embeddings, np.float32)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12), np.float32)

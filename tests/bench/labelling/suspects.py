"""Suspected label errors among flipped labels, compared with the package cleanlab on the same probabilities.

Cleanlab's licence is the AGPL: it is neither a dependency nor imported here. The Python of an environment
that has it computes its ranking from a file.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.bench.labelling.data import Pool
from trainer import heads
from trainer.evaluation.label_errors import find_label_errors, rank_labels
from trainer.heads import Floats, Ints

FLIPPED = 0.1
"""Share of the labels that are replaced by others at random."""

_CLEANLAB = """
import sys
import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
given = np.load(sys.argv[1])
targets, probabilities = given["targets"], np.clip(given["probabilities"].astype(np.float64), 1e-7, 1)
probabilities /= probabilities.sum(axis=1, keepdims=True)
found = {}
for method in ("self_confidence", "normalized_margin"):
    first = find_label_issues(targets, probabilities, return_indices_ranked_by=method)
    scores = get_label_quality_scores(targets, probabilities, method=method)
    rest = np.setdiff1d(np.arange(len(targets)), first)
    found[method] = np.concatenate([first, rest[np.argsort(scores[rest], kind="stable")]])
np.savez(sys.argv[2], **found)
"""


def flip_labels(pool: Pool, seed: int) -> Ints:
    """Return the labels with FLIPPED of them replaced by other ones at random."""
    random = np.random.default_rng(seed)
    count = len(pool.targets)
    rows = random.choice(count, round(FLIPPED * count), replace=False)
    flipped = pool.targets.copy()
    classes = len(pool.labels)
    flipped[rows] = (pool.targets[rows] + random.integers(1, classes, len(rows))) % classes
    return flipped


def rank_suspected(probabilities: Floats, given: Ints) -> Ints:
    """Return all rows as hubhead lists them: those that it suspects, then the others by self-confidence."""
    first = find_label_errors(probabilities, given).rows
    ranked = rank_labels(probabilities, given)
    return np.concatenate([first, ranked[~np.isin(ranked, first)]])


def measure_ranking(order: Ints, wrong: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[float, float]:
    """Return precision at N, the number of wrong labels, and the average precision."""
    hits = wrong[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(hits[: int(wrong.sum())].mean()), float(precision[hits].mean())


def compare(pool: Pool, seed: int, cleanlab: Path | None) -> Iterator[tuple[str, float, float]]:
    """Yield the name of a ranking, its precision at N and its average precision.

    Args:
        pool: pictures with true labels.
        seed: seed of the flipped labels and of the folds.
        cleanlab: Python of an environment that has cleanlab; None for none.
    """
    given = flip_labels(pool, seed)
    wrong = given != pool.targets
    _, selection = heads.fit(pool.embeddings, given, len(pool.labels), seed=seed)
    found = selection.probabilities
    yield ("hubhead train", *measure_ranking(rank_suspected(found, given), wrong))
    yield ("self-confidence of all", *measure_ranking(rank_labels(found, given), wrong))
    if cleanlab is None:
        return
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-") as directory:
        source, target, script = (Path(directory, name) for name in ("in.npz", "out.npz", "rank.py"))
        np.savez(source, targets=given, probabilities=found)
        script.write_text(_CLEANLAB)
        subprocess.run([str(cleanlab), str(script), str(source), str(target)], check=True)
        ranked = np.load(target)
        for name in ranked.files:
            yield (f"cleanlab, {name}", *measure_ranking(ranked[name], wrong))

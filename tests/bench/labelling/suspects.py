"""Suspected label errors among flipped labels, compared with the package cleanlab on the same probabilities.

Cleanlab's licence is the AGPL: it is neither a dependency nor imported here. The Python of an environment
that has it computes its ranking from a file.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench.labelling.data import Pool
from trainer import heads
from trainer.evaluation.label_errors import find_label_errors, rank_labels
from trainer.heads import Floats, Ints
from trainer.labelling.ranking import Bools

Score = tuple[str, float, float]
"""Name of a ranking, its precision at N, and its average precision."""

FLIPPED = 0.1
"""Share of the labels that are replaced by others at random."""

_CLEANLAB = """
import sys
import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

def rank(targets, probabilities, method):
    probabilities = np.clip(probabilities.astype(np.float64), 1e-7, 1)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    first = find_label_issues(targets, probabilities, return_indices_ranked_by=method, n_jobs=1)
    scores = get_label_quality_scores(targets, probabilities, method=method)
    rest = np.setdiff1d(np.arange(len(targets)), first)
    return np.concatenate([first, rest[np.argsort(scores[rest], kind="stable")]])

given = np.load(sys.argv[1])
cases = list(zip(given["targets"], given["probabilities"]))
methods = ("self_confidence", "normalized_margin")
np.savez(sys.argv[2], **{method: [rank(*case, method) for case in cases] for method in methods})
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


def measure_ranking(order: Ints, wrong: Bools) -> tuple[float, float]:
    """Return precision at N, the number of wrong labels, and the average precision."""
    hits = wrong[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(hits[: int(wrong.sum())].mean()), float(precision[hits].mean())


@dataclass(frozen=True)
class FlippedLabels:
    """Labels of a pool, some of them wrong, with the probabilities of a head that was fitted on them.

    Attributes:
        given: int64 [N].
        wrong: bool [N].
        probabilities: float32 [N,K], out of fold and calibrated.
    """

    given: Ints
    wrong: Bools
    probabilities: Floats

    @classmethod
    def draw(cls, pool: Pool, seed: int) -> FlippedLabels:
        """Flip labels of a pool, and fit a head; the seed determines both."""
        given = flip_labels(pool, seed)
        _, selection = heads.fit(pool.embeddings, given, len(pool.labels), seed=seed)
        return cls(given, given != pool.targets, selection.probabilities)


def compare(cases: Sequence[FlippedLabels], cleanlab: Path | None) -> list[list[Score]]:
    """Return name, precision at N and average precision of each ranking, for each case.

    Args:
        cases: labels of one pool.
        cleanlab: Python of an environment that has cleanlab; None for none.
    """
    others: Sequence[Mapping[str, Ints]] = (
        _rank_by_cleanlab(cases, cleanlab) if cleanlab else [{}] * len(cases)
    )
    found = []
    for case, other in zip(cases, others, strict=True):
        rankings = {
            "hubhead train": rank_suspected(case.probabilities, case.given),
            "self-confidence of all": rank_labels(case.probabilities, case.given),
            **{f"cleanlab, {name}": order for name, order in other.items()},
        }
        found.append([(name, *measure_ranking(order, case.wrong)) for name, order in rankings.items()])
    return found


def _rank_by_cleanlab(cases: Sequence[FlippedLabels], python: Path) -> list[dict[str, Ints]]:
    """Return the rankings of cleanlab by the name of their score, for each case."""
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-") as directory:
        source, target, script = (Path(directory, name) for name in ("in.npz", "out.npz", "rank.py"))
        probabilities = np.array([case.probabilities for case in cases])
        np.savez(source, targets=np.array([case.given for case in cases]), probabilities=probabilities)
        script.write_text(_CLEANLAB)
        subprocess.run([str(python), str(script), str(source), str(target)], check=True)
        ranked = dict(np.load(target))
    return [{name: orders[at] for name, orders in ranked.items()} for at in range(len(cases))]

"""Suspected label errors: photos whose label the out-of-fold probabilities contradict.

How many photos are suspected follows from confident learning (Northcutt, Jiang and Chuang 2021, "Confident
learning: estimating uncertainty in dataset labels"): a photo is counted under another label if its
probability of that label reaches the mean that photos with that label have. Which photos they are is decided
by self-confidence, the probability of the given label: with calibrated probabilities it ranks at least as
well as the margins and entropies of that paper (tests/bench/labelling/suspects.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.heads import Doubles, Floats, Ints


@dataclass(frozen=True)
class LabelErrors:
    """Photos whose labels may be wrong.

    Attributes:
        rows: int64 [n], their rows, the most suspicious photo first.
        suggested: int64 [n], the most probable other class of each.
        confidences: float32 [n], the probability of each photo's given label.
        contradicted: number of photos that confident learning counts under another label; `rows` has at
            most as many. Photos of labels that are hard to tell apart count too, so it exceeds the errors.
    """

    rows: Ints
    suggested: Ints
    confidences: Floats
    contradicted: int


def estimate_joint(probabilities: Floats, targets: Ints) -> Doubles:
    """Return the confident joint float64 [K,K]: photos by given label (rows) and estimated true label.

    Its rows sum to the numbers of photos of the given labels. Labels without a photo have rows of zeros.

    Args:
        probabilities: float32 [N,K], out of fold and calibrated.
        targets: int64 [N], given classes.
    """
    classes = probabilities.shape[1]
    counts = np.bincount(targets, minlength=classes)
    own = probabilities[np.arange(len(targets)), targets]
    thresholds = np.bincount(targets, own, minlength=classes) / np.maximum(counts, 1)
    thresholds[counts == 0] = np.inf
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    likely = np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), -1)
    joint = np.zeros((classes, classes))
    np.add.at(joint, (targets[likely >= 0], likely[likely >= 0]), 1.0)
    # A label none of whose photos is confident keeps its photos.
    empty = joint.sum(axis=1) == 0
    joint[empty, empty] = 1.0
    return joint * (counts / joint.sum(axis=1))[:, None]


def rank_labels(probabilities: Floats, targets: Ints) -> Ints:
    """Return all rows int64 [N], those whose given label is the least probable first."""
    return np.argsort(probabilities[np.arange(len(targets)), targets], kind="stable")


def find_label_errors(probabilities: Floats, targets: Ints) -> LabelErrors:
    """Return the photos whose labels may be wrong.

    Args:
        probabilities: float32 [N,K], out of fold and calibrated.
        targets: int64 [N], given classes.
    """
    joint = estimate_joint(probabilities, targets)
    contradicted = round(float(joint.sum() - np.trace(joint)))
    differs = probabilities.argmax(axis=1) != targets
    ranked = rank_labels(probabilities, targets)
    rows = ranked[differs[ranked]][:contradicted]
    others = probabilities[rows].copy()
    others[np.arange(len(rows)), targets[rows]] = -1.0
    own = probabilities[rows, targets[rows]]
    return LabelErrors(rows, others.argmax(axis=1), own.astype(np.float32), contradicted)

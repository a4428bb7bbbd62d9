"""Simulation of labelling: accuracy on held-out pictures by strategy and number of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.bench.labelling.data import Pool
from trainer import heads
from trainer.heads import Blocks, Floats, Ints, Selection
from trainer.labelling.ranking import Covering, Predictions, rank
from trainer.labelling.types import Strategy

STRATEGIES = (Strategy.RANDOM, Strategy.MIXED, Strategy.UNCERTAIN, Strategy.DIVERSE)

TEST_SHARE = 0.3

SELECT_EVERY = 5
"""Steps after which the settings of the head are selected again; in between they are kept."""

_RESAMPLES = 4000

Accuracies = NDArray[np.float64]


@dataclass(frozen=True)
class Scheme:
    """Steps of a simulation.

    Attributes:
        step: labels given between two fits of the head.
        steps: number of steps.
    """

    step: int
    steps: int

    @property
    def budgets(self) -> list[int]:
        """Numbers of labels after each step."""
        return [self.step * (number + 1) for number in range(self.steps)]


@dataclass(frozen=True)
class LabelledHead:
    """Head on the pictures labelled so far.

    Attributes:
        head: the head; None if one label was seen, or each once.
        columns: label of each of its classes, int64.
        selection: settings that were selected; None without a head.
        common: label that was seen most often.
    """

    head: heads.Head | None
    columns: Ints
    selection: Selection | None
    common: int

    @classmethod
    def fit(cls, embeddings: Floats, targets: Ints, kept: Selection | None, seed: int) -> LabelledHead:
        """Fit a head as a labelling session does, with kept settings if there are some."""
        columns, compact, counts = np.unique(targets, return_inverse=True, return_counts=True)
        common = int(columns[counts.argmax()])
        if len(columns) < 2 or counts.max() < 2:
            return cls(None, columns, None, common)
        if kept is None:
            head, kept = heads.fit(embeddings, compact, len(columns), seed=seed)
        else:
            head = heads.refit(Blocks.from_array(embeddings, compact), len(columns), kept)
        return cls(head, columns, kept, common)

    def predict(self, embeddings: Floats) -> Predictions | None:
        """Return the predictions for embeddings float32 [N,D]; None without a head."""
        if self.head is None:
            return None
        found = self.head.probabilities(embeddings)
        best = found.argmax(axis=1)
        ordered = np.partition(found, -2, axis=1)
        top, second = ordered[:, -1], ordered[:, -2]
        return Predictions(self.columns[best].astype(np.int32), top, top - second)

    def measure_accuracy(self, embeddings: Floats, targets: Ints) -> float:
        """Return the share of pictures whose label is predicted."""
        found = self.predict(embeddings)
        return float(np.mean(targets == (self.common if found is None else found.best)))


def simulate(pool: Pool, strategy: Strategy, scheme: Scheme, seed: int) -> list[float]:
    """Return the accuracy after each step, on the TEST_SHARE of the pictures that is held out.

    All strategies have the same held-out pictures for a seed.
    """
    order = np.random.default_rng(seed).permutation(len(pool.targets))
    tested, rows = np.split(order, [round(TEST_SHARE * len(order))])
    embeddings, targets = pool.embeddings[rows], pool.targets[rows]
    available = np.ones(len(rows), bool)
    labelled = np.zeros(0, np.int64)
    predictions: Predictions | None = None
    kept: Selection | None = None
    found = []
    for number in range(scheme.steps):
        uncertainty = None if predictions is None else 1 - predictions.top[labelled]
        chosen = rank(
            strategy,
            embeddings,
            predictions=predictions,
            available=available,
            labelled=Covering(embeddings[labelled], uncertainty) if len(labelled) else None,
            count=scheme.step,
            seed=1000 * seed + number,
        )
        labelled = np.concatenate([labelled, chosen])
        available[chosen] = False
        again = number % SELECT_EVERY == 0
        head = LabelledHead.fit(embeddings[labelled], targets[labelled], None if again else kept, seed)
        kept, predictions = head.selection, head.predict(embeddings)
        found.append(head.measure_accuracy(pool.embeddings[tested], pool.targets[tested]))
    return found


def interval_of_mean(values: Accuracies) -> tuple[float, float, float]:
    """Return the mean over the seeds and its 95 % interval, of values float64 [seeds]."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def labels_needed(curve: Accuracies, budgets: Sequence[int], wanted: float) -> float:
    """Return the labels from which a curve float64 [steps] stays at an accuracy, interpolated; or NaN."""
    below = np.flatnonzero(curve < wanted)
    if not len(below):
        return float(budgets[0])
    place = int(below[-1])
    if place + 1 == len(curve):
        return float("nan")
    low, high = float(curve[place]), float(curve[place + 1])
    return budgets[place] + (wanted - low) / (high - low) * (budgets[place + 1] - budgets[place])


def interval_of_labels(
    curves: Accuracies, random: Accuracies, budgets: Sequence[int], reference: int
) -> tuple[float, float, float]:
    """Return the labels needed for the accuracy of `reference` random labels, with a 95 % bootstrap interval.

    Args:
        curves: accuracies float64 [seeds,steps] of a strategy.
        random: accuracies of random labels, of the same seeds.
        budgets: number of labels after each step.
        reference: number of random labels.
    """
    at = list(budgets).index(reference)

    def compute(rows: Ints) -> float:
        return labels_needed(curves[rows].mean(axis=0), budgets, float(random[rows, at].mean()))

    generator = np.random.default_rng(0)
    count = len(curves)
    drawn = [compute(generator.integers(0, count, count)) for _ in range(_RESAMPLES)]
    low, high = np.nanquantile([np.inf if np.isnan(one) else one for one in drawn], [0.025, 0.975])
    return compute(np.arange(count)), float(low), float(high)

"""How good a head is on photos it has not seen: every figure with its N and interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainer.head import Floats, Ints, log_loss


@dataclass(frozen=True)
class Proportion:
    """A share of N photos with its 95 % interval.

    Attributes:
        value: right of n, 0 to 1.
        n: photos.
        low, high: Wilson score interval (Wilson 1927), which holds for small n and near 0 and 1.
    """

    value: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} (N={self.n}, 95 % interval {self.low:.1%} to {self.high:.1%})"


def proportion(right: int, n: int) -> Proportion:
    """`right` of `n` with the Wilson score interval at 95 %."""
    if n == 0:
        return Proportion(math.nan, 0, 0.0, 1.0)
    z = 1.959964
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Proportion(share, n, max(0.0, centre - reach), min(1.0, centre + reach))


@dataclass(frozen=True)
class Evaluation:
    """Figures on one set of photos.

    Attributes:
        accuracy: the best label is right.
        top_3: the right label is among the best three.
        log_loss: mean negative natural log-likelihood.
        recall: for each label, the share of its photos that are found.
    """

    accuracy: Proportion
    top_3: Proportion
    log_loss: float
    recall: dict[str, Proportion]

    def record(self) -> dict[str, Any]:
        """For hubhead.json, which as JSON knows no NaN: None for the recall of a label without photos."""
        record = asdict(self)
        for share in record["recall"].values():
            share["value"] = share["value"] if share["n"] else None
        return record


def evaluate(probabilities: Floats, targets: Ints, labels: Sequence[str]) -> Evaluation:
    """Hold probabilities float32 [N,K] against the true classes int64 [N]."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    right = order[:, 0] == targets
    among_three = (order[:, :3] == targets[:, None]).any(axis=1)
    return Evaluation(
        accuracy=proportion(int(right.sum()), len(targets)),
        top_3=proportion(int(among_three.sum()), len(targets)),
        log_loss=log_loss(probabilities, targets) if len(targets) else math.nan,
        recall={
            label: proportion(int(right[targets == index].sum()), int((targets == index).sum()))
            for index, label in enumerate(labels)
        },
    )

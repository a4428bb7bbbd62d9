"""Abstention by the best probability: the threshold below which the model gives no label.

`threshold_for_precision` bounds how often an answer is wrong among photos of the known labels
(selective classification: Chow 1970, "On optimum recognition error and reject tradeoff"; Geifman and
El-Yaniv 2017). It says nothing of photos of something else: `trainer.evaluation.novelty` rejects those.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from serving.errors import InputError
from trainer.evaluation.metrics import Proportion, proportion
from trainer.heads import Floats, Ints

CONFIDENCE = 0.95
"""Confidence of the one-sided lower bound that must reach the requested precision."""


@dataclass(frozen=True)
class Threshold:
    """The best probability below which the model abstains.

    Attributes:
        value: answer where the best probability is at least this; 0 answers always.
        wanted: the requested precision.
        bound: one-sided 95 % lower confidence bound (Clopper and Pearson 1934) of the precision.
        precision: precision of the answers on the held-out photos, with its two-sided interval.
        coverage: fraction of the held-out photos that are answered.
    """

    value: float
    wanted: float
    bound: float
    precision: Proportion
    coverage: Proportion

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f}: answers {self.coverage}, right {self.precision}"


def _unreached_error(precision: float, reached: Any, kind: str) -> InputError:
    place = int(reached.argmax())
    return InputError(
        f"No threshold reaches a precision of {precision:.1%} on {len(reached)} held-out photos: the "
        f"highest {kind} is {reached[place]:.1%}, where {place + 1} are answered.",
        remedy="Ask for a lower precision, or give more photos of each label.",
    )


def threshold_for_precision(
    probabilities: Floats, targets: Ints, precision: float, *, point_estimate: bool = False
) -> Threshold:
    """Return the lowest threshold at which the answers to held-out photos reach a precision.

    By default the lower confidence bound of the precision must reach it. New photos of the same kind
    then miss it in about one case of twenty (measured in tests/unit/trainer/test_abstention.py: taking
    the lowest of all thresholds that pass costs nothing noticeable, as they pass or fail together).
    With `point_estimate` the observed precision must reach it; new photos then miss it in about every
    second case.

    The value lies midway between the last probability answered and the next one, so that differences
    in the last bits of float arithmetic do not change a decision.

    Args:
        probabilities: float32 [N,K], calibrated, of photos that the head has not seen (from
            heads.Selection or trainer.evaluation.cross_validation.CrossValidation).
        targets: int64 [N], true classes.
        precision: requested precision, above 0, at most 1.
        point_estimate: compare the observed precision instead of its lower bound.

    Raises:
        InputError: the precision is out of range, there are no photos, or no threshold reaches it.
    """
    from scipy.special import betaincinv

    if not 0 < precision <= 1:
        raise InputError(
            f"The precision {precision:g} is out of range.", remedy="Give one above 0, and at most 1."
        )
    count = len(targets)
    if not count:
        raise InputError(
            "A threshold cannot be chosen without held-out photos.",
            remedy="Give photos the head has not seen.",
        )
    # Entry i of the arrays below describes the threshold that answers the i + 1 most confident photos.
    best = probabilities.max(axis=1)
    order = np.argsort(-best, kind="stable")
    confidence = best[order]
    right = np.cumsum(probabilities.argmax(axis=1)[order] == targets[order])
    answered = np.arange(1, count + 1)
    bounds = np.where(right > 0, betaincinv(np.maximum(right, 1), answered - right + 1, 1 - CONFIDENCE), 0.0)
    reached = right / answered if point_estimate else bounds
    # Equal probabilities are answered together: only the last of them is a possible threshold.
    last = np.append(confidence[1:] < confidence[:-1], True)
    passing = np.flatnonzero((reached >= precision) & last)
    if not len(passing):
        kind = "precision" if point_estimate else "95 % lower bound of the precision"
        raise _unreached_error(precision, np.where(last, reached, 0.0), kind)
    place = int(passing[-1])
    return Threshold(
        value=_midpoint_below(confidence, place),
        wanted=precision,
        bound=float(bounds[place]),
        precision=proportion(int(right[place]), place + 1),
        coverage=proportion(place + 1, count),
    )


def _midpoint_below(descending: Floats, place: int) -> float:
    """Return a float32 between `descending[place]` and the next value; 0 where there is no next value."""
    if place + 1 == len(descending):
        return 0.0
    here, next_one = descending[place], descending[place + 1]
    middle = np.float32((float(here) + float(next_one)) / 2)
    # Between neighbouring floats the midpoint may round to the lower one.
    return float(middle if middle > next_one else here)

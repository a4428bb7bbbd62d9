"""Paired comparison of two models on the same photos.

Because both models are evaluated on the same photos, only those that one gets right and the other does
not determine the difference. Its interval is far narrower than the two separate intervals suggest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import InputError
from trainer.evaluation.metrics import Estimate, Z, bootstrap_mean_interval, nan_to_none, start_bins
from trainer.heads import Floats, Ints, log_losses

_DRAWS = 200
_SEED = 0


@dataclass(frozen=True)
class PairedComparison:
    """A model compared with another one, such as the live version, on the same N photos.

    Attributes:
        n: number of photos.
        gained: photos that this model gets right and the other does not.
        lost: photos that the other model gets right and this one does not.
        accuracy: difference of the accuracies, positive where this model is better; interval of
            Agresti and Min 2005 for matched pairs.
        log_loss: difference of the log-losses, negative where this model is better; paired bootstrap.
        p_value: McNemar's exact test: probability of so uneven a gain and loss if neither model is more
            accurate.
        log_loss_deviation: standard deviation of the photos' differences of log-loss.
        calibration: difference of the calibration errors, negative where this model is better.
        calibration_deviation: bootstrap standard error of that difference, times the square root of n.
    """

    n: int
    gained: int
    lost: int
    accuracy: Estimate
    log_loss: Estimate
    p_value: float
    log_loss_deviation: float
    calibration: float
    calibration_deviation: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dict(nan_to_none(asdict(self)))

    def __str__(self) -> str:
        accuracy, loss = self.accuracy, self.log_loss
        return (
            f"accuracy {accuracy.value:+z.1%} (95 % interval {accuracy.low:+z.1%} to {accuracy.high:+z.1%}), "
            f"log-loss {loss.value:+z.3f} ({loss.low:+z.3f} to {loss.high:+z.3f}), N={self.n}, "
            f"{self.gained} gained, {self.lost} lost"
        )


def compare(probabilities: Floats, other: Floats, targets: Ints) -> PairedComparison:
    """Compare the probabilities of two models for the same photos and labels.

    Where the models' labels differ, pass both through `align_columns`, and photos of labels that both
    know: a label that a model does not know has probability 0 there, which costs a log-loss of 34.5.

    Args:
        probabilities: float32 [N,K] of this model.
        other: float32 [N,K] of the other model.
        targets: int64 [N], true classes.

    Raises:
        InputError: there are no photos.
    """
    from scipy.special import bdtr

    count = len(targets)
    if not count:
        raise InputError(
            "Two models cannot be compared without photos.", remedy="Keep some photos for the test."
        )
    right, other_right = (rows.argmax(axis=1) == targets for rows in (probabilities, other))
    gained, lost = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    difference = log_losses(probabilities, targets) - log_losses(other, targets)
    discordant = gained + lost
    calibration, deviation = _compare_calibration(
        [(probabilities.max(axis=1), right), (other.max(axis=1), other_right)]
    )
    return PairedComparison(
        n=count,
        gained=gained,
        lost=lost,
        accuracy=estimate_difference(gained, lost, count),
        log_loss=Estimate(float(difference.mean()), *bootstrap_mean_interval(difference)),
        p_value=min(1.0, 2 * float(bdtr(min(gained, lost), discordant, 0.5))) if discordant else 1.0,
        log_loss_deviation=float(difference.std(ddof=1)) if count > 1 else 0.0,
        calibration=calibration,
        calibration_deviation=deviation,
    )


def _compare_calibration(models: Sequence[tuple[Floats, NDArray[np.bool_]]]) -> tuple[float, float]:
    """Return the difference of two models' calibration errors, and its deviation as in PairedComparison.

    The photos are drawn by a Poisson bootstrap, the same ones for both models, in the bins of all photos.

    Args:
        models: the best probabilities float32 [N] and whether the best label is right, bool [N], of each.
    """
    count = len(models[0][1])
    starts = start_bins(count)
    orders = [np.argsort(confidence, kind="stable") for confidence, _ in models]
    excess = [
        right[order].astype(np.float64) - confidence[order]
        for order, (confidence, right) in zip(orders, models, strict=True)
    ]

    def difference(weights: NDArray[np.float64]) -> float:
        new, other = (
            np.abs(np.add.reduceat(weights[order] * part, starts)).sum()
            for order, part in zip(orders, excess, strict=True)
        )
        return float((new - other) / max(weights.sum(), 1.0))

    random = np.random.default_rng(_SEED)
    drawn = [difference(random.poisson(1.0, count).astype(np.float64)) for _ in range(_DRAWS)]
    return difference(np.ones(count)), float(np.std(drawn, ddof=1)) * math.sqrt(count)


def estimate_difference(gained: int, lost: int, n: int) -> Estimate:
    """Return the difference of two proportions of the same n photos, with Agresti and Min's interval.

    Args:
        gained: photos that count for the first proportion alone.
        lost: photos that count for the second proportion alone.
        n: number of all photos, 1 or more.
    """
    # Agresti and Min 2005 add half a photo to each of the four cells of the table.
    centre = (gained - lost) / (n + 2)
    reach = Z * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    return Estimate((gained - lost) / n, max(-1.0, centre - reach), min(1.0, centre + reach))


def align_columns(probabilities: Floats, own: Sequence[str], labels: Sequence[str]) -> Floats:
    """Return probabilities float32 [N,len(labels)] of a model whose columns are `own`, in another order.

    Labels that the model does not know have probability 0.
    """
    column = {label: index for index, label in enumerate(own)}
    # The last column, which is appended, stands for unknown labels.
    return np.pad(probabilities, ((0, 0), (0, 1)))[:, [column.get(label, -1) for label in labels]]

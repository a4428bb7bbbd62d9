"""Two models on the same photos.

Because both saw the same photos, the difference is told by those that one gets right and the other
does not: its interval is far narrower than what the intervals of both suggest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from serving.errors import InputError
from trainer.evaluation.metrics import Estimate, Z, finite, mean_interval
from trainer.heads import Floats, Ints

NOTHING = 1e-3
"""Of log-loss: less than this is no difference, however surely it is one. The same head asked in batches of
other sizes differs by some 1e-7."""


@dataclass(frozen=True)
class Comparison:
    """A model held against another one, such as the live version, on the same N photos.

    Attributes:
        n: photos.
        gained: photos that this one gets right and the other does not.
        lost: the other way round.
        accuracy: difference of the accuracies, positive where this one is better; interval of
            Agresti and Min 2005 for matched pairs.
        log_loss: difference of the log-losses, negative where this one is better; paired bootstrap.
        p_value: McNemar's exact test: how likely so uneven a gain and loss is if neither is more accurate.
    """

    n: int
    gained: int
    lost: int
    accuracy: Estimate
    log_loss: Estimate
    p_value: float

    @property
    def better(self) -> bool:
        """Surely more accurate, or surely with a lower log-loss and not surely less accurate."""
        return self.accuracy.low > 0 or (self.log_loss.high < -NOTHING and self.accuracy.high >= 0)

    @property
    def worse(self) -> bool:
        """Surely less accurate, or surely with a higher log-loss and not surely more accurate."""
        return self.accuracy.high < 0 or (self.log_loss.low > NOTHING and self.accuracy.low <= 0)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dict(finite(asdict(self)))

    def __str__(self) -> str:
        accuracy, loss = self.accuracy, self.log_loss
        return (
            f"accuracy {accuracy.value:+z.1%} (95 % interval {accuracy.low:+z.1%} to {accuracy.high:+z.1%}), "
            f"log-loss {loss.value:+z.3f} ({loss.low:+z.3f} to {loss.high:+z.3f}), N={self.n}, "
            f"{self.gained} gained, {self.lost} lost"
        )


def compare(probabilities: Floats, other: Floats, targets: Ints) -> Comparison:
    """Hold probabilities float32 [N,K] against those of another model for the same photos and labels.

    Where the models' labels differ, give both through `aligned`, and photos of labels that both
    know: a label that a model does not know has probability 0 there, which costs a log-loss of 34.5.

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
    picked = np.arange(count), targets
    losses, other_losses = (
        -np.log(np.maximum(rows[picked], 1e-15)).astype(np.float64) for rows in (probabilities, other)
    )
    difference = losses - other_losses
    discordant = gained + lost
    return Comparison(
        n=count,
        gained=gained,
        lost=lost,
        accuracy=matched_difference(gained, lost, count),
        log_loss=Estimate(float(difference.mean()), *mean_interval(difference)),
        p_value=min(1.0, 2 * float(bdtr(min(gained, lost), discordant, 0.5))) if discordant else 1.0,
    )


def matched_difference(gained: int, lost: int, n: int) -> Estimate:
    """The difference of two shares of the same n photos, with the interval of Agresti and Min 2005.

    Args:
        gained: photos that count for the first alone.
        lost: photos that count for the second alone.
        n: all photos, 1 or more.
    """
    # Half a photo is added to each of the four cells.
    centre = (gained - lost) / (n + 2)
    reach = Z * math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    return Estimate((gained - lost) / n, max(-1.0, centre - reach), min(1.0, centre + reach))


def aligned(probabilities: Floats, own: Sequence[str], labels: Sequence[str]) -> Floats:
    """Probabilities float32 [N,len(labels)] of a model whose columns are `own`; 0 for labels not its own."""
    column = {label: index for index, label in enumerate(own)}
    result = np.zeros((len(probabilities), len(labels)), np.float32)
    for index, label in enumerate(labels):
        if label in column:
            result[:, index] = probabilities[:, column[label]]
    return result

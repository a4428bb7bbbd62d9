"""Non-inferiority tests: whether a model is worse than another one by more than a tolerance.

A comparison on N photos has three outcomes, not two: the model is worse by more than the tolerance, it
is not, or N is too small to tell. Each test gives one statistic z of the null hypothesis "the fall equals
the tolerance": large values say that the fall is larger, small ones that it is smaller, both with the
confidence of a one-sided normal quantile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

ALPHA = 0.05
"""Probability of calling a model worse whose fall equals the tolerance, for a test by itself."""

POWER = 0.8
"""Probability with which the stated number of photos would settle the question if nothing has changed."""

_NORMAL = NormalDist()


class Outcome(StrEnum):
    """Answer of a test."""

    WORSE = "worse by more than the tolerance"
    NOT_WORSE = "not worse by more than the tolerance"
    UNDECIDED = "too few photos to tell"


@dataclass(frozen=True)
class NoninferiorityTest:
    """A test of one figure.

    Attributes:
        fall: how much worse the figure is, in its own unit; negative where it is better.
        tolerance: how much worse it may be.
        z: statistic of the null hypothesis that the true fall equals the tolerance.
        n: number of photos, the smaller one where there are two sets.
        deviation: standard deviation of one photo's contribution to the fall.
    """

    fall: float
    tolerance: float
    z: float
    n: int
    deviation: float

    @property
    def p_value(self) -> float:
        """Probability of so large a fall if the true one equals the tolerance."""
        return _NORMAL.cdf(-self.z)

    def outcome(self, alpha: float = ALPHA) -> Outcome:
        """Decide at a level; `alpha` bounds the error on either side."""
        if self.p_value < alpha:
            return Outcome.WORSE
        return Outcome.NOT_WORSE if _NORMAL.cdf(self.z) < ALPHA else Outcome.UNDECIDED

    @property
    def photos_needed(self) -> int | None:
        """Number of photos that would settle it if nothing has changed; None if no number does (tolerance 0).

        The usual sample size of a non-inferiority test: ((z_alpha + z_power) * deviation / tolerance)^2.
        """
        if self.tolerance <= 0:
            return None
        reach = _NORMAL.inv_cdf(1 - ALPHA) + _NORMAL.inv_cdf(POWER)
        return math.ceil((reach * self.deviation / self.tolerance) ** 2)


def paired_proportions(gained: int, lost: int, n: int, tolerance: float) -> NoninferiorityTest:
    """Test the fall of a proportion on the same n photos.

    The score test of Tango (1998), "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design", Statistics in Medicine 17, which keeps its level on few
    photos; with tolerance 0 it is McNemar's.

    Args:
        gained: photos that only the new model gets right.
        lost: photos that only the other model gets right.
        n: all photos, 1 or more.
        tolerance: allowed fall, 0 to below 1.
    """
    a = 2 * n
    b = -lost - gained + (2 * n - lost + gained) * tolerance
    c = -gained * tolerance * (1 - tolerance)
    share_gained = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)  # its maximum likelihood under the null
    variance = n * (2 * share_gained + tolerance * (1 - tolerance))
    excess = lost - gained - n * tolerance
    z = excess / math.sqrt(variance) if variance > 0 else 0.0
    # Half a photo is added to each kind of change, as none seen among few photos does not mean none.
    deviation = math.sqrt((gained + lost + 1) / (n + 2))
    return NoninferiorityTest((lost - gained) / n, tolerance, z, n, deviation)


def separate_proportions(
    new: float, n_new: int, live: float, n_live: int, tolerance: float
) -> NoninferiorityTest:
    """Test the fall of a proportion between two sets of photos, such as each version's own test photos.

    Agresti and Caffo (2000): a success and a failure are added to each set.

    Args:
        new: proportion of the new model.
        n_new: its number of photos, 1 or more.
        live: proportion of the other model.
        n_live: its number of photos, 1 or more.
        tolerance: allowed fall.
    """
    shares = [(share * n + 1) / (n + 2) for share, n in ((new, n_new), (live, n_live))]
    variances = [share * (1 - share) / (n + 2) for share, n in zip(shares, (n_new, n_live), strict=True)]
    z = (shares[1] - shares[0] - tolerance) / math.sqrt(sum(variances))
    n = min(n_new, n_live)
    return NoninferiorityTest(live - new, tolerance, z, n, math.sqrt(sum(variances) * n))


def paired_rise(rise: float, deviation: float, n: int, tolerance: float) -> NoninferiorityTest:
    """Test the rise of a figure on the same photos, such as the mean log-loss or the calibration error.

    Args:
        rise: the figure of the new model less that of the other one.
        deviation: standard error of the rise times the square root of n.
        n: number of photos; a single one decides nothing.
        tolerance: allowed rise.
    """
    if n < 2 or rise == tolerance:
        return NoninferiorityTest(rise, tolerance, 0.0, n, deviation)
    if deviation == 0.0:
        return NoninferiorityTest(rise, tolerance, math.copysign(math.inf, rise - tolerance), n, 0.0)
    t = (rise - tolerance) / (deviation / math.sqrt(n))
    # Student's t has heavier tails than a normal variable: Wallace (1959) gives the normal equivalent.
    z = math.copysign(math.sqrt((n - 1) * math.log1p(t * t / (n - 1))) * (1 - 1 / (4 * n)), t)
    return NoninferiorityTest(rise, tolerance, z, n, deviation)


def control_family(tests: Mapping[str, NoninferiorityTest], alpha: float = ALPHA) -> dict[str, Outcome]:
    """Decide several tests so that the probability of one wrong WORSE among all is at most alpha.

    Holm (1979), "A simple sequentially rejective multiple test procedure": the smallest p-value is
    compared with alpha/m, the next with alpha/(m-1), and so on up to the first that is not below.
    """
    found = {}
    open_level = True
    for rank, (name, test) in enumerate(sorted(tests.items(), key=lambda item: item[1].p_value)):
        level = alpha / (len(tests) - rank) if open_level else 0.0
        found[name] = test.outcome(level)
        open_level = open_level and found[name] is Outcome.WORSE
    return {name: found[name] for name in tests}

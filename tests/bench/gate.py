"""Share of candidates that the gate blocks, by simulation: `python -m tests.bench.gate`.

Two versions with calibrated probabilities of 10 labels are drawn on the same photos and judged by
trainer.gate.thresholds.judge with the default limits, all checks together:

* no real change: both versions have the same accuracy, so every rejection is a false one (at most 5 %);
* a real fall of 5 percentage points, with the default tolerance of 2 (detected in at least 90 % of the
  cases on 1,000 photos, as long as the versions disagree on at most 10 % of them).

A version observes the label k of a photo as the vector s e_k + noise, with normal noise of variance 1, and
returns the posterior probabilities softmax(s x), which are calibrated exactly. s determines the accuracy; the
correlation of the noise of both versions determines their discordance, the share of photos that only one of
them gets right.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from tests.bench import results
from trainer.evaluation.metrics import evaluate, proportion
from trainer.evaluation.paired_comparison import compare, estimate_difference
from trainer.evaluation.version_changes import LabelChange, LiveComparison
from trainer.gate.thresholds import RegressionLimits, judge
from trainer.heads import Floats, Ints, softmax

LABELS = tuple(f"label {number}" for number in range(10))
ACCURACY = 0.78
_PHOTOS = 20_000
"""Photos on which a scenario's signal and correlation are adjusted."""


@dataclass(frozen=True)
class Scenario:
    """A pair of versions.

    Attributes:
        fall: accuracy of the live version less that of the candidate.
        discordance: share of photos that only one version gets right.
    """

    fall: float
    discordance: float


def bisect(measure: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Return where a rising function reaches the target."""
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(middle) < target else (low, middle)
    return high


def observe(noise: Floats, targets: Ints, signal: float) -> Floats:
    """Return the posterior probabilities float32 [N,K] of photos with this noise [N,K]."""
    observed = noise.copy()
    observed[np.arange(len(targets)), targets] += signal
    return softmax(signal * observed)


def draw(random: np.random.Generator, count: int, correlation: float) -> tuple[Floats, Floats, Ints]:
    """Return the noise of the candidate and of the live version, float32 [N,K], and the labels."""
    shared, own, other = random.standard_normal((3, count, len(LABELS)), np.float32)
    weights = np.float32(np.sqrt(correlation)), np.float32(np.sqrt(1 - correlation))
    targets = random.integers(0, len(LABELS), count)
    return weights[0] * shared + weights[1] * own, weights[0] * shared + weights[1] * other, targets


@cache
def find_signal(accuracy: float) -> float:
    """Return the signal at which a version has this accuracy."""
    noise, _, targets = draw(np.random.default_rng(1), _PHOTOS, 0.0)
    return bisect(
        lambda signal: float((observe(noise, targets, signal).argmax(axis=1) == targets).mean()),
        accuracy,
        0.0,
        10.0,
    )


@cache
def find_correlation(scenario: Scenario) -> float:
    """Return the correlation of the noise at which the versions have the scenario's discordance."""
    signals = find_signal(ACCURACY - scenario.fall), find_signal(ACCURACY)

    def agreement(correlation: float) -> float:
        *noises, targets = draw(np.random.default_rng(2), _PHOTOS, correlation)
        right = [
            observe(noise, targets, signal).argmax(axis=1) == targets
            for noise, signal in zip(noises, signals, strict=True)
        ]
        return float((right[0] == right[1]).mean())

    return bisect(agreement, 1 - scenario.discordance, 0.0, 1.0)


@cache
def make_template() -> LiveComparison:
    """Return a comparison whose evaluations, which `judge` only shows, are those of one photo."""
    evaluation = evaluate(np.full((1, len(LABELS)), 0.1, np.float32), np.zeros(1, np.int64), LABELS)
    difference = compare(*np.full((2, 1, len(LABELS)), 0.1, np.float32), np.zeros(1, np.int64))
    return LiveComparison("live", 1, True, (), (), {}, True, evaluation, evaluation, difference, (), (), ())


def draw_comparison(random: np.random.Generator, scenario: Scenario, count: int) -> LiveComparison:
    """Return the comparison of a pair of versions on random photos."""
    *noises, targets = draw(random, count, find_correlation(scenario))
    new, live = (
        observe(noise, targets, find_signal(accuracy))
        for noise, accuracy in zip(noises, (ACCURACY - scenario.fall, ACCURACY), strict=True)
    )
    right, was_right = (rows.argmax(axis=1) == targets for rows in (new, live))
    changes = []
    for index, label in enumerate(LABELS):
        own = targets == index
        if not (n := int(own.sum())):
            continue
        gained, lost = int((own & right & ~was_right).sum()), int((own & was_right & ~right).sum())
        recalls = (proportion(int((own & rows).sum()), n) for rows in (right, was_right))
        changes.append(LabelChange(label, *recalls, estimate_difference(gained, lost, n), gained, lost))
    return replace(make_template(), difference=compare(new, live, targets), labels=tuple(changes))


def count_blocked(scenario: Scenario, photos: int, candidates: int, seed: int = 0) -> Counter[str]:
    """Return how many candidates are blocked, as "any", and by each kind of check."""
    random = np.random.default_rng([seed, photos])
    blocked: Counter[str] = Counter()
    for _ in range(candidates):
        checks = judge(draw_comparison(random, scenario, photos), RegressionLimits())
        failed = {check.name.partition(" of ")[0] for check in checks if check.passed is False}
        blocked.update(failed)
        blocked["any"] += bool(failed)
    return blocked


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gate", description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=1000, help="candidates per row (default 1000)")
    results.add_output_option(parser)
    options = parser.parse_args()
    print(f"{'real fall':>9} {'discordance':>11} {'photos':>6} {'blocked':>8}  by check")
    rows = [(0.0, discordance, n) for discordance in (0.05, 0.1, 0.2) for n in (45, 200, 1000)]
    rows += [(0.05, discordance, 1000) for discordance in (0.06, 0.1, 0.2)]
    for fall, discordance, photos in rows:
        found = count_blocked(Scenario(fall, discordance), photos, options.candidates)
        shares = ", ".join(
            f"{name} {count / options.candidates:.1%}" for name, count in found.items() if name != "any"
        )
        print(
            f"{fall:>9.0%} {discordance:>11.0%} {photos:>6,} "
            f"{found['any'] / options.candidates:>8.1%}  {shares}"
        )
        row = {"real fall": f"{fall:.0%}", "discordance": f"{discordance:.0%}", "photos": photos}
        blocked = {"blocked": f"{found['any'] / options.candidates:.1%}", "by check": shares}
        results.add_row(f"Candidates blocked, of {options.candidates:,} simulated ones", row | blocked)
    results.write(options.output, "gate")


if __name__ == "__main__":
    main()

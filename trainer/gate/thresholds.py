"""Judgement of a candidate's figures against those of the live version. Pure functions.

A figure fails only where it is worse by more than its tolerance with statistical confidence. The accuracy
is tested by itself. Log-loss, calibration error and the recalls are one family of tests (Holm), so that a
model with many labels is not rejected by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.bundle import BundleMetadata
from serving.registry.verdict import Check
from serving.storage.names import describe_respelled, normalize, respell
from trainer.evaluation.noninferiority import (
    ALPHA,
    NoninferiorityTest,
    Outcome,
    control_family,
    paired_proportions,
    paired_rise,
    separate_proportions,
)

if TYPE_CHECKING:
    from trainer.evaluation.version_changes import LiveComparison


@dataclass(frozen=True)
class RegressionLimits:
    """Largest regression from the live version that a candidate may have.

    Attributes:
        accuracy: decrease of the accuracy; 0.02 is two percentage points.
        label: decrease of the recall of a label.
        label_photos: number of photos from which the recall of a label is checked; with fewer it is
            reported only.
        log_loss: increase of the log-loss, in nats.
        calibration: increase of the expected calibration error.
        latency: ratio of the times per photo.
        size: ratio of the sizes on disk.
        photos: number of photos that both versions have to be compared on.
    """

    accuracy: float = 0.02
    label: float = 0.1
    label_photos: int = 20
    log_loss: float = 0.05
    calibration: float = 0.05
    latency: float = 1.5
    size: float = 1.5
    photos: int = 0


@dataclass(frozen=True)
class ServerLimits:
    """Largest differences of a server's results from those of its bundle.

    The defaults are two to four times the differences that bfloat16 makes to the default backbone
    (k8s/README.md). In float32 those of probabilities are below serving.runtime.session.PARITY_TOLERANCE.

    Attributes:
        label: smallest fraction of the photos with the same label.
        probability: largest difference of a probability.
        embedding: largest distance of two embeddings of a photo, as a fraction of the embedding's length.
    """

    label: float = 0.95
    probability: float = 0.1
    embedding: float = 0.15


@dataclass(frozen=True)
class _Figure:
    """One figure of both versions.

    Attributes:
        name: name of the check.
        new: figure of the candidate.
        limit: limit of that figure.
        detail: both figures and their photos, in words.
        test: test of the regression.
        min_photos: number of photos below which the figure is reported only.
    """

    name: str
    new: float
    limit: float
    detail: str
    test: NoninferiorityTest
    min_photos: int = 0

    def to_check(self, outcome: Outcome | None) -> Check:
        """Return the check with the outcome of the test; None if there are too few photos for one."""
        passed = {Outcome.WORSE: False, Outcome.NOT_WORSE: True}.get(outcome) if outcome else None
        return Check(self.name, passed, self.new, self.limit, f"{self.detail}: {self._explain(outcome)}")

    def _explain(self, outcome: Outcome | None) -> str:
        needed = self.test.photos_needed
        if outcome is None:
            return "too few for a check"
        if outcome is not Outcome.UNDECIDED:
            return outcome.value
        if needed is None:
            return "no significant decrease"
        if needed <= self.test.n:
            return "too close to the tolerance to tell"
        return f"too few to tell; about {float(f'{needed:.3g}'):,.0f} would be needed"


def judge(comparison: LiveComparison, limits: RegressionLimits) -> list[Check]:
    """Judge a candidate by a comparison with the live version on the same photos."""
    difference, new, live = comparison.difference, comparison.new, comparison.live
    n = difference.n
    accuracy = _make_proportion(
        "accuracy",
        (new.accuracy.value, live.accuracy.value),
        limits.accuracy,
        f"on the same {n} photos ({difference.gained} gained, {difference.lost} lost)",
        paired_proportions(difference.gained, difference.lost, n, limits.accuracy),
    )
    error = new.calibration.error if new.calibration else 0.0
    log_loss, calibration = difference.log_loss.value, difference.calibration
    family = [
        _Figure(
            name,
            value,
            value - rise + tolerance,
            f"{value:.4g} against {value - rise:.4g} on the same {n} photos",
            paired_rise(rise, deviation, n, tolerance),
        )
        for name, value, rise, deviation, tolerance in (
            ("log-loss", new.log_loss, log_loss, difference.log_loss_deviation, limits.log_loss),
            ("calibration error", error, calibration, difference.calibration_deviation, limits.calibration),
        )
    ]
    family += [
        _make_proportion(
            f"recall of {change.label}",
            (change.new.value, change.live.value),
            limits.label,
            f"at N={change.new.n} ({change.gained} gained, {change.lost} lost)",
            paired_proportions(change.gained, change.lost, change.new.n, limits.label),
            limits.label_photos,
        )
        for change in comparison.labels
    ]
    left_out = ", ".join(f"{count} {reason}" for reason, count in comparison.left_out.items())
    detail = f"left out: {left_out}" if left_out else ""
    if not comparison.trained_on_known:
        detail += "; the training photos of one version are unknown, whose figures may be too good"
    return [_check_count(n, detail.removeprefix("; "), limits), *_decide(accuracy, family)]


def judge_recorded(
    new: BundleMetadata, live: BundleMetadata, limits: RegressionLimits, why: str
) -> list[Check]:
    """Judge a candidate by the figures recorded in both bundles, each on its own test photos.

    Log-loss and calibration error are shown only: their variation between photos is not recorded.

    Args:
        new: metadata of the candidate.
        live: metadata of the live version.
        limits: largest allowed regression.
        why: why there are no common photos.
    """
    tests = [metadata.metrics.get("test") or {} for metadata in (new, live)]
    count = _check_count(0, f"{why} Recorded figures are compared, each on its own test photos", limits)
    accuracies = [found.get("accuracy") for found in tests]
    accuracy = _make_recorded("accuracy", accuracies, limits.accuracy)
    if accuracy is None:
        return [count, Check("accuracy", None, detail="not judged: not recorded in both bundles")]
    shown = [
        Check(name, None, values[0], None, f"{values[0]:.4g} against {values[1]:.4g}: shown only")
        for name, values in (
            ("log-loss", [found.get("log_loss") for found in tests]),
            ("calibration error", [(found.get("calibration") or {}).get("error") for found in tests]),
        )
        if None not in values
    ]
    recalls = [
        {normalize(label): figure for label, figure in (found.get("recall") or {}).items()} for found in tests
    ]
    family = [
        _make_recorded(
            f"recall of {label}",
            [recall.get(normalize(label)) for recall in recalls],
            limits.label,
            limits.label_photos,
        )
        for label in new.labels
    ]
    return [count, *shown, *_decide(accuracy, [figure for figure in family if figure])]


def list_label_changes(new: Sequence[str], live: Sequence[str]) -> list[Check]:
    """Report added and removed class labels, and those whose Unicode form changed; informative only."""
    same = set(respell(live, new))
    changes = (
        ("labels added", [label for label in new if label not in same]),
        ("labels removed", [label for label in respell(live, new) if label not in new]),
    )
    checks = [Check(name, None, len(found), None, ", ".join(found) or "none") for name, found in changes]
    if respelled := describe_respelled(new, live):
        checks.append(Check("labels respelled", None, detail=respelled))
    return checks


def check_ratio(name: str, new: float, live: float, limit: float, unit: str) -> Check:
    """Check that a figure is at most `limit` times that of the live version."""
    found = new / live if live else float("inf")
    detail = f"{new:.4g} {unit} vs. {live:.4g}"
    return Check(name, found <= limit + 1e-9, round(found, 4), limit, detail)


def _check_count(n: int, detail: str, limits: RegressionLimits) -> Check:
    """Check the number of compared photos; informative if no number is required."""
    required = limits.photos or None
    return Check("photos compared", n >= limits.photos if required else None, n, required, detail)


def _make_proportion(
    name: str,
    values: tuple[float, float],
    tolerance: float,
    where: str,
    test: NoninferiorityTest,
    min_photos: int = 0,
) -> _Figure:
    """Return the figure of a proportion of the candidate and of the live version."""
    new, live = values
    detail = f"{new:.1%} against {live:.1%} {where}"
    return _Figure(name, new, max(0.0, live - tolerance), detail, test, min_photos)


def _make_recorded(
    name: str, recorded: Sequence[Mapping[str, Any] | None], tolerance: float, min_photos: int = 0
) -> _Figure | None:
    """Return the figure of a recorded proportion; None if a version does not record it."""
    new, live = recorded
    if not new or not live or new.get("value") is None or live.get("value") is None:
        return None
    return _make_proportion(
        name,
        (new["value"], live["value"]),
        tolerance,
        f"on their own test photos ({new['n']} and {live['n']})",
        separate_proportions(new["value"], new["n"], live["value"], live["n"], tolerance),
        min_photos,
    )


def _decide(accuracy: _Figure, family: Sequence[_Figure]) -> list[Check]:
    """Decide the tests: the accuracy at the full level, all others together."""
    outcomes = control_family(
        {figure.name: figure.test for figure in family if figure.test.n >= figure.min_photos}
    )
    return [
        accuracy.to_check(accuracy.test.outcome(ALPHA)),
        *(figure.to_check(outcomes.get(figure.name)) for figure in family),
    ]

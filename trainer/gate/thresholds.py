"""Comparison of a candidate's figures with those of the live version. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.bundle import BundleMetadata
from serving.registry.verdict import Check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class RegressionLimits:
    """Largest regression from the live version that a candidate may have.

    Attributes:
        accuracy: decrease of the accuracy; 0.02 is two percentage points.
        label: decrease of the recall of a label.
        label_photos: number of test photos, in both versions, from which the recall of a label is checked;
            with fewer it is reported only, since the recall of a few photos says little.
        log_loss: increase of the log-loss, in nats.
        calibration: increase of the expected calibration error.
        latency: ratio of the times per photo.
        size: ratio of the sizes on disk.
    """

    accuracy: float = 0.02
    label: float = 0.1
    label_photos: int = 20
    log_loss: float = 0.05
    calibration: float = 0.05
    latency: float = 1.5
    size: float = 1.5


_EPSILON = 1e-9
"""Slack for rounding, so that a figure exactly at its limit passes."""


def compare_recorded_metrics(
    new: BundleMetadata, live: BundleMetadata, limits: RegressionLimits
) -> list[Check]:
    """Compare the metrics recorded in hubhead.json, each measured on the version's own test photos."""
    new_test, live_test = new.metrics.get("test") or {}, live.metrics.get("test") or {}
    checks = [
        _check_proportion("accuracy", new_test.get("accuracy"), live_test.get("accuracy"), limits.accuracy),
        _check_increase("log-loss", new_test.get("log_loss"), live_test.get("log_loss"), limits.log_loss),
        _check_increase(
            "calibration error",
            _calibration_error(new_test),
            _calibration_error(live_test),
            limits.calibration,
        ),
    ]
    recalls = [found.get("recall") or {} for found in (new_test, live_test)]
    checks += [
        _check_proportion(
            f"recall of {label}", recalls[0][label], recalls[1][label], limits.label, limits.label_photos
        )
        for label in new.labels
        if all(label in recall for recall in recalls)
    ]
    return checks


def list_label_changes(new: Sequence[str], live: Sequence[str]) -> list[Check]:
    """Report added and removed class labels; informative only."""
    changes = (
        ("labels added", [label for label in new if label not in live]),
        ("labels removed", [label for label in live if label not in new]),
    )
    return [Check(name, None, len(found), None, ", ".join(found) or "none") for name, found in changes]


def check_ratio(name: str, new: float, live: float, limit: float, unit: str) -> Check:
    """Check that a figure is at most `limit` times that of the live version."""
    found = new / live if live else float("inf")
    detail = f"{new:.4g} {unit} vs. {live:.4g}"
    return Check(name, found <= limit + _EPSILON, round(found, 4), limit, detail)


def compare_on_photos(
    new: tuple[NDArray[np.float32], Sequence[str]],
    live: tuple[NDArray[np.float32], Sequence[str]],
    truth: Sequence[str],
    limits: RegressionLimits,
) -> list[Check]:
    """Compare both versions on the same labelled photos.

    Args:
        new: probabilities of the candidate, float32 [N,K], and its K labels.
        live: probabilities and labels of the live version.
        truth: N true labels, known to both versions.
        limits: largest allowed regression.
    """
    import numpy as np

    correct, live_correct = (
        np.array([labels[column] for column in rows.argmax(axis=1)], object) == np.array(truth, object)
        for rows, labels in (new, live)
    )
    checks = [
        _check_proportion(
            "accuracy on the photos", _accuracy(correct), _accuracy(live_correct), limits.accuracy
        ),
        _check_increase(
            "log-loss on the photos",
            _log_loss(*new, truth),
            _log_loss(*live, truth),
            limits.log_loss,
            f" (N={len(truth)})",
        ),
    ]
    for label in sorted(set(truth)):
        own = np.array([name == label for name in truth])
        checks.append(
            _check_proportion(
                f"recall of {label} on the photos",
                _accuracy(correct[own]),
                _accuracy(live_correct[own]),
                limits.label,
                limits.label_photos,
            )
        )
    return checks


def _accuracy(correct: NDArray[Any]) -> dict[str, float]:
    return {"value": float(correct.mean()), "n": len(correct)}


def _log_loss(rows: NDArray[np.float32], labels: Sequence[str], truth: Sequence[str]) -> float:
    import numpy as np

    columns = [list(labels).index(label) for label in truth]
    chosen = rows[np.arange(len(truth)), columns].astype(np.float64)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())


def _calibration_error(metrics: Mapping[str, Any]) -> float | None:
    found = metrics.get("calibration")
    return found.get("error") if isinstance(found, Mapping) else None


def _check_proportion(
    name: str,
    new: Mapping[str, Any] | None,
    live: Mapping[str, Any] | None,
    tolerance: float,
    min_photos: int = 0,
) -> Check:
    if not new or not live or new.get("value") is None or live.get("value") is None:
        return _missing_figure(name, bool(live and live.get("value") is not None))
    limit = max(0.0, live["value"] - tolerance)
    detail = f"{new['value']:.1%} (N={new['n']}) vs. {live['value']:.1%} (N={live['n']})"
    if min(new["n"], live["n"]) < min_photos:
        return Check(name, None, new["value"], limit, f"{detail}: too few photos for a check")
    return Check(name, new["value"] >= limit - _EPSILON, new["value"], limit, detail)


def _check_increase(
    name: str, new: float | None, live: float | None, tolerance: float, suffix: str = ""
) -> Check:
    if new is None or live is None:
        return _missing_figure(name, live is not None)
    limit = live + tolerance
    return Check(name, new <= limit + _EPSILON, new, limit, f"{new:.4g} vs. {live:.4g}{suffix}")


def _missing_figure(name: str, live_knows: bool) -> Check:
    """Fail a figure that only the candidate lacks; report one that the live version lacks."""
    if live_knows:
        return Check(name, False, detail="the candidate does not record it, but the live version does")
    return Check(name, None, detail="the live version does not record it")

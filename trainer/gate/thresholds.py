"""How a candidate's figures are held against those of the live version. Pure functions."""

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
class Limits:
    """How much worse than the live version a candidate may be.

    Attributes:
        accuracy: fall of the accuracy (0.02 is two points of a hundred).
        label: fall of a label's recall.
        label_photos: labels with fewer test photos than this, in either version, are told and not
            judged: of one photo in three, recall says nothing.
        log_loss: rise, in nats.
        calibration: rise of the expected calibration error.
        latency: ratio of the time for a photo.
        size: ratio of the bytes on disk.
    """

    accuracy: float = 0.02
    label: float = 0.1
    label_photos: int = 20
    log_loss: float = 0.05
    calibration: float = 0.05
    latency: float = 1.5
    size: float = 1.5


_EPSILON = 1e-9


def recorded(new: BundleMetadata, live: BundleMetadata, limits: Limits) -> list[Check]:
    """The figures that each version's training wrote into hubhead.json, each on its own test photos."""
    mine, other = new.metrics.get("test") or {}, live.metrics.get("test") or {}
    checks = [
        _proportion("accuracy", mine.get("accuracy"), other.get("accuracy"), limits.accuracy),
        _at_most("log-loss", mine.get("log_loss"), other.get("log_loss"), limits.log_loss),
        _at_most(
            "calibration error", _calibration_error(mine), _calibration_error(other), limits.calibration
        ),
    ]
    recalls = [found.get("recall") or {} for found in (mine, other)]
    checks += [
        _proportion(
            f"recall of {label}", recalls[0][label], recalls[1][label], limits.label, limits.label_photos
        )
        for label in new.labels
        if all(label in recall for recall in recalls)
    ]
    return checks


def labels_changed(new: Sequence[str], live: Sequence[str]) -> list[Check]:
    """Which labels came and went; told, and judged by people."""
    changes = (
        ("labels added", [label for label in new if label not in live]),
        ("labels removed", [label for label in live if label not in new]),
    )
    return [Check(name, None, len(found), None, ", ".join(found) or "none") for name, found in changes]


def ratio(name: str, new: float, live: float, limit: float, unit: str) -> Check:
    """At most so many times the live version's figure."""
    found = new / live if live else float("inf")
    detail = f"{new:.4g} {unit} against {live:.4g}"
    return Check(name, found <= limit + _EPSILON, round(found, 4), limit, detail)


def on_photos(
    new: tuple[NDArray[np.float32], Sequence[str]],
    live: tuple[NDArray[np.float32], Sequence[str]],
    truth: Sequence[str],
    limits: Limits,
) -> list[Check]:
    """Both versions on the same labelled photos.

    Args:
        new: float32 [N,K] probabilities of the candidate, and its K labels.
        live: the same of the live version.
        truth: N labels that both know.
        limits: what is allowed.
    """
    import numpy as np

    right, was_right = (
        np.array([labels[column] for column in rows.argmax(axis=1)], object) == np.array(truth, object)
        for rows, labels in (new, live)
    )
    checks = [
        _proportion("accuracy on the photos", _share(right), _share(was_right), limits.accuracy),
        _at_most(
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
            _proportion(
                f"recall of {label} on the photos",
                _share(right[own]),
                _share(was_right[own]),
                limits.label,
                limits.label_photos,
            )
        )
    return checks


def _share(right: NDArray[Any]) -> dict[str, float]:
    return {"value": float(right.mean()), "n": len(right)}


def _log_loss(rows: NDArray[np.float32], labels: Sequence[str], truth: Sequence[str]) -> float:
    import numpy as np

    columns = [list(labels).index(label) for label in truth]
    chosen = rows[np.arange(len(truth)), columns].astype(np.float64)
    return float(-np.log(np.maximum(chosen, np.finfo(np.float32).tiny)).mean())


def _calibration_error(metrics: Mapping[str, Any]) -> float | None:
    found = metrics.get("calibration")
    return found.get("error") if isinstance(found, Mapping) else None


def _proportion(
    name: str,
    new: Mapping[str, Any] | None,
    live: Mapping[str, Any] | None,
    tolerance: float,
    least: int = 0,
) -> Check:
    if not new or not live or new.get("value") is None or live.get("value") is None:
        return _unknown(name, bool(live and live.get("value") is not None))
    limit = max(0.0, live["value"] - tolerance)
    detail = f"{new['value']:.1%} (N={new['n']}) against {live['value']:.1%} (N={live['n']})"
    if min(new["n"], live["n"]) < least:
        return Check(name, None, new["value"], limit, f"{detail}: too few photos to judge")
    return Check(name, new["value"] >= limit - _EPSILON, new["value"], limit, detail)


def _at_most(name: str, new: float | None, live: float | None, tolerance: float, on: str = "") -> Check:
    if new is None or live is None:
        return _unknown(name, live is not None)
    limit = live + tolerance
    return Check(name, new <= limit + _EPSILON, new, limit, f"{new:.4g} against {live:.4g}{on}")


def _unknown(name: str, live_knows: bool) -> Check:
    """A figure that the live version has and the candidate has not is no small thing."""
    if live_knows:
        return Check(name, False, detail="the candidate does not state it, and the live version does")
    return Check(name, None, detail="the live version does not state it")

"""Sections of the report with metrics: those of each set, and the comparison with the live version."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from serving.html.markup import Child, Element, element
from serving.html.parts import (
    SPACE,
    bidi_isolate,
    decimals,
    key_figure,
    percent,
    pluralize,
    section,
    table_of,
)
from trainer.evaluation.cross_validation import CrossValidation, RepeatSummary
from trainer.evaluation.metrics import Estimate, Evaluation, Proportion
from trainer.evaluation.paired import PairedComparison
from trainer.evaluation.version_changes import LabelChange, LiveComparison, PhotoChange
from trainer.report.contents import MAX_CHANGED, Report

MAX_LABELS = 30
"""Largest number of labels in the comparison; those that changed most are listed."""

Picture = Callable[[str, str], Element]
"""Function that returns the thumbnail of a photo, given its path and a description."""


def format_interval(share: Proportion | Estimate) -> str:
    """Return the interval of a proportion as percentages."""
    return f"{percent(share.low)} to {percent(share.high)}"


def format_estimate(figure: Estimate) -> str:
    """Return a figure with its interval."""
    if math.isnan(figure.low):
        return decimals(figure.value)
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def build_metrics_section(report: Report) -> Element:
    """Return the section with the metrics of all sets side by side."""
    sets: list[tuple[str, Evaluation, CrossValidation | None]] = []
    if report.test:
        sets.append(("Test photos", report.test, None))
    chosen = "Cross-validation that chose C" if report.method == "cross-validation" else "Validation photos"
    sets.append((chosen, report.held_out, None))
    if report.cross_validation:
        repeated = report.cross_validation
        sets.append((f"{repeated.folds}-fold cross-validation", repeated.runs[0], repeated))
    # Each row has a function of the set's evaluation and, for the K-fold cross-validation, of its means.
    rows: list[tuple[str, Callable[[Evaluation, CrossValidation | None], str]]] = [
        ("Photos", lambda shown, _: f"{shown.accuracy.n:,}"),
        ("Accuracy", lambda shown, repeated: _format_share((repeated or shown).accuracy)),
        *(
            (f"Top-{k} accuracy", lambda shown, _, k=k: _format_share(shown.top[k]))
            for k in report.held_out.top
            if k > 1
        ),
        ("Log-loss", _format_log_loss),
        ("Precision, mean over labels", lambda shown, _: format_estimate(shown.macro.precision)),
        ("Recall, mean over labels", lambda shown, _: format_estimate(shown.macro.recall)),
        ("F1, mean over labels", lambda shown, _: format_estimate(shown.macro.f1)),
        ("Calibration error", _format_calibration),
    ]
    table = table_of(
        ("Metric", *(name for name, *_ in sets)),
        [
            (name, *(format_cell(shown, repeated) for _, shown, repeated in sets))
            for name, format_cell in rows
        ],
    )
    introduction = f"With 95{SPACE}% intervals. Top-k accuracy: the right label is among the k best."
    if folded := report.cross_validation:
        introduction += (
            f" In the {folded.folds}-fold cross-validation all settings of a head are chosen without the "
            "photos that it is evaluated on, so these figures are unbiased."
        )
        if len(folded.runs) > 1:
            introduction += (
                f" It was repeated {len(folded.runs)} times: accuracy "
                f"{_format_summary(folded.figures['accuracy'], 100, 1)}{SPACE}%, "
                f"log-loss {_format_summary(folded.figures['log_loss'], 1, 3)}, calibration error "
                f"{_format_summary(folded.figures['calibration_error'], 1, 3)} (mean and standard "
                "deviation). Figures without a mean are those of the first repeat."
            )
    return section("Metrics", introduction, element("div", table, class_="card wide"))


def build_comparison_section(
    comparison: LiveComparison, picture: Picture, format_path: Callable[[str], str]
) -> Element:
    """Return the section that compares the new version with the live one.

    Args:
        comparison: the comparison.
        picture: function that returns the thumbnail of a photo.
        format_path: function that returns the path of a photo as it is shown.
    """
    live, difference = f"Version {comparison.version}", comparison.difference
    introduction = (
        f"On {pluralize(difference.n, 'test photo')} "
        + (
            "that it was not trained on"
            if comparison.trained_on_known
            else "of which some may be among those that it was trained on"
        )
        + ", of labels that both versions know. "
        + _describe_difference(difference)
    )
    rows: list[tuple[str, str, str, str]] = [
        (
            "Accuracy",
            _format_share(comparison.new.accuracy),
            _format_share(comparison.live.accuracy),
            _format_points(difference.accuracy),
        ),
        (
            "Log-loss",
            decimals(comparison.new.log_loss),
            decimals(comparison.live.log_loss),
            _format_signed(difference.log_loss, 1, 3),
        ),
    ]
    table = table_of(
        ("Metric", "New version", live, "Difference"),
        rows,
        "Intervals: Agresti and Min's for matched pairs (accuracy), paired bootstrap (log-loss). "
        f"McNemar's exact test: p = {difference.p_value:.3f}.",
    )
    return section(
        f"Comparison with {live.lower()} of {comparison.name}",
        introduction,
        _list_differences(comparison),
        element(
            "dl",
            key_figure("Accuracy", _format_number(100 * difference.accuracy.value, 1), "percentage points"),
            key_figure("Log-loss", _format_number(difference.log_loss.value, 3), "lower is better"),
            key_figure("Newly right", f"{difference.gained:,}", "photos"),
            key_figure("Newly wrong", f"{difference.lost:,}", "photos"),
            class_="figures",
        ),
        element("div", table, class_="card wide"),
        element("div", _build_label_table(comparison.labels, live), class_="card wide")
        if comparison.labels
        else None,
        *_build_gallery("Newly wrong", comparison.newly_wrong, live, picture, format_path),
        *_build_gallery("Newly right", comparison.newly_right, live, picture, format_path),
    )


def _describe_difference(difference: PairedComparison) -> str:
    """Return whether the difference is significant."""
    if difference.is_better:
        return "The new version is significantly better."
    if difference.is_worse:
        return "The new version is significantly worse."
    return "The difference is not significant."


def _list_differences(comparison: LiveComparison) -> Element | None:
    """Return a list of added and removed labels and of photos that were left out; None without any."""
    items: list[Child] = []
    for name, labels in (("Added labels: ", comparison.added), ("Removed labels: ", comparison.removed)):
        if labels:
            items.append(element("li", name, *_join_labels(labels), "."))
    for reason, count in comparison.left_out.items():
        items.append(element("li", f"{pluralize(count, 'test photo')} left out, {reason}."))
    return element("ul", *items) if items else None


def _join_labels(labels: Sequence[str]) -> Iterable[Child]:
    """Yield labels with commas between them."""
    for number, label in enumerate(labels):
        if number:
            yield ", "
        yield bidi_isolate(label)


def _build_label_table(labels: Sequence[LabelChange], live: str) -> Element:
    """Return the table of the changes by label, the largest decrease of recall first."""
    most = sorted(labels, key=lambda change: (change.difference.value, -change.lost))
    if len(most) > MAX_LABELS:
        most = sorted(most, key=lambda change: -(change.gained + change.lost))[:MAX_LABELS]
        most.sort(key=lambda change: change.difference.value)
    return table_of(
        (
            "Label",
            "Photos",
            "Recall",
            f"Recall, {live.lower()}",
            "Difference",
            "Newly right",
            "Newly wrong",
        ),
        [
            (
                bidi_isolate(change.label),
                f"{change.new.n:,}",
                percent(change.new.value),
                percent(change.live.value),
                _format_points(change.difference),
                f"{change.gained:,}",
                f"{change.lost:,}",
            )
            for change in most
        ],
        "By label, the largest decrease first"
        + (f"; the {MAX_LABELS} of {len(labels)} that changed most." if len(labels) > MAX_LABELS else "."),
    )


def _build_gallery(
    title: str, photos: Sequence[PhotoChange], live: str, picture: Picture, format_path: Callable[[str], str]
) -> Iterable[Element]:
    """Yield the heading and the gallery of photos that changed; nothing without photos."""
    if not photos:
        return
    shown = photos[:MAX_CHANGED]
    yield element("h3", title if len(shown) == len(photos) else f"{title}: {len(shown)} of {len(photos)}")
    yield element(
        "ul", *(_build_gallery_item(photo, live, picture, format_path) for photo in shown), class_="gallery"
    )


def _build_gallery_item(
    photo: PhotoChange, live: str, picture: Picture, format_path: Callable[[str], str]
) -> Element:
    """Return a photo with the predictions of both versions."""

    def build_prediction(version: str, prediction: tuple[str, float]) -> Element:
        kind = "good" if prediction[0] == photo.label else "bad"
        score = element("span", " ", percent(prediction[1], 0), class_="score")
        return element("p", version, ": ", element("b", bidi_isolate(prediction[0]), class_=kind), score)

    return element(
        "li",
        picture(
            photo.uri, f"{photo.label}; {live.lower()} predicts {photo.live[0]}, the new one {photo.new[0]}"
        ),
        build_prediction("New version", photo.new),
        build_prediction(live, photo.live),
        element("p", format_path(photo.uri), class_="path"),
    )


def _format_share(share: Proportion) -> str:
    return f"{percent(share.value)} ({format_interval(share)})"


def _format_log_loss(shown: Evaluation, repeated: CrossValidation | None) -> str:
    low, high = shown.log_loss_interval
    return f"{decimals((repeated or shown).log_loss)} ({decimals(low)} to {decimals(high)})"


def _format_calibration(shown: Evaluation, _: CrossValidation | None) -> str:
    calibration = shown.calibration
    if calibration is None:
        return "–"
    return f"{calibration.error:.3f} (calibrated models {calibration.low:.3f} to {calibration.high:.3f})"


def _format_summary(summary: RepeatSummary, scale: float, digits: int) -> str:
    return f"{scale * summary.mean:.{digits}f} ± {scale * summary.deviation:.{digits}f}"


def _format_points(difference: Estimate) -> str:
    return _format_signed(difference, 100, 1) + f"{SPACE}points"


def _format_signed(difference: Estimate, scale: float, digits: int) -> str:
    value, low, high = (
        _format_number(scale * number, digits)
        for number in (difference.value, difference.low, difference.high)
    )
    return f"{value} ({low} to {high})"


def _format_number(value: float, digits: int) -> str:
    """Return a number with its sign, by a true minus sign."""
    return f"{value:+z.{digits}f}".replace("-", "\N{MINUS SIGN}")

"""How the head did: the figures of each set side by side, and against the live version."""

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
from trainer.report.contents import CHANGED, Report

LABELS = 30
"""Labels of the comparison that are listed, those that changed most first."""

Picture = Callable[[str, str], Element]
"""Of a path and words that tell it."""


def between(share: Proportion | Estimate) -> str:
    """An interval of shares."""
    return f"{percent(share.low)} to {percent(share.high)}"


def estimate(figure: Estimate) -> str:
    """A figure with its interval."""
    if math.isnan(figure.low):
        return decimals(figure.value)
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def figures(report: Report) -> Element:
    """The figures of all sets side by side."""
    sets: list[tuple[str, Evaluation, CrossValidation | None]] = []
    if report.test:
        sets.append(("Test photos", report.test, None))
    chosen = "Cross-validation that chose C" if report.method == "cross-validation" else "Validation photos"
    sets.append((chosen, report.held_out, None))
    if report.cross_validation:
        found = report.cross_validation
        sets.append((f"{found.folds}-fold cross-validation", found.runs[0], found))
    rows: list[tuple[str, Callable[[Evaluation, CrossValidation | None], str]]] = [
        ("Photos", lambda shown, _: f"{shown.accuracy.n:,}"),
        ("Accuracy", lambda shown, found: _share(found.accuracy if found else shown.accuracy)),
        *(
            (f"Right among the best {k}", lambda shown, _, k=k: _share(shown.top[k]))
            for k in report.held_out.top
            if k > 1
        ),
        ("Log-loss", _log_loss),
        ("Precision, mean over labels", lambda shown, _: estimate(shown.macro.precision)),
        ("Recall, mean over labels", lambda shown, _: estimate(shown.macro.recall)),
        ("F1, mean over labels", lambda shown, _: estimate(shown.macro.f1)),
        ("Calibration error", _calibration),
    ]
    table = table_of(
        ("Figure", *(name for name, *_ in sets)),
        [(name, *(told(shown, found) for _, shown, found in sets)) for name, told in rows],
    )
    words = f"With 95{SPACE}% intervals."
    if folded := report.cross_validation:
        words += (
            f" In the {folded.folds}-fold cross-validation all settings of a head are chosen without the "
            "photos that it is held against, so these figures flatter nobody."
        )
        if len(folded.runs) > 1:
            words += (
                f" It was repeated {len(folded.runs)} times: accuracy "
                f"{_spread(folded.figures['accuracy'], 100, 1)}{SPACE}%, "
                f"log-loss {_spread(folded.figures['log_loss'], 1, 3)}, calibration error "
                f"{_spread(folded.figures['calibration_error'], 1, 3)} (mean and standard deviation). "
                "Figures without a mean are those of the first time."
            )
    return section("Figures", words, element("div", table, class_="card wide"))


def against_live(found: LiveComparison, picture: Picture, path: Callable[[str], str]) -> Element:
    """The new version against the live one.

    Args:
        found: the comparison.
        picture: of a photo.
        path: as people know it.
    """
    live, difference = f"Version {found.version}", found.difference
    judged = (
        f"On {pluralize(difference.n, 'test photo')} "
        + (
            "that it was not trained on"
            if found.trained_on_known
            else "of which some may be among those that it was trained on"
        )
        + ", of labels that both know. "
        + _verdict(difference)
    )
    rows: list[tuple[str, str, str, str]] = [
        ("Accuracy", _share(found.new.accuracy), _share(found.live.accuracy), _points(difference.accuracy)),
        (
            "Log-loss",
            decimals(found.new.log_loss),
            decimals(found.live.log_loss),
            _signed(difference.log_loss, 1, 3),
        ),
    ]
    table = table_of(
        ("Figure", "New version", live, "Difference"),
        rows,
        f"Of accuracy the interval is Agresti and Min's for matched pairs, of log-loss a paired bootstrap's. "
        f"McNemar's exact test: p = {difference.p_value:.3f}.",
    )
    return section(
        f"Against {live.lower()} of {found.name}",
        judged,
        _labels_that_changed(found),
        element(
            "dl",
            key_figure("Accuracy", _signed_value(100 * difference.accuracy.value, 1), "percent points"),
            key_figure("Log-loss", _signed_value(difference.log_loss.value, 3), "the less the better"),
            key_figure("Newly right", f"{difference.gained:,}", "photos"),
            key_figure("Newly wrong", f"{difference.lost:,}", "photos"),
            class_="figures",
        ),
        element("div", table, class_="card wide"),
        element("div", _by_label(found.labels, live), class_="card wide") if found.labels else None,
        *_changed("Newly wrong", found.newly_wrong, live, picture, path),
        *_changed("Newly right", found.newly_right, live, picture, path),
    )


def _verdict(difference: PairedComparison) -> str:
    if difference.is_better:
        return "It is better, beyond what chance explains."
    if difference.is_worse:
        return "It is worse, beyond what chance explains."
    return "The difference may be chance."


def _labels_that_changed(found: LiveComparison) -> Element | None:
    told: list[Child] = []
    for what, labels in (("New labels: ", found.added), ("Labels that are gone: ", found.removed)):
        if labels:
            told.append(element("li", what, *_listed(labels), "."))
    for reason, count in found.left_out.items():
        told.append(element("li", f"{pluralize(count, 'test photo')} left out, {reason}."))
    return element("ul", *told) if told else None


def _listed(labels: Sequence[str]) -> Iterable[Child]:
    for number, label in enumerate(labels):
        if number:
            yield ", "
        yield bidi_isolate(label)


def _by_label(labels: Sequence[LabelChange], live: str) -> Element:
    most = sorted(labels, key=lambda change: (change.difference.value, -change.lost))
    if len(most) > LABELS:
        most = sorted(most, key=lambda change: -(change.gained + change.lost))[:LABELS]
        most.sort(key=lambda change: change.difference.value)
    return table_of(
        (
            "Label",
            "Photos",
            "Found (recall)",
            f"By {live.lower()}",
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
                _points(change.difference),
                f"{change.gained:,}",
                f"{change.lost:,}",
            )
            for change in most
        ],
        "By label, the losses first"
        + (f"; the {LABELS} of {len(labels)} that changed most." if len(labels) > LABELS else "."),
    )


def _changed(
    title: str, photos: Sequence[PhotoChange], live: str, picture: Picture, path: Callable[[str], str]
) -> Iterable[Element]:
    if not photos:
        return
    shown = photos[:CHANGED]
    yield element("h3", title if len(shown) == len(photos) else f"{title}: {len(shown)} of {len(photos)}")
    yield element("ul", *(_photo(photo, live, picture, path) for photo in shown), class_="gallery")


def _photo(photo: PhotoChange, live: str, picture: Picture, path: Callable[[str], str]) -> Element:
    def told(who: str, answer: tuple[str, float]) -> Element:
        kind = "good" if answer[0] == photo.label else "bad"
        score = element("span", " ", percent(answer[1], 0), class_="score")
        return element("p", who, ": ", element("b", bidi_isolate(answer[0]), class_=kind), score)

    return element(
        "li",
        picture(photo.uri, f"{photo.label}, {live.lower()} says {photo.live[0]}, now {photo.new[0]}"),
        told("Now", photo.new),
        told(live, photo.live),
        element("p", path(photo.uri), class_="path"),
    )


def _share(share: Proportion) -> str:
    return f"{percent(share.value)} ({between(share)})"


def _log_loss(shown: Evaluation, found: CrossValidation | None) -> str:
    low, high = shown.log_loss_interval
    return f"{decimals(found.log_loss if found else shown.log_loss)} ({decimals(low)} to {decimals(high)})"


def _calibration(shown: Evaluation, _: CrossValidation | None) -> str:
    found = shown.calibration
    if found is None:
        return "–"
    return f"{found.error:.3f} (calibrated models {found.low:.3f} to {found.high:.3f})"


def _spread(spread: RepeatSummary, scale: float, digits: int) -> str:
    return f"{scale * spread.mean:.{digits}f} ± {scale * spread.deviation:.{digits}f}"


def _points(difference: Estimate) -> str:
    return _signed(difference, 100, 1) + f"{SPACE}points"


def _signed(difference: Estimate, scale: float, digits: int) -> str:
    value, low, high = (
        _signed_value(scale * number, digits)
        for number in (difference.value, difference.low, difference.high)
    )
    return f"{value} ({low} to {high})"


def _signed_value(value: float, digits: int) -> str:
    return f"{value:+z.{digits}f}".replace("-", "\N{MINUS SIGN}")

"""The page: one HTML file with its style, diagrams and pictures in it, and no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from serving.contract import Status
from serving.html.markup import Element, element
from serving.html.parts import (
    SPACE,
    bidi_isolate,
    decimals,
    diagram,
    document,
    image,
    key_figure,
    percent,
    pluralize,
    section,
    table_of,
)
from serving.html.plot import interval_bar
from serving.photos.thumbnails import make_thumbnails
from serving.storage import files
from trainer.dataset import Subset
from trainer.dataset.near_duplicates import DuplicateGroup
from trainer.evaluation.metrics import Calibration, Estimate, Evaluation, Proportion, proportion
from trainer.report import charts, judged
from trainer.report.contents import Answers, LabelRow, Report, shown_of
from trainer.report.judged import between, estimate

SIDE = 192
"""Pixels of a picture: twice what is shown of it on most screens."""

MATRIX = 30
"""Labels up to which the confusion is shown as a matrix; with more, the pairs confused most often."""

LISTED = 100
"""Rows of a list that may be long."""


def write(path: Path, report: Report) -> None:
    """Read and shrink the photos that are to be shown, and write the page; `path`'s directory exists.

    Args:
        path: of the page.
        report: what is told.

    Raises:
        OutputError: the place cannot be written.
    """
    page = render(report, make_thumbnails(report.pictured, SIDE))
    files.write(str(path), page.encode())


def render(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page, with small JPEGs by path; a photo without one is told in words."""
    return _Page(report, pictures).whole()


class _Page:
    """The parts of the page, in their order.

    Args:
        report: what is told.
        pictures: JPEGs by path.
    """

    def __init__(self, report: Report, pictures: Mapping[str, bytes]) -> None:
        self._report = report
        self._pictures = pictures

    def whole(self) -> str:
        report = self._report
        parts = (
            self.headline(),
            judged.figures(report),
            self.against_live(),
            self.labels(),
            self.confusion(),
            self.probabilities(),
            self.misclassified(),
            self.unsure(),
            self.duplicates(),
            self.left_out(),
            self.run(),
        )
        return document(f"{report.title}: training report", *parts)

    def headline(self) -> Element:
        report = self._report
        shown, photos = (report.test, "test photos") if report.test else (report.held_out, "held-out photos")
        accuracy = shown.accuracy
        said = (
            f"of {accuracy.n} {photos} get the right label. On other photos of the same kind it is, "
            f"with 95{SPACE}% confidence, {between(accuracy)}."
        )
        cross = report.held_out.accuracy
        how = "cross-validated" if report.method == "cross-validation" else "on validation photos"
        return element(
            "header",
            element("h1", report.title, dir="auto"),
            element("p", "What a head learned from labelled photos", _on(report.created), class_="soft"),
            element(
                "section",
                element("strong", percent(accuracy.value)),
                element("p", said),
                _bar(accuracy, "accuracy"),
                element("div", element("span", "0"), element("span", "100", SPACE, "%"), class_="scale"),
                None if report.test else element("p", "No photos were held out for a test.", class_="soft"),
                class_="card hero",
            ),
            element(
                "dl",
                key_figure(
                    f"Accuracy, {how}",
                    percent(cross.value),
                    f"{between(cross)}, {pluralize(cross.n, 'photo')}",
                ),
                key_figure("Log-loss", decimals(shown.log_loss), _log_loss_words(shown)),
                _calibration(shown.calibration),
                key_figure(
                    "Photos",
                    f"{sum(sum(row.photos.values()) for row in report.labels):,}",
                    " + ".join(f"{self._in_set(subset)} {subset}" for subset in Subset),
                ),
                key_figure(
                    "Labels", f"{len(report.labels):,}", "F1 " + estimate(shown.macro.f1) + " on average"
                ),
                class_="figures",
            ),
        )

    def against_live(self) -> Element | None:
        found = self._report.comparison
        return judged.against_live(found, self._picture, self._path) if found else None

    def labels(self) -> Element:
        report = self._report
        shown = report.by_label
        heads = ("", "Label", "Training", "Validation", "Test", "Found (recall)", "Right (precision)", "F1")
        numbers = ("Training", "Validation", "Test")
        return section(
            "Labels",
            f"The hardest first, by {shown.accuracy.n:,} {report.judged_by}. The bars show "
            f"95{SPACE}% intervals: where they are wide, there are too few photos to tell.",
            element(
                "div",
                element(
                    "table",
                    element(
                        "thead",
                        element(
                            "tr",
                            *(
                                element(
                                    "th",
                                    head or "Sample",
                                    scope="col",
                                    class_="number" if head in numbers else None,
                                )
                                for head in heads
                            ),
                        ),
                    ),
                    element("tbody", *(self._label(row, shown) for row in report.hardest_first)),
                    class_="labels",
                ),
                class_="card wide",
            ),
        )

    def _label(self, row: LabelRow, shown: Evaluation) -> Element:
        sample = self._picture(row.sample, f"A photo of {row.label}") if row.sample else None
        figures: tuple[tuple[str, Proportion | Estimate], ...] = (
            ("Found", shown.recall[row.label]),
            ("Right", shown.precision[row.label]),
            ("F1", shown.f1[row.label]),
        )
        return element(
            "tr",
            element("td", sample if sample is not None and sample.tag == "img" else None, class_="picture"),
            element("th", row.label, scope="row", dir="auto"),
            *(
                element("td", f"{row.photos.get(subset, 0):,}", class_="number photos", data_name=name)
                for subset, name in zip(Subset, ("Training", "Validation", "Test"), strict=True)
            ),
            *(
                element(
                    "td",
                    percent(figure.value),
                    _bar(figure, f"{name} of {row.label}"),
                    class_="figure first" if name == "Found" else "figure",
                    data_name=name,
                )
                for name, figure in figures
            ),
        )

    def confusion(self) -> Element:
        shown = self._report.by_label
        few = len(shown.labels) <= MATRIX
        return section(
            "What is taken for what",
            (
                "A row holds the photos of one label, a column those that were answered with one: what is "
                "right lies on the diagonal."
                if few
                else f"The pairs confused most often, of {len(shown.labels)} labels."
            )
            + f" {shown.accuracy.n:,} {self._report.judged_by}.",
            element("div", _matrix(shown) if few else _pairs(shown), class_="card wide"),
        )

    def probabilities(self) -> Element:
        report = self._report
        shown = report.held_out
        figures = []
        if shown.calibration:
            figures.append(
                diagram(
                    "Can its probabilities be trusted?",
                    charts.reliability(shown.calibration),
                    f"Photos in groups of rising probability. Calibration error "
                    f"{shown.calibration.error:.3f}; 95{SPACE}% of perfectly calibrated models show "
                    f"{shown.calibration.low:.3f} to {shown.calibration.high:.3f} on so few photos.",
                )
            )
        if report.coverage.points:
            figures.append(
                diagram(
                    "Answering only when sure",
                    charts.coverage(report.coverage),
                    "From right to left, the least sure answers are left out. "
                    "The dots are the thresholds below.",
                )
            )
        if report.losses:
            figures.append(
                diagram(
                    "How strongly to regularise",
                    charts.losses(report.losses, report.strength),
                    "The head is an exact minimum, so it has no curve over steps; "
                    "this is what was chosen by.",
                )
            )
        origin = (
            "cross-validated: each photo judged by a head that had not seen it"
            if report.method == "cross-validation"
            else "the validation photos, which the settings were chosen by"
        )
        return section(
            "Probabilities",
            f"On {pluralize(report.coverage.photos, 'held-out photo')}, {origin}.",
            element("div", *figures, self._thresholds(), class_="charts"),
        )

    def _thresholds(self) -> Element | None:
        curve = self._report.coverage
        if not curve.photos:
            return None
        rows = [
            (percent(wanted, 0), "not reached", "", "")
            if threshold is None
            else (
                percent(wanted, 0),
                f"{threshold.value:.3f}",
                percent(threshold.coverage.value),
                percent(threshold.precision.value),
            )
            for wanted, threshold in curve.thresholds.items()
        ]
        table = table_of(
            ("Wanted right", "Threshold", "Answered", "Right of these"),
            rows,
            f"To be right at least so often, with 95{SPACE}% confidence, answer from this threshold on "
            "(hubhead export --threshold).",
        )
        return element("div", element("h3", "Thresholds"), table, class_="card plain")

    def misclassified(self) -> Element | None:
        report = self._report
        if not report.test:
            return None
        shown, total = len(report.misclassified), report.misclassified_count
        words = "None: every test photo gets the right label."
        if total:
            count = f"All {total}" if shown == total else f"{shown} of {total}"
            words = (
                f"{count} test photos with a wrong label, the surest first: "
                "look here for photos whose own label is wrong."
            )
        return section("Misclassified test photos", words, self._gallery(report.misclassified, self._mistake))

    def unsure(self) -> Element | None:
        answers = self._report.unsure
        if not answers:
            return None
        return section(
            "Right, but only just",
            "The test photos with the right label that the head is least sure of.",
            self._gallery(answers, self._barely),
        )

    def _gallery(
        self, answers: Sequence[Answers], words: Callable[[Answers], Iterable[Element]]
    ) -> Element | None:
        if not answers:
            return None
        return element(
            "ul",
            *(
                element(
                    "li",
                    self._picture(answer.uri, f"{answer.label}, taken for {answer.predicted}"),
                    *words(answer),
                    element("p", self._path(answer.uri), class_="path"),
                )
                for answer in answers
            ),
            class_="gallery",
        )

    @staticmethod
    def _mistake(answer: Answers) -> Iterable[Element]:
        yield element("p", "is ", element("b", bidi_isolate(answer.label), class_="good"))
        score = element("span", " ", percent(answer.score, 0), class_="score")
        yield element("p", "taken for ", element("b", bidi_isolate(answer.predicted), class_="bad"), score)

    @staticmethod
    def _barely(answer: Answers) -> Iterable[Element]:
        score = element("span", " ", percent(answer.score, 0), class_="score")
        yield element("p", element("b", bidi_isolate(answer.label), class_="good"), score)

    def duplicates(self) -> Element | None:
        found = self._report.duplicates
        if not found.exact and not found.near:
            return None
        return section(
            "More than once",
            "",
            element("ul", *(element("li", sentence) for sentence in found.describe())),
            element("div", *(self._group(group) for group in self._report.groups), class_="groups"),
        )

    def _group(self, group: DuplicateGroup) -> Element:
        same = all(picture.similarity == 1 for picture in group.pictures)
        finding = ["Identical files" if same else "Nearly the same"]
        if len(group.labels) > 1:
            finding.append("under different labels")
        if group.across_sets:
            finding.append("in different sets")
        return element(
            "section",
            element(
                "div",
                *(self._picture(uri, self._path(uri)) for uri in shown_of(group)),
                class_="side",
            ),
            element("h3", ", ".join(finding), class_="bad" if len(finding) > 1 else None),
            element(
                "ul",
                *(
                    element(
                        "li",
                        bidi_isolate(picture.label),
                        f", {picture.subset}",
                        "" if same else f", cosine {picture.similarity:.3f}",
                        element("div", self._path(picture.uri), class_="path"),
                    )
                    for picture in group.pictures[:6]
                ),
                element("li", f"and {len(group.pictures) - 6} more") if len(group.pictures) > 6 else None,
                class_="small",
            ),
            class_="card",
        )

    def left_out(self) -> Element | None:
        left_out = self._report.left_out
        if not left_out:
            return None
        more = f" The first {LISTED} are listed." if len(left_out) > LISTED else ""
        rows = [(self._path(uri), _reason(reason)) for uri, reason in left_out[:LISTED]]
        table = table_of(
            ("File", "Why"), rows, f"{pluralize(len(left_out), 'file')} could not be used.{more}"
        )
        return section("Left out", "", element("div", table, class_="card wide"))

    def run(self) -> Element:
        report = self._report
        parts = [
            ("Settings", report.settings),
            ("Seconds by step", {step: f"{taken:.2f}" for step, taken in report.seconds.items()}),
            ("Versions", report.versions),
        ]
        return section(
            "The run",
            "",
            element(
                "div",
                *(
                    element("div", table_of((title, ""), list(values.items())), class_="card")
                    for title, values in parts
                    if values
                ),
                class_="tables",
            ),
        )

    def _in_set(self, subset: Subset) -> int:
        return sum(row.photos.get(subset, 0) for row in self._report.labels)

    def _path(self, uri: str) -> str:
        """As a user knows it: below the folder of photos."""
        top = self._report.top.rstrip("/") + "/"
        for start in (top, files.absolute(top) + "/"):
            if len(start) > 1 and uri.startswith(start):
                return uri[len(start) :]
        return uri

    def _picture(self, uri: str, words: str) -> Element:
        return image(self._pictures.get(uri), words, SIDE)


# --- Figures in words -------------------------------------------------------------------------------------


def _log_loss_words(shown: Evaluation) -> str:
    low, high = shown.log_loss_interval
    guess = math.log(len(shown.labels))
    return f"{decimals(low)} to {decimals(high)}; guessing has {guess:.3f}"


def _on(created: str) -> str:
    return f", {created}" if created else ""


def _reason(reason: str) -> str:
    """A status with what it means."""
    return f"{reason}: {Status(reason).meaning}" if reason in list(Status) else reason


def _calibration(found: Calibration | None) -> Element:
    if found is None:
        return key_figure("Calibration error", "–", "no photos")
    told = "as expected of a calibrated model" if found.within_band else "a calibrated model differs"
    return key_figure(
        "Calibration error", f"{found.error:.3f}", f"{told}, {found.low:.3f} to {found.high:.3f}"
    )


# --- Parts of a page --------------------------------------------------------------------------------------


def _bar(figure: Proportion | Estimate, name: str) -> Element:
    said = (
        f"{name} {percent(figure.value)}, 95{SPACE}% interval {percent(figure.low)} to {percent(figure.high)}"
    )
    return interval_bar(figure.value, figure.low, figure.high, said)


def _matrix(shown: Evaluation) -> Element:
    rows = []
    for index, (label, counts) in enumerate(zip(shown.labels, shown.confusion, strict=True)):
        total = max(1, sum(counts))
        cells = []
        for column, count in enumerate(counts):
            share = count / total
            kinds = ["hit" if index == column else "miss"]
            if not count:
                kinds = ["none"]
            elif share > 0.55:
                kinds.append("strong")
            cells.append(
                element(
                    "td",
                    str(count) if count else "",
                    class_=" ".join(kinds),
                    style=f"--share:{0.12 + 0.88 * share:.2f}" if count else None,
                    title=f"{label} answered as {shown.labels[column]}: {count} of {sum(counts)}, "
                    f"95{SPACE}% interval {between(proportion(count, sum(counts)))}"
                    if count
                    else None,
                )
            )
        rows.append(element("tr", element("th", label, scope="row", dir="auto"), *cells))
    heads = (element("th", element("span", label, title=label), scope="col") for label in shown.labels)
    corner = element("td", "")
    return element(
        "table",
        element("thead", element("tr", corner, *heads)),
        element("tbody", *rows),
        class_="matrix",
    )


def _pairs(shown: Evaluation) -> Element:
    pairs = sorted(
        (
            (count, label, shown.labels[column], sum(counts))
            for index, (label, counts) in enumerate(zip(shown.labels, shown.confusion, strict=True))
            for column, count in enumerate(counts)
            if count and column != index
        ),
        key=lambda pair: (-pair[0], -pair[0] / pair[3], pair[1:3]),
    )[:MATRIX]
    if not pairs:
        return element("p", "None is confused with another.")
    return element(
        "table",
        element(
            "thead",
            element("tr", *(element("th", head, scope="col") for head in ("Photos", "Label", "Taken for"))),
        ),
        element(
            "tbody",
            *(
                element(
                    "tr",
                    element(
                        "td",
                        f"{count} of {total}",
                        element("div", class_="meter", style=f"width:{100 * count / total:.0f}%"),
                    ),
                    element("th", label, scope="row", dir="auto"),
                    element("td", other, dir="auto"),
                )
                for count, label, other, total in pairs
            ),
        ),
        class_="pairs",
    )

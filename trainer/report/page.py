"""HTML page of the training report: one file with its style, charts and thumbnails, without scripts."""

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
from trainer.report import charts, figures
from trainer.report.contents import LabelRow, PhotoPrediction, Report, pick_group_uris
from trainer.report.figures import format_estimate, format_interval

SIDE = 192
"""Width and height of a thumbnail in pixels: twice its size on the page, for screens of high density."""

MAX_MATRIX = 30
"""Labels up to which the confusion matrix is shown; with more, the pairs confused most often."""

MAX_ROWS = 100
"""Largest number of rows in the list of files that could not be used."""


def write(path: Path, report: Report) -> None:
    """Make the thumbnails and write the page.

    Args:
        path: file to write, in an existing directory.
        report: contents of the report.

    Raises:
        OutputError: the file cannot be written.
    """
    page = render(report, make_thumbnails(report.pictured, SIDE))
    files.write(str(path), page.encode())


def render(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Return the page as HTML.

    Args:
        report: contents of the report.
        pictures: thumbnails (JPEG) by path; a photo without one is shown as text.
    """
    return _Page(report, pictures).render()


class _Page:
    """Builder of the page; its methods return the sections in the order of the page.

    Args:
        report: contents of the report.
        pictures: thumbnails (JPEG) by path.
    """

    def __init__(self, report: Report, pictures: Mapping[str, bytes]) -> None:
        self._report = report
        self._pictures = pictures

    def render(self) -> str:
        """Return the page as HTML."""
        report = self._report
        parts = (
            self.build_header(),
            figures.build_metrics_section(report),
            self.build_comparison(),
            self.build_labels(),
            self.build_confusion_matrix(),
            self.build_probabilities(),
            self.build_misclassified(),
            self.build_least_confident(),
            self.build_duplicates(),
            self.build_unusable_files(),
            self.build_run(),
        )
        return document(f"{report.title}: training report", *parts)

    def build_header(self) -> Element:
        """Return the title, the accuracy and the key figures."""
        report = self._report
        shown, photos = (report.test, "test photos") if report.test else (report.held_out, "held-out photos")
        accuracy = shown.accuracy
        statement = (
            f"of {accuracy.n} {photos} get the right label. The 95{SPACE}% interval for other photos of the "
            f"same kind is {format_interval(accuracy)}."
        )
        cross = report.held_out.accuracy
        how = "cross-validated" if report.method == "cross-validation" else "on validation photos"
        return element(
            "header",
            element("h1", report.title, dir="auto"),
            element("p", "Training report", _format_created(report.created), class_="soft"),
            element(
                "section",
                element("strong", percent(accuracy.value)),
                element("p", statement),
                _build_bar(accuracy, "accuracy"),
                element("div", element("span", "0"), element("span", "100", SPACE, "%"), class_="scale"),
                None if report.test else element("p", "There are no test photos.", class_="soft"),
                class_="card hero",
            ),
            element(
                "dl",
                key_figure(
                    f"Accuracy, {how}",
                    percent(cross.value),
                    f"{format_interval(cross)}, {pluralize(cross.n, 'photo')}",
                ),
                key_figure("Log-loss", decimals(shown.log_loss), _describe_log_loss(shown)),
                _build_calibration_figure(shown.calibration),
                key_figure(
                    "Photos",
                    f"{sum(sum(row.photos.values()) for row in report.labels):,}",
                    " + ".join(f"{self._count_photos(subset)} {subset}" for subset in Subset),
                ),
                key_figure("Labels", f"{len(report.labels):,}", f"mean F1 {format_estimate(shown.macro.f1)}"),
                class_="figures",
            ),
        )

    def build_comparison(self) -> Element | None:
        """Return the comparison with the live version; None where there is none."""
        comparison = self._report.comparison
        if not comparison:
            return None
        return figures.build_comparison_section(comparison, self._build_picture, self._format_path)

    def build_labels(self) -> Element:
        """Return the table of labels."""
        report = self._report
        shown = report.by_label
        heads = ("", "Label", "Training", "Validation", "Test", "Recall", "Precision", "F1")
        numbers = ("Training", "Validation", "Test")
        return section(
            "Labels",
            f"In ascending order of F1, on {shown.accuracy.n:,} {report.by_label_photos}. Recall: the "
            "fraction of a label's photos that are found. Precision: the fraction of the photos predicted as "
            f"a label that have it. The bars show 95{SPACE}% intervals; a wide one means too few photos.",
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
                    element("tbody", *(self._build_label_row(row, shown) for row in report.hardest_first)),
                    class_="labels",
                ),
                class_="card wide",
            ),
        )

    def _build_label_row(self, row: LabelRow, shown: Evaluation) -> Element:
        """Return the row of one label."""
        sample = self._build_picture(row.sample, f"A photo of {row.label}") if row.sample else None
        values: tuple[tuple[str, Proportion | Estimate], ...] = (
            ("Recall", shown.recall[row.label]),
            ("Precision", shown.precision[row.label]),
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
                    _build_bar(figure, f"{name} of {row.label}"),
                    class_="figure first" if name == "Recall" else "figure",
                    data_name=name,
                )
                for name, figure in values
            ),
        )

    def build_confusion_matrix(self) -> Element:
        """Return the confusion matrix, or the pairs confused most often where there are many labels."""
        shown = self._report.by_label
        few = len(shown.labels) <= MAX_MATRIX
        return section(
            "Confusion matrix",
            (
                "Which label is predicted for which: a row contains the photos of one label, a column those "
                "predicted as it. Correct predictions are on the diagonal."
                if few
                else f"The pairs confused most often, of {len(shown.labels)} labels."
            )
            + f" {shown.accuracy.n:,} {self._report.by_label_photos}.",
            element("div", _build_matrix(shown) if few else _build_pairs(shown), class_="card wide"),
        )

    def build_probabilities(self) -> Element:
        """Return reliability diagram, risk-coverage curve, regularisation strength and thresholds."""
        report = self._report
        shown = report.held_out
        diagrams = []
        if shown.calibration:
            diagrams.append(
                diagram(
                    "Reliability diagram",
                    charts.draw_reliability_diagram(shown.calibration),
                    "Can the probabilities be trusted? Each point is a group of photos of about the same "
                    f"best probability. Calibration error {shown.calibration.error:.3f}; that of 95{SPACE}% "
                    f"of perfectly calibrated models is {shown.calibration.low:.3f} to "
                    f"{shown.calibration.high:.3f} on as many photos.",
                )
            )
        if report.risk_coverage.points:
            diagrams.append(
                diagram(
                    "Risk-coverage curve",
                    charts.draw_risk_coverage_curve(report.risk_coverage),
                    "Accuracy of the answers if the least confident ones are withheld, more of them from "
                    "right to left. The points are the thresholds below.",
                )
            )
        if report.losses:
            diagrams.append(
                diagram(
                    "Regularisation strength",
                    charts.draw_log_losses(report.losses, report.strength),
                    "C is chosen by the lowest held-out log-loss. The head is an exact minimum, so it has no "
                    "training curve.",
                )
            )
        origin = (
            "cross-validated: each photo is predicted by a head that was fitted without it"
            if report.method == "cross-validation"
            else "the validation photos, by which the settings were chosen"
        )
        return section(
            "Probabilities",
            f"On {pluralize(report.risk_coverage.photos, 'held-out photo')}, {origin}.",
            element("div", *diagrams, self._build_thresholds(), class_="charts"),
        )

    def _build_thresholds(self) -> Element | None:
        """Return the table of thresholds; None without held-out photos."""
        curve = self._report.risk_coverage
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
            ("Required precision", "Threshold", "Coverage", "Precision"),
            rows,
            f"Lowest threshold at which the precision is at least as required with 95{SPACE}% confidence "
            "(hubhead export --threshold).",
        )
        return element("div", element("h3", "Thresholds"), table, class_="card plain")

    def build_misclassified(self) -> Element | None:
        """Return the misclassified test photos; None without test photos."""
        report = self._report
        if not report.test:
            return None
        shown, total = len(report.misclassified), report.misclassified_count
        introduction = "None: every test photo gets the right label."
        if total:
            count = f"All {total}" if shown == total else f"{shown} of {total}"
            introduction = (
                f"{count} misclassified test photos, the most confident first. Check whether their own label "
                "is wrong."
            )
        return section(
            "Misclassified test photos",
            introduction,
            self._build_gallery(report.misclassified, self._describe_misclassified),
        )

    def build_least_confident(self) -> Element | None:
        """Return the correct predictions of lowest confidence; None without any."""
        photos = self._report.least_confident
        if not photos:
            return None
        return section(
            "Lowest-confidence correct predictions",
            "Test photos that are right, but only just: the head is least confident of their label.",
            self._build_gallery(photos, self._describe_correct),
        )

    def _build_gallery(
        self, photos: Sequence[PhotoPrediction], describe: Callable[[PhotoPrediction], Iterable[Element]]
    ) -> Element | None:
        """Return a gallery of photos with their predictions; None without photos."""
        if not photos:
            return None
        return element(
            "ul",
            *(
                element(
                    "li",
                    self._build_picture(photo.uri, f"{photo.label}, predicted {photo.predicted}"),
                    *describe(photo),
                    element("p", self._format_path(photo.uri), class_="path"),
                )
                for photo in photos
            ),
            class_="gallery",
        )

    @staticmethod
    def _describe_misclassified(photo: PhotoPrediction) -> Iterable[Element]:
        yield element("p", "label ", element("b", bidi_isolate(photo.label), class_="good"))
        score = element("span", " ", percent(photo.score, 0), class_="score")
        yield element("p", "predicted ", element("b", bidi_isolate(photo.predicted), class_="bad"), score)

    @staticmethod
    def _describe_correct(photo: PhotoPrediction) -> Iterable[Element]:
        score = element("span", " ", percent(photo.score, 0), class_="score")
        yield element("p", element("b", bidi_isolate(photo.label), class_="good"), score)

    def build_duplicates(self) -> Element | None:
        """Return exact and near duplicates; None without any."""
        found = self._report.duplicates
        if not found.exact and not found.near:
            return None
        return section(
            "Duplicates",
            "",
            element("ul", *(element("li", sentence) for sentence in found.describe())),
            element(
                "div",
                *(self._build_duplicate_group(group) for group in self._report.duplicate_groups),
                class_="groups",
            ),
        )

    def _build_duplicate_group(self, group: DuplicateGroup) -> Element:
        """Return a card with the photos of one group and how they are duplicates."""
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
                *(self._build_picture(uri, self._format_path(uri)) for uri in pick_group_uris(group)),
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
                        element("div", self._format_path(picture.uri), class_="path"),
                    )
                    for picture in group.pictures[:6]
                ),
                element("li", f"and {len(group.pictures) - 6} more") if len(group.pictures) > 6 else None,
                class_="small",
            ),
            class_="card",
        )

    def build_unusable_files(self) -> Element | None:
        """Return the list of files that could not be used; None without any."""
        left_out = self._report.left_out
        if not left_out:
            return None
        more = f" The first {MAX_ROWS} are listed." if len(left_out) > MAX_ROWS else ""
        rows = [(self._format_path(uri), _describe_reason(reason)) for uri, reason in left_out[:MAX_ROWS]]
        table = table_of(
            ("File", "Reason"), rows, f"{pluralize(len(left_out), 'file')} could not be used.{more}"
        )
        return section("Unusable files", "", element("div", table, class_="card wide"))

    def build_run(self) -> Element:
        """Return the settings, the wall time of the steps and the package versions."""
        report = self._report
        parts = [
            ("Settings", report.settings),
            ("Seconds by step", {step: f"{taken:.2f}" for step, taken in report.seconds.items()}),
            ("Versions", report.versions),
        ]
        return section(
            "Run",
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

    def _count_photos(self, subset: Subset) -> int:
        return sum(row.photos.get(subset, 0) for row in self._report.labels)

    def _format_path(self, uri: str) -> str:
        """Return the path of a photo relative to the folder of photos."""
        top = self._report.top.rstrip("/") + "/"
        for start in (top, files.absolute(top) + "/"):
            if len(start) > 1 and uri.startswith(start):
                return uri[len(start) :]
        return uri

    def _build_picture(self, uri: str, description: str) -> Element:
        return image(self._pictures.get(uri), description, SIDE)


# --- Text -------------------------------------------------------------------------------------------------


def _describe_log_loss(shown: Evaluation) -> str:
    """Return the interval, and the log-loss of guessing with equal probabilities."""
    low, high = shown.log_loss_interval
    guess = math.log(len(shown.labels))
    return f"{decimals(low)} to {decimals(high)}; guessing: {guess:.3f}"


def _format_created(created: str) -> str:
    return f", {created}" if created else ""


def _describe_reason(reason: str) -> str:
    """Return a status with its meaning; other reasons as they are."""
    return f"{reason}: {Status(reason).meaning}" if reason in list(Status) else reason


def _build_calibration_figure(calibration: Calibration | None) -> Element:
    """Return the key figure of the calibration error, with the band of calibrated models."""
    if calibration is None:
        return key_figure("Calibration error", "–", "no photos")
    position = "within" if calibration.within_band else "outside"
    return key_figure(
        "Calibration error",
        f"{calibration.error:.3f}",
        f"{position} the band of calibrated models, {calibration.low:.3f} to {calibration.high:.3f}",
    )


# --- Parts of a page --------------------------------------------------------------------------------------


def _build_bar(figure: Proportion | Estimate, name: str) -> Element:
    """Return a bar that shows a proportion and its interval."""
    description = (
        f"{name} {percent(figure.value)}, 95{SPACE}% interval {percent(figure.low)} to {percent(figure.high)}"
    )
    return interval_bar(figure.value, figure.low, figure.high, description)


def _build_matrix(shown: Evaluation) -> Element:
    """Return the confusion matrix as a table; the shade of a cell is its fraction of the row."""
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
                    title=f"{label} predicted as {shown.labels[column]}: {count} of {sum(counts)}, "
                    f"95{SPACE}% interval {format_interval(proportion(count, sum(counts)))}"
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


def _build_pairs(shown: Evaluation) -> Element:
    """Return the table of the pairs of labels that are confused most often."""
    pairs = sorted(
        (
            (count, label, shown.labels[column], sum(counts))
            for index, (label, counts) in enumerate(zip(shown.labels, shown.confusion, strict=True))
            for column, count in enumerate(counts)
            if count and column != index
        ),
        key=lambda pair: (-pair[0], -pair[0] / pair[3], pair[1:3]),
    )[:MAX_MATRIX]
    if not pairs:
        return element("p", "No label is confused with another.")
    heads = ("Photos", "Label", "Predicted as")
    return element(
        "table",
        element(
            "thead",
            element("tr", *(element("th", head, scope="col") for head in heads)),
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

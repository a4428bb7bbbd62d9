"""The HTML page of a scoring run, rendered from its run.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from batch.monitoring import drift
from batch.monitoring.drift import Change, DecisionCounts
from batch.monitoring.progress import format_duration
from batch.monitoring.sample_photos import MAX_PER_LABEL, Example, Examples
from batch.output.run_diff import RunDiff, model_key
from batch.output.run_record import RunRecord
from batch.report import charts
from serving.contract import Status
from serving.html.markup import Child, Element, element
from serving.html.parts import (
    bidi_isolate,
    diagram,
    document,
    image,
    key_figure,
    percent,
    pluralize,
    section,
    table_of,
)

THUMBNAIL_PIXELS = 160
"""Width and height of a thumbnail."""

MAX_PHOTOS = 60
"""Photos shown for all models together; each adds some 8 KB to the page."""

MAX_LABELS = 50
"""Rows of the label table, most frequent labels first."""

_LEVELS = {"none": "stable", "moderate": "moderate drift", "large": "large drift"}


def render(
    run: RunRecord,
    examples: Examples,
    changes: RunDiff | None = None,
    thumbnails: Mapping[str, bytes] | None = None,
) -> str:
    """Return the page as HTML text.

    Args:
        run: content of run.json.
        examples: sample photos of labels and of rejections.
        changes: difference from the previous run; None if there is none.
        thumbnails: JPEGs by uri; a photo without one is shown as text.
    """
    page = _Page(run, examples, changes, thumbnails or {})
    names = ", ".join(model_key(model) for model in run["models"])
    return document(f"{names}: {run['run_id']}", *page.render_parts(names))


def select_photos(run: RunRecord, examples: Examples) -> list[str]:
    """Return the uris of the photos that the page shows, at most MAX_PHOTOS."""
    samples = _select_samples(run, examples)
    uris = [example.uri for _, labels in samples for _, photos in labels for example in photos]
    return list(dict.fromkeys(uris))[:MAX_PHOTOS]


def _select_samples(
    run: RunRecord, examples: Examples
) -> Iterator[tuple[str, list[tuple[str, Sequence[Example]]]]]:
    """Yield each model with its most frequent labels and their sample photos."""
    max_labels = max(1, MAX_PHOTOS // MAX_PER_LABEL // max(1, len(run["models"])))
    for model in run["models"]:
        chosen = examples.models.get(model_key(model), {})
        labels = sorted(chosen, key=lambda label: (-model["labels"].get(label, 0), label))[:max_labels]
        yield model_key(model), [(label, chosen[label]) for label in labels]


class _Page:
    """Renderer of the page's parts.

    Args:
        run: content of run.json.
        examples: sample photos.
        changes: difference from the previous run, or None.
        thumbnails: JPEGs by uri.
    """

    def __init__(
        self, run: RunRecord, examples: Examples, changes: RunDiff | None, thumbnails: Mapping[str, bytes]
    ) -> None:
        self._run = run
        self._examples = examples
        self._changes = changes
        self._thumbnails = thumbnails
        self._decisions = {model_key(model): DecisionCounts.from_json(model) for model in run["models"]}
        self._several = len(self._decisions) > 1

    def render_parts(self, names: str) -> Iterator[Element | None]:
        """Yield the parts of the page, in their order."""
        yield self._render_header(names)
        yield self._render_drift()
        for name, decisions in self._decisions.items():
            yield self._render_labels(name, decisions)
        for name, chosen in _select_samples(self._run, self._examples):
            yield self._render_samples(name, chosen)
        yield self._render_rejected()
        yield self._render_stages()
        yield self._render_details()

    def _title(self, title: str, name: str) -> str:
        """Return a section's title, with the model's name if the run has several models."""
        return f"{title}: {name}" if self._several else title

    def _render_header(self, names: str) -> Element:
        run, speed = self._run, self._run["this_run"]
        rows, rejected, photos = run["rows"], run["rejected"], run["photos"]
        abstained = sum(decisions.abstained for decisions in self._decisions.values())
        known = f"{pluralize(run['known_photos'], 'photo')} scored before" if run.get("known_photos") else ""
        embedded = f"{speed['photos_embedded']:,} embedded, {speed['reused_embeddings']:,} reused"
        return element(
            "header",
            element("h1", names, dir="auto"),
            element(
                "p",
                f"Scores of {pluralize(photos, 'photo')}, run {run['run_id']}, {self._format_started()}",
                class_="soft",
            ),
            element(
                "dl",
                key_figure("Photos", f"{photos:,}", known or pluralize(rows, "row")),
                key_figure("Rejected", f"{rejected:,}", f"{_format_share(rejected, photos)} of all photos"),
                key_figure("Abstained", f"{abstained:,}", f"{_format_share(abstained, rows)} of all rows"),
                key_figure("Photos per second", _format_rate(speed["photos_per_second"]), embedded),
                key_figure("Duration", format_duration(run["seconds"]), "wall time of the whole command"),
                self._render_cost(),
                class_="figures",
            ),
        )

    def _format_started(self) -> str:
        return f"{datetime.fromisoformat(self._run['started']):%d %B %Y, %H:%M} UTC"

    def _render_cost(self) -> Element:
        cost, core = (
            self._run["this_run"][name] for name in ("cost_per_million", "core_seconds_per_million")
        )
        hours = "" if core is None else f"{core / 3600:,.1f} core hours"
        if cost is None:
            return key_figure(
                "Cost per million photos", hours or "–", "give --price_per_hour for the cost in money"
            )
        return key_figure(
            "Cost per million photos", f"{cost:,.2f}", f"at {self._run['price_per_hour']:g} per hour; {hours}"
        )

    def _render_drift(self) -> Element:
        if self._changes is None:
            return section("Drift", "There is no previous run to compare with.")
        rows = [
            _format_change(self._title(what, name), change)
            for name, found in self._changes.models.items()
            for what, change in zip(("Labels", "Scores"), found.values(), strict=False)
        ]
        if self._changes.embeddings:
            rows.append(_format_change("Embeddings", self._changes.embeddings))
        if not rows:
            words = f"Run {self._changes.since} has nothing that this run can be compared with."
            return section("Drift", words)
        table = table_of(
            ("", "Difference", "By chance at most", "Moderate from", "Verdict"),
            rows,
            "Labels and scores: population stability index (PSI). Embeddings: distance between the means, "
            "in units of the spread of the photos.",
        )
        return section(
            "Drift",
            f"Compared with run {self._changes.since}.",
            element("div", table, class_="card wide"),
        )

    def _render_labels(self, name: str, decisions: DecisionCounts) -> Element:
        before = self._changes.before.get(name) if self._changes else None
        counts = drift.list_label_counts(decisions, before or DecisionCounts())
        # At least 1, so that runs without photos divide by something.
        total = max(1, sum(count for _, count, _ in counts))
        total_before = max(1, sum(earlier for *_, earlier in counts))
        largest = max((count / total for _, count, _ in counts), default=1) or 1
        rows: list[Sequence[Child]] = []
        for label, count, earlier in counts[:MAX_LABELS]:
            share = count / total
            cells: list[Child] = [
                bidi_isolate(label) if label != drift.ABSTAINED else element("i", "no label"),
                f"{count:,}",
                percent(share),
                element("div", class_="meter", style=f"width:{100 * share / largest:.1f}%"),
            ]
            if before:
                share_before = earlier / total_before
                cells += [percent(share_before), f"{100 * (share - share_before):+.1f}"]
            rows.append(cells)
        more = f"The {MAX_LABELS} most frequent of {len(counts)}." if len(counts) > MAX_LABELS else ""
        heads = ("Label", "Photos", "Share", "", *(("Previous run", "Change in points") if before else ()))
        histogram = charts.draw_score_histogram(decisions.scores, before.scores if before else None)
        caption = "Top score of each photo, after calibration" + (
            "; the line is the previous run." if before else "."
        )
        return section(
            self._title("Labels", name),
            "",
            element("div", table_of(heads, rows, more), class_="card wide shares"),
            element("div", diagram("Score histogram", histogram, caption), class_="charts"),
        )

    def _render_samples(self, name: str, chosen: Sequence[tuple[str, Sequence[Example]]]) -> Element | None:
        if not chosen:
            return None
        return section(
            self._title("Sample photos", name),
            "Photos of the most frequent labels, chosen at random by the hash of their content.",
            *(
                element(
                    "section",
                    element("h3", bidi_isolate(label)),
                    element(
                        "ul", *(self._render_sample(label, example) for example in examples), class_="gallery"
                    ),
                )
                for label, examples in chosen
            ),
        )

    def _render_sample(self, label: str, example: Example) -> Element:
        score = math.nan if example.score is None else example.score
        return element(
            "li",
            image(self._thumbnails.get(example.uri), f"A photo classified as {label}", THUMBNAIL_PIXELS),
            element("p", element("span", percent(score, 0), class_="score")),
            element("p", example.uri, class_="path"),
        )

    def _render_rejected(self) -> Element:
        examples = self._examples.rejected
        counts = {
            Status(name): count
            for name, count in self._run["statuses"].items()
            if name in list(Status) and not Status(name).usable
        }
        if not counts:
            return section("Rejected photos", "No photo was rejected.")
        rows = [
            (
                element("span", status.value, element("div", status.meaning, class_="soft small")),
                f"{count:,}",
                element(
                    "ul",
                    *(_render_rejection(example) for example in examples.get(status.value, ())),
                    class_="small",
                ),
            )
            for status, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]
        words = "Each rejected photo has a row in the scores, with its status and the reason."
        table = table_of(("Status", "Photos", "Examples"), rows)
        return section("Rejected photos", words, element("div", table, class_="card wide"))

    def _render_stages(self) -> Element:
        figures = self._run["this_run"]
        stages, photos = figures["seconds_by_stage"], figures["photos"]
        if not stages:
            return section("Time by stage", "This run had no photos to process.")
        total = sum(stages.values()) or 1.0
        rows: list[Sequence[Child]] = [
            (
                stage,
                f"{seconds:,.2f} s",
                f"{1000 * seconds / photos:.2f} ms" if photos else "–",
                element("div", class_="meter", style=f"width:{100 * seconds / total:.1f}%"),
            )
            for stage, seconds in sorted(stages.items(), key=lambda item: -item[1])
        ]
        words = (
            f"{pluralize(photos, 'photo')} of this run. The times of read and convert are sums over threads "
            "that overlap with embed."
        )
        table = table_of(("Stage", "Time", "Per photo", ""), rows)
        return section("Time by stage", words, element("div", table, class_="card wide shares"))

    def _render_details(self) -> Element:
        settings = {
            name: _format_setting(value)
            for name, value in self._run["settings"].items()
            if value not in (None, "")
        }
        models = {model_key(model): str(model["digest"]) for model in self._run["models"]}
        parts = (("Settings", settings), ("Models", models), ("Package versions", self._run["packages"]))
        return section(
            "Run details",
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


def _format_change(what: str, change: Change) -> Sequence[Child]:
    """Return the table row of a drift figure."""
    kind = {"none": "good", "large": "bad"}.get(change.level)
    return (
        what,
        f"{change.value:.3f}",
        f"{change.chance:.3f}",
        f"{change.moderate:g}",
        element("b", _LEVELS[change.level], class_=kind),
    )


def _render_rejection(example: Example) -> Element:
    detail = element("div", example.detail) if example.detail else None
    return element("li", element("span", example.uri, class_="path"), detail)


def _format_share(count: int, whole: int) -> str:
    return percent(count / whole) if whole else "–"


def _format_rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _format_setting(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

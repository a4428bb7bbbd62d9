"""The page of a scoring run, of what its run.json says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from batch.monitoring import drift
from batch.monitoring.drift import Change, DecisionCounts
from batch.monitoring.progress import format_duration
from batch.monitoring.sample_photos import MAX_PER_LABEL, Example, Examples
from batch.output.run_diff import RunDiff, RunRecord, model_key
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
"""Pixels of a picture."""

MAX_PHOTOS = 60
"""Photos shown of all models together; each takes some 8 KB."""

MAX_LABELS = 50
"""Labels in the table, the most frequent first."""

_LEVELS = {"none": "as before", "moderate": "worth a look", "large": "another population"}


def render(
    run: RunRecord,
    examples: Examples,
    changes: RunDiff | None = None,
    pictures: Mapping[str, bytes] | None = None,
) -> str:
    """The page.

    Args:
        run: what run.json says.
        examples: photos that stand for labels and reasons.
        changes: since another run; None where there is none.
        pictures: small JPEGs by uri; a photo without one is told in words.
    """
    page = _Page(run, examples, changes, pictures or {})
    names = ", ".join(model_key(model) for model in run["models"])
    return document(f"{names}: {run['run_id']}", *page.parts(names))


def select_photos(run: RunRecord, examples: Examples) -> list[str]:
    """The photos that the page shows, at most MAX_PHOTOS."""
    galleries = _gallery(run, examples)
    found = [example.uri for _, labels in galleries for _, photos in labels for example in photos]
    return list(dict.fromkeys(found))[:MAX_PHOTOS]


def _gallery(run: RunRecord, examples: Examples) -> Iterator[tuple[str, list[tuple[str, Sequence[Example]]]]]:
    """Of each model the most frequent labels, with the photos that stand for them."""
    most = max(1, MAX_PHOTOS // MAX_PER_LABEL // max(1, len(run["models"])))
    for model in run["models"]:
        chosen = examples.models.get(model_key(model), {})
        labels = sorted(chosen, key=lambda label: (-model["labels"].get(label, 0), label))[:most]
        yield model_key(model), [(label, chosen[label]) for label in labels]


class _Page:
    """The parts of the page, in their order."""

    def __init__(
        self, run: RunRecord, examples: Examples, changes: RunDiff | None, pictures: Mapping[str, bytes]
    ) -> None:
        self._run = run
        self._examples = examples
        self._changes = changes
        self._pictures = pictures
        self._decisions = {model_key(model): DecisionCounts.from_json(model) for model in run["models"]}
        self._several = len(self._decisions) > 1

    def parts(self, names: str) -> Iterator[Element | None]:
        yield self.headline(names)
        yield self.changes()
        for name, decisions in self._decisions.items():
            yield self.labels(name, decisions)
        for name, chosen in _gallery(self._run, self._examples):
            yield self.gallery(name, chosen)
        yield self.rejected()
        yield self.time()
        yield self.about()

    def _of(self, title: str, name: str) -> str:
        return f"{title}: {name}" if self._several else title

    def headline(self, names: str) -> Element:
        run, speed = self._run, self._run["this_run"]
        rows, rejected, photos = run["rows"], run["rejected"], run["photos"]
        abstained = sum(decisions.abstained for decisions in self._decisions.values())
        known = f"{pluralize(run['known_photos'], 'photo')} known before" if run.get("known_photos") else ""
        embedded = f"{speed['photos_embedded']:,} embedded, {speed['reused_embeddings']:,} known or identical"
        return element(
            "header",
            element("h1", names, dir="auto"),
            element(
                "p",
                f"Scores of {pluralize(photos, 'photo')}, run {run['run_id']}, {self._when()}",
                class_="soft",
            ),
            element(
                "dl",
                key_figure("Photos", f"{photos:,}", known or pluralize(rows, "row")),
                key_figure("Rejected", f"{rejected:,}", f"{_part(rejected, photos)} of all photos"),
                key_figure("Without a label", f"{abstained:,}", f"{_part(abstained, rows)} of all rows"),
                key_figure("Photos a second", _plain(speed["photos_per_second"]), embedded),
                key_figure("Time", format_duration(run["seconds"]), "from the command to the last file"),
                self._cost(),
                class_="figures",
            ),
        )

    def _when(self) -> str:
        return f"{datetime.fromisoformat(self._run['started']):%d %B %Y, %H:%M} UTC"

    def _cost(self) -> Element:
        cost, core = (
            self._run["this_run"][name] for name in ("cost_per_million", "core_seconds_per_million")
        )
        hours = "" if core is None else f"{core / 3600:,.1f} core hours"
        if cost is None:
            return key_figure(
                "A million photos", hours or "–", "of one core; --price_per_hour says what it costs"
            )
        return key_figure(
            "A million photos", f"{cost:,.2f}", f"at {self._run['price_per_hour']:g} an hour; {hours}"
        )

    def changes(self) -> Element:
        if self._changes is None:
            return section("Since the last run", "There is no earlier run here to compare with.")
        rows = [
            _change(self._of(what, name), change)
            for name, found in self._changes.models.items()
            for what, change in zip(("Labels", "Scores"), found.values(), strict=False)
        ]
        if self._changes.embeddings:
            rows.append(_change("Photos, as the backbone sees them", self._changes.embeddings))
        if not rows:
            words = f"Run {self._changes.since} tells nothing that this one can be compared with."
            return section("Since the last run", words)
        table = table_of(
            ("", "Difference", "By chance up to", "Worth a look from", "Verdict"),
            rows,
            "Labels and scores: population stability index. Photos: distance of the mean embeddings, "
            "in units of the photos' own spread.",
        )
        return section(
            "Since the last run",
            f"Compared with run {self._changes.since}.",
            element("div", table, class_="card wide"),
        )

    def labels(self, name: str, decisions: DecisionCounts) -> Element:
        before = self._changes.before.get(name) if self._changes else None
        counts = drift.list_label_counts(decisions, before or DecisionCounts())
        now = max(1, sum(count for _, count, _ in counts))
        then = max(1, sum(earlier for *_, earlier in counts))
        most = max((count / now for _, count, _ in counts), default=1) or 1
        rows: list[Sequence[Child]] = []
        for label, count, earlier in counts[:MAX_LABELS]:
            share = count / now
            cells: list[Child] = [
                bidi_isolate(label) if label != drift.ABSTAINED else element("i", "no label"),
                f"{count:,}",
                percent(share),
                element("div", class_="meter", style=f"width:{100 * share / most:.1f}%"),
            ]
            if before:
                cells += [percent(earlier / then), f"{100 * (share - earlier / then):+.1f}"]
            rows.append(cells)
        more = f"The {MAX_LABELS} most frequent of {len(counts)}." if len(counts) > MAX_LABELS else ""
        heads = ("Label", "Photos", "Share", "", *(("Last run", "Points") if before else ()))
        scores = charts.scores(decisions.scores, before.scores if before else None)
        told = "Best score of each photo, after calibration" + (
            "; the line is the last run." if before else "."
        )
        return section(
            self._of("Labels", name),
            "",
            element("div", table_of(heads, rows, more), class_="card wide shares"),
            element("div", diagram("How sure the model is", scores, told), class_="charts"),
        )

    def gallery(self, name: str, chosen: Sequence[tuple[str, Sequence[Example]]]) -> Element | None:
        if not chosen:
            return None
        return section(
            self._of("Samples", name),
            "Photos of the most frequent labels, chosen by hash: neither the best nor the worst.",
            *(
                element(
                    "section",
                    element("h3", bidi_isolate(label)),
                    element("ul", *(self._sample(label, example) for example in examples), class_="gallery"),
                )
                for label, examples in chosen
            ),
        )

    def _sample(self, label: str, example: Example) -> Element:
        score = math.nan if example.score is None else example.score
        return element(
            "li",
            image(self._pictures.get(example.uri), f"A photo taken for {label}", THUMBNAIL_PIXELS),
            element("p", element("span", percent(score, 0), class_="score")),
            element("p", example.uri, class_="path"),
        )

    def rejected(self) -> Element | None:
        examples = self._examples.rejected
        counts = {
            Status(name): count
            for name, count in self._run["statuses"].items()
            if name in list(Status) and not Status(name).usable
        }
        if not counts:
            return section("Rejected", "No photo was rejected.")
        rows = [
            (
                element("span", status.value, element("div", status.meaning, class_="soft small")),
                f"{count:,}",
                element(
                    "ul", *(_reason(example) for example in examples.get(status.value, ())), class_="small"
                ),
            )
            for status, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]
        words = "Every one of them is a row of the scores, with its reason. Here are a few."
        table = table_of(("Reason", "Photos", "Such as"), rows)
        return section("Rejected", words, element("div", table, class_="card wide"))

    def time(self) -> Element | None:
        figures = self._run["this_run"]
        stages, photos = figures["seconds_by_stage"], figures["photos"]
        if not stages:
            return section("Time", "There was nothing to do.")
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
            f"Of {pluralize(photos, 'photo')} of this run. Reading and converting are sums over threads, "
            "and overlap with embedding."
        )
        table = table_of(("Stage", "Time", "A photo", ""), rows)
        return section("Time by stage", words, element("div", table, class_="card wide shares"))

    def about(self) -> Element:
        settings = {
            name: _said(value) for name, value in self._run["settings"].items() if value not in (None, "")
        }
        models = {model_key(model): str(model["digest"]) for model in self._run["models"]}
        parts = (("Settings", settings), ("Models", models), ("Versions", self._run["packages"]))
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


def _change(what: str, change: Change) -> Sequence[Child]:
    kind = {"none": "good", "large": "bad"}.get(change.level)
    return (
        what,
        f"{change.value:.3f}",
        f"{change.chance:.3f}",
        f"{change.moderate:g}",
        element("b", _LEVELS[change.level], class_=kind),
    )


def _reason(example: Example) -> Element:
    detail = element("div", example.detail) if example.detail else None
    return element("li", element("span", example.uri, class_="path"), detail)


def _part(count: int, whole: int) -> str:
    return percent(count / whole) if whole else "–"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _said(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

"""The HTML page of a scoring run, rendered from its run.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from batch.monitoring import drift
from batch.monitoring.drift import DecisionCounts
from batch.monitoring.engines import describe_engines
from batch.monitoring.progress import format_duration
from batch.monitoring.sample_photos import MAX_PER_LABEL, Example, Examples
from batch.output.run_diff import RunDiff, model_key
from batch.output.run_record import RunRecord
from batch.report.charts import draw_score_histogram
from serving import html
from serving.contract import Status
from serving.photos.thumbnails import make_thumbnails

THUMBNAIL_PIXELS = 160
"""Width and height of a thumbnail."""

MAX_PHOTOS = 60
"""Photos shown for all models together; each adds some 8 KB to the page."""

MAX_LABELS = 50
"""Rows of the label table, most frequent labels first."""


def build(run: RunRecord, examples: Examples, changes: RunDiff | None = None) -> bytes:
    """Return the page with thumbnails as HTML in UTF-8; a photo that cannot be read has none.

    Args:
        run: content of run.json.
        examples: sample photos of labels and of rejections.
        changes: difference from the previous run; None if there is none.
    """
    thumbnails = make_thumbnails(select_photos(run, examples), THUMBNAIL_PIXELS)
    return render(run, examples, changes, thumbnails).encode()


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
    return html.render(
        "batch.report",
        run=run,
        started=datetime.fromisoformat(run["started"]),
        duration=format_duration(run["seconds"]),
        changes=changes,
        models=[
            _describe_model(
                model_key(model),
                DecisionCounts.from_json(model),
                changes.before.get(model_key(model)) if changes else None,
            )
            for model in run["models"]
        ],
        max_labels=MAX_LABELS,
        samples=list(_select_samples(run, examples)),
        thumbnails=thumbnails or {},
        side=THUMBNAIL_PIXELS,
        rejected=_list_rejected(run["statuses"]),
        examples=examples.rejected,
        settings={name: _format_setting(value) for name, value in run["settings"].items()},
        engines=describe_engines(run.get("cpu", ""), run["this_run"].get("engines", [])),
        digests={model_key(model): model["digest"] for model in run["models"]},
    )


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


def _describe_model(name: str, now: DecisionCounts, before: DecisionCounts | None) -> dict[str, Any]:
    """Return what the template shows of a model's decisions, now and in the previous run."""
    return {
        "name": name,
        "abstained": now.abstained,
        "compared": before is not None,
        "counts": drift.list_label_counts(now, before or DecisionCounts()),
        "histogram": draw_score_histogram(now.scores, before.scores if before else None),
    }


def _list_rejected(statuses: Mapping[str, int]) -> list[tuple[Status, int]]:
    """Return the statuses of rejected photos and the number of photos of each, most frequent first."""
    counts = [
        (Status(name), count)
        for name, count in statuses.items()
        if name in list(Status) and not Status(name).usable
    ]
    return sorted(counts, key=lambda item: (-item[1], item[0]))


def _format_setting(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value

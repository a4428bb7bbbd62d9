"""Model card of a bundle: README.md with the YAML header that Hugging Face reads, for people.

It is made from the bundle metadata alone, so that it also describes a bundle that was exported again. The
header is written as JSON, which is YAML; no YAML library is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving import contract
from serving.bundle import BundleMetadata
from serving.text import escape_controls
from trainer.backbones.aliases import find_alias
from trainer.dataset.dataset import FEW_PHOTOS

MAX_OPEN_LABELS = 30
"""Labels up to which their table is shown; with more it is collapsed."""

MAX_NAMED = 5
"""Largest number of labels that a sentence names."""

_MARKUP = re.compile(r"([\\`*_\[\]<>|&~#])")
_NOT_YAML = re.compile("[\ufeff\ufffe\uffff]")
"""Characters that JSON may contain and YAML may not, besides control characters."""

_SETS = {
    "test": "Test photos",
    "validation": "Validation photos",
    "cross-validation": "Cross-validation that chose the settings",
}


def write(directory: Path, metadata: BundleMetadata, name: str) -> None:
    """Write the model card to the directory of a bundle.

    Args:
        directory: directory of the bundle.
        metadata: metadata of the bundle.
        name: name of the model.
    """
    text = compose(metadata, name)
    (directory / contract.MODEL_CARD_FILE).write_text(text, encoding="utf-8", errors="replace", newline="\n")


def compose(metadata: BundleMetadata, name: str) -> str:
    """Return the text of the model card."""
    sections = (
        _describe_use(metadata),
        _describe_data(metadata),
        _describe_figures(metadata),
        _describe_labels(metadata),
        _describe_limits(metadata),
        _describe_backbone(metadata),
        _describe_versions(metadata),
    )
    body = [f"# {_escape(name)}", "", *_summarize(metadata), *(line for lines in sections for line in lines)]
    return "\n".join([*_make_header(metadata, name), *body]).rstrip() + "\n"


# --- Header -----------------------------------------------------------------------------------------------


def _make_header(metadata: BundleMetadata, name: str) -> list[str]:
    """Return the lines of the header, one for each key."""
    tags = ["hubhead", "transfer-learning", "saved-model", str(metadata.backbone.get("handle", ""))]
    header: dict[str, Any] = {
        "library_name": "hubhead",
        "pipeline_tag": "image-classification" if metadata.labels else "image-feature-extraction",
        "tags": [tag for tag in tags if tag],
    }
    test = metadata.metrics.get("test")
    if test and (accuracy := test.get("accuracy")) and accuracy.get("value") is not None:
        header["metrics"] = ["accuracy"]
        header["model-index"] = [{"name": name, "results": [_make_result(name, test, accuracy)]}]
    return ["---", *(f"{key}: {_to_yaml(value)}" for key, value in header.items()), "---", ""]


def _make_result(name: str, test: Mapping[str, Any], accuracy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of the test photos in the header."""
    interval = {"photos": accuracy["n"], "interval_95": [accuracy.get("low"), accuracy.get("high")]}
    metrics = [{"type": "accuracy", "name": "Accuracy", "value": accuracy["value"], "args": interval}]
    if (loss := test.get("log_loss")) is not None:
        metrics.append({"type": "log_loss", "name": "Log-loss", "value": loss})
    return {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": "imagefolder", "name": f"{name}, test photos", "split": "test"},
        "metrics": metrics,
    }


def _to_yaml(value: Any) -> str:
    text = escape_controls(json.dumps(value, ensure_ascii=False))
    return _NOT_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


# --- Sections ---------------------------------------------------------------------------------------------


def _summarize(metadata: BundleMetadata) -> list[str]:
    handle = _escape(str(metadata.backbone.get("handle", "")))
    created = metadata.provenance.get("created") or "an unknown date"
    if not metadata.labels:
        return [
            f"The backbone {handle} as a SavedModel that takes photo bytes; made by hubhead, {created}.",
            "",
        ]
    kind = metadata.head.get("kind", "linear")
    return [
        f"A classifier of photos with {len(metadata.labels)} labels: a {kind} head on the backbone {handle}. "
        f"Trained by hubhead, {created}.",
        "",
    ]


def _describe_use(metadata: BundleMetadata) -> list[str]:
    if not metadata.labels:
        answer = "A photo becomes an embedding (signature `embed`). There are no labels."
        return ["## Intended use", "", answer, ""]
    return [
        "## Intended use",
        "",
        "The model answers which one of its labels a photo has. The photos should be of the kind that it was",
        "trained on: the same cameras, subjects and framing. It finds no objects within a photo, and gives",
        "one label, not several. It was not evaluated for decisions about people.",
        "",
        "Photos go in as the bytes of a file (JPEG, PNG, GIF, BMP, WebP); labels, probabilities and a status",
        "come out. A file that is no usable photo gets the reason as its status.",
        "",
        "```sh",
        "hubhead predict photo.jpg --model DIRECTORY",
        "hubhead serve --model_base_path DIRECTORY_ABOVE",
        "```",
        "",
        "TensorFlow Serving and `tf.saved_model.load` load it as well: signature `serving_default`.",
        "",
    ]


def _describe_data(metadata: BundleMetadata) -> list[str]:
    data = metadata.data
    if not data.get("photos"):
        return []
    sizes = ", ".join(f"{count:,} for {subset}" for subset, count in data["photos"].items() if count)
    left_out = {
        "files could not be used": data.get("left_out"),
        "files had the content of another one": data.get("duplicates"),
        "photos are near-duplicates of others": data.get("near_duplicates"),
    }
    found = [f"{count:,} {what}" for what, count in left_out.items() if count]
    return [
        "## Data",
        "",
        f"{sum(data['photos'].values()):,} distinct photos: {sizes}."
        + (f" {'; '.join(found)}." if found else ""),
        "The photos are not part of the bundle. It contains digests of them, and thumbnails of some",
        "if it has a `report.html`.",
        "",
    ]


def _describe_figures(metadata: BundleMetadata) -> list[str]:
    """Return the section of the figures: a row for each metric, a column for each set of photos."""
    sets = {title: found for key, title in _SETS.items() if (found := metadata.metrics.get(key))}
    if crossed := metadata.metrics.get("cross_validate"):
        title = f"{crossed['folds']}-fold cross-validation"
        sets[title] = crossed.get("first", {}) | {"accuracy": crossed.get("accuracy")}
    if not sets:
        return []
    rows = {
        "Photos": [str((found.get("accuracy") or {}).get("n", "–")) for found in sets.values()],
        "Accuracy": [_format_share(found.get("accuracy")) for found in sets.values()],
        "Top-3 accuracy": [_format_share(found.get("top_3")) for found in sets.values()],
        "Log-loss": [_format_loss(found) for found in sets.values()],
        "F1, mean over labels": [
            _format_estimate((found.get("macro") or {}).get("f1")) for found in sets.values()
        ],
        "Calibration error": [
            _format_number((found.get("calibration") or {}).get("error")) for found in sets.values()
        ],
    }
    lines = ["## Figures", "", "With 95 % intervals for other photos of the same kind.", ""]
    lines += [_make_row(["metric", *sets]), _make_row(["---"] * (1 + len(sets)))]
    lines += [_make_row([name, *values]) for name, values in rows.items()]
    return [*lines, ""]


def _describe_labels(metadata: BundleMetadata) -> list[str]:
    """Return the table of the labels, collapsed if there are many."""
    if not metadata.labels:
        return []
    photos = metadata.data.get("labels", {})
    metrics = metadata.metrics
    measured: Mapping[str, Any] = next((found for key in _SETS if (found := metrics.get(key))), {})
    table = [
        _make_row(["label", "photos", "recall", "precision"]),
        _make_row(["---", "---:", "---", "---"]),
        *(
            _make_row(
                [
                    _escape(label),
                    f"{photos[label]:,}" if label in photos else "–",
                    _format_share((measured.get("recall") or {}).get(label)),
                    _format_share((measured.get("precision") or {}).get(label)),
                ]
            )
            for label in metadata.labels
        ),
    ]
    if len(metadata.labels) > MAX_OPEN_LABELS:
        table = [
            "<details>",
            f"<summary>{len(metadata.labels)} labels</summary>",
            "",
            *table,
            "",
            "</details>",
        ]
    where = next((title.lower() for key, title in _SETS.items() if metrics.get(key)), "")
    note = [f"Recall and precision on: {where}.", ""] if where else []
    return ["## Labels", "", *note, *table, ""]


def _describe_limits(metadata: BundleMetadata) -> list[str]:
    found = [f"- {sentence}" for sentence in _list_limits(metadata)]
    return ["## Limits", "", *found, ""] if found else []


def _list_limits(metadata: BundleMetadata) -> Iterator[str]:
    """Yield one sentence for each limit that follows from the metadata."""
    data, metrics, calibration = metadata.data, metadata.metrics, metadata.calibration
    if metadata.labels:
        if calibration.get("threshold") or "novelty_threshold" in calibration:
            yield "It abstains (an empty label) where it is not sure, but not on all photos of other things."
        else:
            yield "It always answers: a photo of something else gets one of the labels too."
        accuracy = (metrics.get("test") or {}).get("accuracy") or {}
        if not accuracy.get("n"):
            yield "There were no test photos: the figures are of photos that its settings were chosen by."
        photos = data.get("labels", {})
        few = [label for label in metadata.labels if photos.get(label, FEW_PHOTOS) < FEW_PHOTOS]
        if few:
            yield f"Fewer than {FEW_PHOTOS} photos: {_name_some(few)}."
        recall = (metrics.get("test") or {}).get("recall") or {}
        unmeasured = [label for label in metadata.labels if recall and not (recall.get(label) or {}).get("n")]
        if unmeasured:
            yield f"No test photo, so no figure of their own: {_name_some(unmeasured)}."
        if alike := data.get("test_photos_like_training_photos"):
            yield (
                f"{alike:,} test photos have a near-duplicate among the training photos, so the test figures "
                "may be too good."
            )
    if suspected := (metrics.get("label_errors") or {}).get("suspected"):
        yield f"{suspected:,} photos may have a wrong label; `report.html` shows the most suspicious ones."
    yield "Photos that were made to mislead a network (adversarial ones) are not detected."
    yield "What the backbone learned from its own training photos, biases included, is part of the model."


def _describe_backbone(metadata: BundleMetadata) -> list[str]:
    backbone = metadata.backbone
    handle = str(backbone.get("handle", ""))
    alias = find_alias(handle)
    size = " x ".join(map(str, backbone.get("image_size", [])))
    rows = [
        ("handle", _escape(handle)),
        ("source", _escape(alias.handle or alias.origin) if alias else "as the handle says"),
        ("input", f"{size} pixels" if size else "–"),
        ("embedding", f"{metadata.dimension:,} values"),
        ("fingerprint", f"`{metadata.fingerprint}`"),
        ("licence", alias.licence if alias and alias.licence else "see its source"),
    ]
    return [
        "## Backbone and licence",
        "",
        _make_row(["", ""]),
        _make_row(["---", "---"]),
        *(_make_row([name, value]) for name, value in rows),
        "",
        "A licence for this model is not stated here: it depends on that of the backbone, and on the rights",
        "in the photos that it was trained on.",
        "",
    ]


def _describe_versions(metadata: BundleMetadata) -> list[str]:
    provenance = metadata.provenance
    versions = [
        f"{_escape(name)} {_escape(number)}" for name, number in provenance.get("packages", {}).items()
    ]
    engines = [
        f"{entry.get('photos', 0):,} photos by {_escape(str(entry.get('engine')))}"
        + (f" on {_escape(str(entry['cpu']))}" if entry.get("cpu") else "")
        for entry in provenance.get("engines", ())
    ]
    lines = ["## Versions", "", f"{', '.join(versions) or 'unknown'}."]
    if engines:
        lines.append(f"Embedded: {'; '.join(engines)}.")
    return [*lines, "", "`assets.extra/hubhead.json` has all of this, and more, for programs.", ""]


# --- Cells ------------------------------------------------------------------------------------------------


def _make_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Return text as it is to be read, whatever Markdown or a terminal would make of its characters."""
    return _MARKUP.sub(r"\\\1", escape_controls(text, newlines=True))


def _name_some(labels: Sequence[str]) -> str:
    """Return the first labels, and the number of the others."""
    named = ", ".join(map(_escape, labels[:MAX_NAMED]))
    rest = len(labels) - MAX_NAMED
    return f"{named} and {rest} more" if rest > 0 else named


def _format_share(share: Mapping[str, Any] | None) -> str:
    if not share or share.get("value") is None:
        return "–"
    interval = (share.get("low"), share.get("high"))
    shown = f"{share['value']:.1%}"
    return shown if None in interval else f"{shown} ({interval[0]:.1%} to {interval[1]:.1%})"


def _format_estimate(estimate: Mapping[str, Any] | None) -> str:
    if not estimate or estimate.get("value") is None:
        return "–"
    low, high = estimate.get("low"), estimate.get("high")
    shown = f"{estimate['value']:.3f}"
    return shown if low is None or high is None else f"{shown} ({low:.3f} to {high:.3f})"


def _format_loss(figures: Mapping[str, Any]) -> str:
    low, high = figures.get("log_loss_interval") or (None, None)
    return _format_estimate({"value": figures.get("log_loss"), "low": low, "high": high})


def _format_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"

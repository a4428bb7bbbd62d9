"""The model card: a YAML header that parses, figures with intervals, limits that follow from the metadata."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from serving.bundle import BundleMetadata
from tests.support.repository import REPO
from trainer.export import model_card

RECORDED = BundleMetadata(**json.loads((REPO / "tests/corpus/hubhead_0_1.json").read_text("utf-8")))
"""Metadata of a real training on the sample photos."""

ODD = [
    "yes",
    "a: b # c",
    '"quoted" \\ back',
    "寿司 🍣",
    "\x1b[31mred\x7f\x85",
    "\ufeffbom \ud800 half",
    "| cell | <b>bold</b> *x* `y` &amp;",
    "- [link](http://example.org)",
]


def read_header(text: str) -> dict[str, Any]:
    """Return the YAML header of a card."""
    start, header, _ = text.split("---\n", 2)
    assert start == ""
    return dict(yaml.safe_load(header))


def read_tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a card as rows of cells, as a reader sees them."""
    tables: list[list[list[str]]] = []
    is_cell = False
    for token in MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2]):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type.startswith(("td_", "th_")):
            is_cell = token.nesting == 1
        elif token.type == "inline" and is_cell:
            tables[-1][-1].append("".join(t.content for t in token.children or ()))
    return tables


def find_table(text: str, first: str) -> list[list[str]]:
    """Return the table with this heading of its first column."""
    return next(table for table in read_tables(text) if table[0][0] == first)


def make_metadata(labels: list[str], **values: Any) -> BundleMetadata:
    """Return metadata with these labels, and figures for each of them."""
    share = {"value": 0.5, "n": 2, "low": 0.1, "high": 0.9}
    by_label = dict.fromkeys(labels, share)
    figures = {"accuracy": share | {"n": 2 * len(labels)}, "recall": by_label, "precision": by_label}
    data = {"photos": {"training": 40, "testing": 8}, "labels": dict.fromkeys(labels, 24)}
    return replace(RECORDED, labels=labels, metrics={"test": figures}, data=data, **values)


def test_the_header_is_yaml_that_hugging_face_reads() -> None:
    header = read_header(model_card.compose(RECORDED, "food"))
    accuracy = RECORDED.metrics["test"]["accuracy"]
    [model] = header["model-index"]
    [result] = model["results"]
    assert header["pipeline_tag"] == "image-classification"
    assert {"hubhead", "efficientnet_lite0"} <= set(header["tags"])
    assert (model["name"], result["task"]["type"]) == ("food", "image-classification")
    assert {"type", "name"} <= result["dataset"].keys()
    assert result["metrics"][0]["value"] == accuracy["value"]
    assert result["metrics"][0]["args"] == {
        "photos": accuracy["n"],
        "interval_95": [accuracy["low"], accuracy["high"]],
    }


@pytest.mark.parametrize("name", ODD)
def test_odd_names_of_models_stay_text_in_the_header_and_in_the_page(name: str, tmp_path: Path) -> None:
    model_card.write(tmp_path, RECORDED, name)
    text = (tmp_path / "README.md").read_text("utf-8")
    [model] = read_header(text)["model-index"]
    assert model["name"] == name or not name.isprintable()
    assert not set(text) & set("\x1b\x7f\x85")


def test_every_section_of_a_model_card_is_there() -> None:
    text = model_card.compose(RECORDED, "food")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# food",
        "## Intended use",
        "## Data",
        "## Figures",
        "## Labels",
        "## Limits",
        "## Backbone and licence",
        "## Versions",
    ]
    rows = dict(find_table(text, "")[1:])
    assert rows["licence"] == "Apache-2.0"
    assert rows["input"] == "224 x 224 pixels"
    assert f"hubhead {RECORDED.provenance['packages']['hubhead']}" in text


def test_figures_have_their_interval_and_their_photos() -> None:
    table = find_table(model_card.compose(RECORDED, "food"), "metric")
    rows = {row[0]: row[1:] for row in table}
    accuracy = RECORDED.metrics["test"]["accuracy"]
    assert rows["Photos"][0] == str(accuracy["n"])
    assert rows["Accuracy"][0] == f"{accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%})"
    assert rows["metric"] == ["Test photos", "Cross-validation that chose the settings"]


def test_odd_labels_stay_text_in_the_table() -> None:
    text = model_card.compose(make_metadata(ODD), "odd")
    shown = [row[0] for row in find_table(text, "label")[1:]]
    assert len(shown) == len(ODD)
    assert [a for a, b in zip(shown, ODD, strict=True) if a != b and b.isprintable()] == []
    assert "<b>" not in text
    assert "\x1b" not in text


def test_the_table_of_many_labels_is_collapsed() -> None:
    few, many = ([f"label {n:03}" for n in range(count)] for count in (30, 257))
    assert "<details>" not in model_card.compose(make_metadata(few), "few")
    text = model_card.compose(make_metadata(many), "many")
    assert "<summary>257 labels</summary>" in text
    assert len(find_table(text, "label")) == 1 + 257


def test_limits_follow_from_the_metadata() -> None:
    metadata = make_metadata(["a", "b"])
    assert "It always answers" in model_card.compose(metadata, "x")
    assert "Fewer than 20" not in model_card.compose(metadata, "x")
    abstaining = replace(metadata, calibration={"temperature": 1.0, "threshold": 0.4})
    assert "It abstains" in model_card.compose(abstaining, "x")
    rare = replace(metadata, data=metadata.data | {"labels": {"a": 24, "b": 3}})
    assert "- Fewer than 20 photos: b." in model_card.compose(rare, "x")
    leaked = replace(metadata, data=metadata.data | {"test_photos_like_training_photos": 2})
    assert "2 test photos have a near-duplicate" in model_card.compose(leaked, "x")
    untested = replace(metadata, metrics={})
    text = model_card.compose(untested, "x")
    assert "There were no test photos" in text
    assert "model-index" not in read_header(text)


def test_a_headless_bundle_has_a_card_without_labels() -> None:
    headless = replace(RECORDED, labels=[], metrics={}, data={}, head={}, calibration={})
    text = model_card.compose(headless, "backbone")
    assert read_header(text)["pipeline_tag"] == "image-feature-extraction"
    assert "## Labels" not in text
    assert "signature `embed`" in text


def test_a_backbone_of_unknown_licence_refers_to_its_source() -> None:
    foreign = replace(RECORDED, backbone=RECORDED.backbone | {"handle": "https://example.org/net/1"})
    assert dict(find_table(model_card.compose(foreign, "x"), "")[1:])["licence"] == "see its source"

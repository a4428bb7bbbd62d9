"""The report of a scoring run: drift verdicts, escaping, and bounds on its size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batch import report
from batch.monitoring.drift import DecisionCounts
from batch.monitoring.sample_photos import Example, Examples
from batch.monitoring.stats import Stats
from batch.output import run_diff, run_record
from batch.output.dataset import Output
from batch.output.run_diff import compare_runs
from batch.output.run_record import encode_run
from batch.report.page import MAX_LABELS, MAX_PHOTOS, select_photos
from serving.errors import OutputError
from tests.support.batch_report import COUNTS, make_examples, make_run, make_stats
from tests.support.html_assertions import HOSTILE, Page, check_self_contained

CORPUS = Path(__file__).parents[2] / "corpus"


def test_drift_is_reported_beside_its_chance_level(tmp_path: Path) -> None:
    before = make_run(make_stats(COUNTS), "2026-05-30")
    same = make_run(make_stats({label: 2 * count for label, count in COUNTS.items()}))
    found = compare_runs(same, before)
    assert found.since == "2026-05-30"
    assert {change.level for change in found.models["food/3"].values()} == {"none"}
    assert found.embeddings is not None
    assert found.embeddings.level == "none"
    other = compare_runs(make_run(make_stats({"soup": 900, "salad": 100}, seed=3)), before)
    assert {change.level for change in other.models["food/3"].values()} == {"large"}
    assert other.embeddings is not None
    assert other.embeddings.level == "large"
    text = report.render(make_run(make_stats({"soup": 900, "salad": 100}, seed=3)), Examples(), other)
    words = Page(text).text
    assert words.count("large drift") == 3
    assert "Compared with run 2026-05-30." in words
    assert "salad 100" in words


def test_versions_of_a_model_are_compared_and_embeddings_only_with_the_same_backbone() -> None:
    before = make_run(make_stats(COUNTS), "2026-05-30")
    newer = make_run(make_stats(COUNTS, models=("food/4", "pets/1")))
    assert list(compare_runs(newer, before).models) == ["food/4"]
    newer["models"][0]["fingerprint"] = "f2"
    assert compare_runs(newer, before).embeddings is None


def test_runs_of_early_versions_are_compared_as_far_as_they_have_figures() -> None:
    run = make_run(make_stats({"fruits": 900}, models=("food/1",)))
    for model in run["models"]:
        model["fingerprint"] = "21b94c068b771e9fe5a4e07b51ed6e43b117f96782153e36a566018cd1a9ab2c"
    today = compare_runs(run, run_record.read_run(str(CORPUS / "run_0_1.json")))
    assert list(today.models) == ["food/1"]
    assert today.embeddings is not None
    first = compare_runs(run, run_record.read_run(str(CORPUS / "run_schema_1.json")))
    assert (first.models, first.embeddings) == ({}, None)
    other_bins = {**run, "models": [{**run["models"][0], "scores": [1, 2]}]}
    assert compare_runs(run, other_bins).models == {}


def test_previous_run_is_the_newest_one_with_another_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = Output(str(tmp_path))
    assert run_diff.find_previous_run(output, "a") is None
    for run_id, hour in (("b", "03"), ("z", "01"), ("a", "04")):
        run = make_run(make_stats(COUNTS), run_id)
        content = encode_run({**run, "finished": f"2026-05-31T{hour}:00:00+00:00"})
        output.publish_run(run["run_id"], content, None)
    (tmp_path / "_hubhead" / "runs" / "torn.json").write_text('{"fini')
    newer = json.dumps({**run, "schema": 9, "finished": "2027"})
    (tmp_path / "_hubhead" / "runs" / "newer.json").write_text(newer)
    found = run_diff.find_previous_run(output, "a")
    assert found is not None
    assert found["run_id"] == "b"
    newer, torn = sorted(record.getMessage() for record in caplog.records)
    assert "newer.json has schema 9" in newer
    assert newer.endswith("Upgrade hubhead.")
    assert "torn.json cannot be read" in torn


def test_labels_paths_and_settings_are_escaped(tmp_path: Path) -> None:
    labels = {HOSTILE: 10, "half \ud800 of a character, \x00": 5}
    names = ("<b>food</b>/1",)
    chosen = Examples(
        {names[0]: {label: (Example("k", HOSTILE, 0.5),) for label in labels}},
        {"corrupt": (Example("", HOSTILE, None, HOSTILE),)},
    )
    run = make_run(make_stats(labels, models=names), photos=HOSTILE)
    text = report.render(run, chosen, compare_runs(run, make_run(make_stats(labels, models=names), HOSTILE)))
    check_self_contained(text)
    assert Page(text).text.count(HOSTILE) >= 6


def test_many_labels_and_models_keep_the_page_small(tmp_path: Path) -> None:
    labels = {f"label {number}": 2000 - number for number in range(1000)}
    models = ("food/3", "food/4")
    chosen = make_examples(tmp_path, tuple(labels)[:30], models)
    run = make_run(make_stats(labels, models=models))
    assert len(select_photos(run, chosen)) <= MAX_PHOTOS
    text = report.render(run, chosen)
    page = Page(text)
    assert f"The {MAX_LABELS} most frequent of 1001." in page.text
    assert "Sample photos: food/4" in page.text
    assert len(text) < 400_000


def test_run_without_photos_renders() -> None:
    stats = Stats(models={"food/3": DecisionCounts()})
    words = Page(report.render(make_run(stats), Examples())).text
    assert "This run had no photos to process." in words
    assert "No photo was rejected." in words


def test_unwritable_report_raises_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        Output(str(tmp_path / "file")).publish_run("night", b"{}", b"<html>")

"""The report of a scoring run: drift verdicts, escaping, and bounds on its size."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch import report
from batch.monitoring.drift import DecisionCounts
from batch.monitoring.sample_photos import Example, Examples
from batch.monitoring.stats import Stats
from batch.output import run_diff
from batch.output.dataset import Output
from batch.output.run_diff import compare_runs
from batch.output.run_record import write_run
from batch.report.page import MAX_LABELS, MAX_PHOTOS, select_photos
from serving.errors import OutputError
from tests.support.batch_report import COUNTS, make_examples, make_run, make_stats
from tests.support.html_assertions import HOSTILE, Page, check_self_contained


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
    assert compare_runs(newer, {"run_id": "old", "schema": 1}).models == {}


def test_previous_run_is_the_newest_one_with_another_id(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    assert run_diff.find_previous_run(output, "a") is None
    for run_id, hour in (("b", "03"), ("z", "01"), ("a", "04")):
        run = make_run(make_stats(COUNTS), run_id)
        write_run({**run, "finished": f"2026-05-31T{hour}:00:00+00:00"}, output)
    (tmp_path / "_hubhead" / "runs" / "torn.json").write_text('{"fini')
    found = run_diff.find_previous_run(output, "a")
    assert found is not None
    assert found["run_id"] == "b"


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
        report.write(str(tmp_path / "file" / "report.html"), make_run(make_stats(COUNTS)), Examples())

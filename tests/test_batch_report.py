"""The report of a scoring run: it tells what run.json says, holds nothing but text, and can be looked at."""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from batch import report
from batch.monitoring.drift import BINS, Counts, Moments
from batch.monitoring.sample_photos import Example, Examples
from batch.monitoring.stats import Stats
from batch.output import run_diff
from batch.output.dataset import Output
from batch.output.run_diff import between
from batch.output.run_record import Summary, describe, write_run
from batch.report.page import LISTED, PICTURES, pictured
from serving.errors import OutputError
from tests.looking import CHROMIUM, HOSTILE, Page, check_self_contained, look

STARTED = datetime(2026, 5, 31, 1, 30, tzinfo=UTC)
LABELS = ("crème brûlée", "寿司", "soup")


def figures(labels: dict[str, int], *, seed: int = 0, models: tuple[str, ...] = ("food/3",)) -> Stats:
    """The figures of a made-up run; `seed` moves the scores and the photos."""
    random = np.random.default_rng(seed)
    count = sum(labels.values())
    scores, _ = np.histogram(random.beta(6 - seed, 2, count + 40), BINS, (0, 1))
    return Stats(
        photos=count + 47,
        rows=(count + 47) * len(models),
        statuses=Counter({"ok": count + 40, "corrupt": 5, "unreadable": 2}),
        models={name: Counts(Counter(labels), 40, scores.tolist()) for name in models},
        embeddings=Moments.of(random.normal(0.2 * seed, 1, (count, 64))),
        embedded=count,
        reused=40,
        seconds={
            "read": 3.25,
            "embed": 40.5,
            "store": 0.5,
            "classify": 0.25,
            "rows": 0.125,
            "sketch": 0.0625,
        },
        elapsed=42.0,
        core_seconds=84.0,
    )


def run_of(stats: Stats, run_id: str = "2026-05-31", **settings: Any) -> dict[str, Any]:
    summary = Summary(
        "out", stats, stats, stats, 0, 3, 61.0, run_id=run_id, lines=stats.photos, price_per_hour=0.36
    )
    models = [
        {
            "name": name.rpartition("/")[0],
            "version": int(name.rpartition("/")[2]),
            "digest": "d1",
            "fingerprint": "f1",
        }
        for name in stats.models
    ]
    return describe(summary, started=STARTED, models=models, settings={"photos": "uploads", **settings})


def examples_in(
    top: Path, labels: tuple[str, ...] = LABELS, models: tuple[str, ...] = ("food/3",)
) -> Examples:
    """Four small photos of each label, and rejected ones of two reasons."""
    chosen = {}
    for number, label in enumerate(labels):
        found = []
        for copy in range(4):
            path = top / f"{number} {copy} <b>&amp;.jpg"
            Image.new("RGB", (60, 40), ((67 * number) % 256, 200 - 50 * copy, 90)).save(path)
            found.append(Example(hashlib.sha256(str(path).encode()).hexdigest(), str(path), 0.25 * copy))
        chosen[label] = tuple(found)
    rejected = {
        "corrupt": (Example("", "uploads/torn.jpg", None, "120 bytes, beginning ff d8"),),
        "unreadable": (Example("", "uploads/secret.jpg", None, "Permission denied"),),
    }
    return Examples(dict.fromkeys(models, chosen), rejected)


COUNTS = {"crème brûlée": 600, "寿司": 300, "soup": 100}


def test_the_page_tells_what_the_run_did(tmp_path: Path) -> None:
    run, chosen = run_of(figures(COUNTS)), examples_in(tmp_path)
    report.write(str(tmp_path / "report.html"), run, chosen)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    page = Page(text)
    words = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for told in (
        "food/3",
        "1,047 photos",
        "31 May 2026, 01:30 UTC",
        "0.7 % of all photos",
        "Permission denied",
        "uploads/torn.jpg",
        "embed 40.50 s",
        "crème brûlée 600 57.7 %",
        "There is no earlier run",
        "no label 40 3.8 %",
    ):
        assert told in words, told
    assert f"{42 / 3600 / 1047 * 1e6 * 0.36:,.2f}" in words  # hours a million, times the price
    images = page.all("img")
    assert len(images) == 12
    assert all(image["alt"] for image in images)
    assert len(text) < 200_000


def test_what_changed_is_told_beside_chance(tmp_path: Path) -> None:
    before = run_of(figures(COUNTS), "2026-05-30")
    same = run_of(figures({label: 2 * count for label, count in COUNTS.items()}))
    found = between(same, before)
    assert found.since == "2026-05-30"
    assert {change.level for change in found.models["food/3"].values()} == {"none"}
    assert found.embeddings is not None
    assert found.embeddings.level == "none"
    other = between(run_of(figures({"soup": 900, "salad": 100}, seed=3)), before)
    assert {change.level for change in other.models["food/3"].values()} == {"large"}
    assert other.embeddings is not None
    assert other.embeddings.level == "large"
    text = report.render(run_of(figures({"soup": 900, "salad": 100}, seed=3)), Examples(), other)
    words = Page(text).text
    assert words.count("another population") == 3
    assert "Compared with run 2026-05-30." in words
    assert "salad 100" in words


def test_another_version_is_compared_and_another_backbone_only_by_its_answers() -> None:
    before = run_of(figures(COUNTS), "2026-05-30")
    newer = run_of(figures(COUNTS, models=("food/4", "pets/1")))
    assert list(between(newer, before).models) == ["food/4"]
    newer["models"][0]["fingerprint"] = "f2"
    assert between(newer, before).embeddings is None
    assert between(newer, {"run_id": "old", "schema": 1}).models == {}


def test_the_newest_other_run_is_the_one_to_compare_with(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    assert run_diff.previous(output, "a") is None
    for run_id, hour in (("b", "03"), ("z", "01"), ("a", "04")):
        run = run_of(figures(COUNTS), run_id)
        write_run({**run, "finished": f"2026-05-31T{hour}:00:00+00:00"}, output)
    (tmp_path / "_hubhead" / "runs" / "torn.json").write_text('{"fini')
    found = run_diff.previous(output, "a")
    assert found is not None
    assert found["run_id"] == "b"


def test_photos_that_are_gone_or_broken_leave_a_gap(tmp_path: Path) -> None:
    chosen = examples_in(tmp_path)
    run = run_of(figures(COUNTS))
    gone, broken = pictured(run, chosen)[:2]
    Path(gone).unlink()
    Path(broken).write_bytes(b"\xff\xd8\xff no photo")
    report.write(str(tmp_path / "report.html"), run, chosen)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("no picture") == 2
    assert len(page.all("img")) == 10


def test_words_of_others_are_text_wherever_they_stand(tmp_path: Path) -> None:
    labels = {HOSTILE: 10, "half \ud800 of a character, \x00": 5}
    names = ("<b>food</b>/1",)
    chosen = Examples(
        {names[0]: {label: (Example("k", HOSTILE, 0.5),) for label in labels}},
        {"corrupt": (Example("", HOSTILE, None, HOSTILE),)},
    )
    run = run_of(figures(labels, models=names), photos=HOSTILE)
    text = report.render(run, chosen, between(run, run_of(figures(labels, models=names), HOSTILE)))
    check_self_contained(text)
    assert Page(text).text.count(HOSTILE) >= 6


def test_many_labels_and_models_stay_within_bounds(tmp_path: Path) -> None:
    labels = {f"label {number}": 2000 - number for number in range(1000)}
    models = ("food/3", "food/4")
    chosen = examples_in(tmp_path, tuple(labels)[:30], models)
    run = run_of(figures(labels, models=models))
    assert len(pictured(run, chosen)) <= PICTURES
    text = report.render(run, chosen)
    page = Page(text)
    assert f"The {LISTED} most frequent of 1001." in page.text
    assert "Samples: food/4" in page.text
    assert len(text) < 400_000


def test_a_run_with_nothing_to_do_has_a_page() -> None:
    stats = Stats(models={"food/3": Counts()})
    words = Page(report.render(run_of(stats), Examples())).text
    assert "There was nothing to do." in words
    assert "No photo was rejected." in words


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        report.write(str(tmp_path / "file" / "report.html"), run_of(figures(COUNTS)), Examples())


@pytest.mark.slow
@pytest.mark.needs(CHROMIUM)
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_a_browser_shows_it_whole(tmp_path: Path, width: int) -> None:
    labels = {**COUNTS, "Donaudampfschifffahrtsgesellschaftskapitän" * 2: 50}
    run = run_of(figures(labels), embedding_store="gs://a-bucket/with/a/long/name/" + "x" * 80)
    before = run_of(figures(COUNTS, seed=2), "2026-05-30")
    report.write(
        str(tmp_path / "report.html"), run, examples_in(tmp_path, tuple(labels)), between(run, before)
    )
    found = look(tmp_path / "report.html", tmp_path, width)
    assert found["inner"] == width
    assert found["width"] <= width, "the page can be scrolled sideways"
    assert found["height"] > 2000
    assert found["images"] == found["shown"] == 16
    assert found["flat"] == 0
    assert found["ordered"]

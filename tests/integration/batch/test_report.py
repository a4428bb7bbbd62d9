"""The report of a scoring run: its content, missing photos, and its layout in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch import report
from batch.output.run_diff import compare_runs
from batch.report.page import select_photos
from tests.support.batch_report import COUNTS, make_examples, make_run, make_stats
from tests.support.html_assertions import CHROMIUM, Page, check_self_contained, measure_page


def test_report_shows_the_figures_of_run_json(tmp_path: Path) -> None:
    run, chosen = make_run(make_stats(COUNTS)), make_examples(tmp_path)
    (tmp_path / "report.html").write_bytes(report.build(run, chosen))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_self_contained(text)
    page = Page(text)
    words = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for expected in (
        "food/3",
        "1,047 photos",
        "31 May 2026, 01:30 UTC",
        "0.7 % of all photos",
        "Permission denied",
        "uploads/torn.jpg",
        "embed 40.50 s",
        "crème brûlée 600 57.7 %",
        "There is no previous run",
        "no label 40 3.8 %",
    ):
        assert expected in words, expected
    assert f"{42 / 3600 / 1047 * 1e6 * 0.36:,.2f}" in words  # hours per million, times the price
    images = page.all("img")
    assert len(images) == 12
    assert all(image["alt"] for image in images)
    assert len(text) < 200_000


def test_missing_or_broken_photos_are_shown_without_thumbnail(tmp_path: Path) -> None:
    chosen = make_examples(tmp_path)
    run = make_run(make_stats(COUNTS))
    gone, broken = select_photos(run, chosen)[:2]
    Path(gone).unlink()
    Path(broken).write_bytes(b"\xff\xd8\xff no photo")
    (tmp_path / "report.html").write_bytes(report.build(run, chosen))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.text.count("no picture") == 2
    assert len(page.all("img")) == 10


@pytest.mark.slow
@pytest.mark.needs(CHROMIUM)
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_browser_renders_without_horizontal_scrolling(tmp_path: Path, width: int) -> None:
    labels = {**COUNTS, "Donaudampfschifffahrtsgesellschaftskapitän" * 2: 50}
    run = make_run(make_stats(labels), embedding_store="gs://a-bucket/with/a/long/name/" + "x" * 80)
    before = make_run(make_stats(COUNTS, seed=2), "2026-05-30")
    page = report.build(run, make_examples(tmp_path, tuple(labels)), compare_runs(run, before))
    (tmp_path / "report.html").write_bytes(page)
    found = measure_page(tmp_path / "report.html", tmp_path, width)
    assert found["inner"] == width
    assert found["width"] <= width, "the page can be scrolled sideways"
    assert found["height"] > 2000
    assert found["images"] == found["shown"] == 16
    assert found["flat"] == 0
    assert found["broken"] == []
    assert found["ordered"]

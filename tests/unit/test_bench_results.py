"""Records of benchmarks, and the tables that are generated from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import results
from tests.support.reference import benchmarks


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> dict[str, results.Table]:
    tables: dict[str, results.Table] = {}
    monkeypatch.setattr(results, "_tables", tables)
    monkeypatch.setattr(results, "_notes", [])
    return tables


@pytest.mark.usefixtures("tables")
def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    results.add_row("Fit", {"photos": 1000, "seconds": 0.25})
    results.add_row("Fit", {"photos": 10_000, "seconds": 1.5, "peak MB": 120.0})
    results.add_note("Medians.")
    path = tmp_path / "benchmarks" / "head.json"
    results.write(path, "head")
    found = results.read(path)
    assert found.tables[0].columns == ["photos", "seconds", "peak MB"]
    assert found.tables[0].rows == [[1000, 0.25, None], [10_000, 1.5, 120.0]]
    assert (found.name, found.notes) == ("head", ["Medians."])
    assert found.cores > 0
    assert "numpy" in found.packages


@pytest.mark.usefixtures("tables")
def test_without_a_path_or_without_figures_nothing_is_written(tmp_path: Path) -> None:
    results.write(tmp_path / "empty.json", "head")
    results.add_row("Fit", {"photos": 1})
    results.write(None, "head")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tables")
def test_a_page_shows_the_figures_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "REPO", tmp_path)
    assert "No record" in benchmarks.describe_benchmark("head")
    results.add_row("Fit", {"photos": 10_000, "seconds": 1.23456, "loss": 0.00001, "MB": 1234.5})
    results.write(tmp_path / results.DIRECTORY / "head.json", "head")
    text = benchmarks.describe_benchmark("head")
    assert "| 10,000 | 1.23 | 1.0e-05 | 1,234 |" in text
    assert results.make_record("head").date in text


def test_paths_are_no_part_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["bench", "--directory", "y", "--rounds", "3", "--output", "x.json", "what"]
    )
    assert results._format_command().endswith("--rounds 3 what")
    assert " y" not in results._format_command()

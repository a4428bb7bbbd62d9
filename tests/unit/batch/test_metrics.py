"""A run's figures as Prometheus reads them."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from batch.jobs import metrics
from batch.output.run_diff import compare_runs
from serving.errors import InputError, OutputError
from tests.support.metrics import run_of, values


def test_the_textfile_has_what_the_docs_name(tmp_path: Path) -> None:
    run = run_of({"apple": 60, "bread": 33})
    found = compare_runs(run, {**run_of({"apple": 30, "bread": 63}), "run_id": "a"})
    metrics.write_textfile(str(tmp_path / "deep" / "score.prom"), metrics.build_registry(run, found))
    (path,) = (tmp_path / "deep").iterdir()
    told = values(path.read_text())
    assert told[("photos",)] == told[("worked_photos",)] == 100
    assert told[("rejected_photos", "corrupt")] == 5
    assert told[("rejected_photos", "unreadable")] == 0
    assert told[("rows",)] == 95
    assert told[("unlabelled_rows",)] == 2
    assert told[("photos_per_second",)] == 50
    assert told[("duration_seconds",)] == 12.5
    assert told[("change", "labels")] > 0.25
    assert told[("change", "scores")] == 0
    assert told[("embedding_shift",)] == 0
    assert time.time() - told[("success_timestamp_seconds",)] < 60
    documented = {
        line.split("|")[1].strip() for line in (metrics.__doc__ or "").splitlines() if "| hubhead_" in line
    }
    assert documented == {f"hubhead_score_{name[0]}" for name in told}


def test_a_first_run_and_one_with_nothing_to_do_have_fewer() -> None:
    from prometheus_client import generate_latest

    told = values(generate_latest(metrics.build_registry(run_of({}) | {"this_run": NOTHING})).decode())
    assert ("photos_per_second",) not in told
    assert ("embedding_shift",) not in told
    assert told[("worked_photos",)] == 0


NOTHING = {"photos": 0, "photos_per_second": None}


def test_a_place_that_cannot_be_written_and_a_missing_extra_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        metrics.write_textfile(str(tmp_path / "file" / "x.prom"), metrics.build_registry(run_of({})))
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InputError, match=r"hubhead\[metrics\]"):
        metrics.check_installed()

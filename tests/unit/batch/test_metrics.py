"""Prometheus metrics of a run: textfile, absent metrics, missing extra."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batch.jobs import metrics
from batch.jobs.score import ScoreSettings
from batch.monitoring.stats import Stats
from batch.output.run_diff import compare_runs
from batch.output.run_record import Summary, build_run_record
from serving.client import ClientConfig
from serving.errors import InputError, OutputError
from tests.support.metrics import make_run, parse_samples


def test_textfile_has_exactly_the_documented_metrics(tmp_path: Path) -> None:
    run = make_run({"apple": 60, "bread": 33})
    changes = compare_runs(run, {**make_run({"apple": 30, "bread": 63}), "run_id": "a"})
    metrics.write_textfile(str(tmp_path / "deep" / "score.prom"), metrics.build_registry(run, changes))
    (path,) = (tmp_path / "deep").iterdir()
    samples = parse_samples(path.read_text())
    assert samples[("photos",)] == samples[("worked_photos",)] == 100
    assert samples[("rejected_photos", "corrupt")] == 5
    assert samples[("rejected_photos", "unreadable")] == 0
    assert samples[("rows",)] == 95
    assert samples[("unlabelled_rows",)] == 2
    assert samples[("photos_per_second",)] == 50
    assert samples[("duration_seconds",)] == 12.5
    assert samples[("change", "labels")] > 0.25
    assert samples[("change", "scores")] == 0
    assert samples[("embedding_shift",)] == 0
    assert time.time() - samples[("success_timestamp_seconds",)] < 60
    documented = {
        line.split("|")[1].strip() for line in (metrics.__doc__ or "").splitlines() if "| hubhead_" in line
    }
    assert documented == {f"hubhead_score_{name[0]}" for name in samples}


def test_metrics_without_a_value_are_absent() -> None:
    from prometheus_client import generate_latest

    samples = parse_samples(
        generate_latest(metrics.build_registry(make_run({}) | {"this_run": NOTHING})).decode()
    )
    assert ("photos_per_second",) not in samples
    assert ("embedding_shift",) not in samples
    assert samples[("worked_photos",)] == 0


NOTHING = {"photos": 0, "photos_per_second": None}


def test_unwritable_textfile_and_missing_prometheus_client_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        metrics.write_textfile(str(tmp_path / "file" / "x.prom"), metrics.build_registry(make_run({})))
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InputError, match=r"hubhead\[metrics\]"):
        metrics.check_installed()


def test_settings_in_run_json_contain_no_secrets() -> None:
    settings = ScoreSettings(
        (),
        "s3://key:secret@bucket/scores",
        metrics_push="http://user:secret@gateway",
        server=ClientConfig("host:1", headers={"authorization": "secret"}),
        beam_args=("--s3_secret_access_key=secret", "--runner=FlinkRunner"),
    )
    summary = Summary("", Stats(), Stats(), Stats(), 0, 0, 1.0)
    run = build_run_record(summary, started=datetime.now(UTC), models=[], settings=settings.to_json())
    assert run["settings"]["metrics_push"] == "http://***@gateway"
    assert run["settings"]["beam_args"] == ["--s3_secret_access_key=***", "--runner=FlinkRunner"]
    assert "secret" not in json.dumps(run).replace("secret_access", "")

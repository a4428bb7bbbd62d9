"""Options of a command reach the settings of its job, and from there run.json and hubhead.json."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import trainer.commands.train as train_command
from batch.jobs import rescore as rescore_job
from batch.jobs import score as score_job
from batch.output.run_record import Summary, build_run_record
from hubhead import hubhead
from trainer.training import run as train_job


class Stopped(Exception):
    """Ends a command where its job would begin."""


def run_until_job(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, *words: str) -> Any:
    """Run a command up to its job, and return the settings of the job."""
    found: list[Any] = []

    def stop(settings: Any, *_arguments: Any, **_options: Any) -> None:
        found.append(settings)
        raise Stopped

    monkeypatch.setattr(module, function, stop)
    result = CliRunner().invoke(hubhead, words)
    assert isinstance(result.exception, Stopped), result.output
    return found[0]


def test_options_of_score_are_recorded_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        '[score]\nmodel = ["models/food"]\nshare = "1/8"\nmetrics_push = "https://a:hunter2@push"\n'
    )
    words = (
        "score",
        "--config",
        str(config),
        "--photos",
        "s3://key:hunter2@photos",
        "--output",
        str(tmp_path),
    )
    settings = run_until_job(monkeypatch, score_job, "score", *words)
    recorded = settings.configuration["score"]
    assert (recorded["model"], recorded["share"], recorded["engine"]) == (["models/food"], "1/8", "auto")
    assert "metrics_push" not in recorded
    run = build_run_record(Summary("out"), started=datetime.now(UTC), models=[], settings=settings.to_json())
    assert run["configuration"] == settings.configuration
    assert "configuration" not in run["settings"]
    assert "hunter2" not in str(run["configuration"])


def test_options_of_rescore_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "rescore",
        "--scores",
        "old",
        "--model",
        "models/food",
        "--output",
        str(tmp_path),
        "--run_id",
        "one",
    )
    settings = run_until_job(monkeypatch, rescore_job, "rescore", *words)
    assert settings.configuration["rescore"]["run_id"] == "one"
    assert settings.configuration["rescore"]["scores"] == "old"


def test_options_of_train_are_recorded_without_paths_of_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_command, "require_extra", lambda *_names: None)
    words = (
        "train",
        "--image_dir",
        "photos",
        "--saved_model_dir",
        "/home/me/models",
        "--top_k",
        "3",
        "--quiet",
    )
    settings = run_until_job(monkeypatch, train_job, "train", *words)
    recorded = settings.configuration["train"]
    assert (recorded["image_dir"], recorded["top_k"], recorded["head"]) == ("photos", 3, "linear")
    assert "/home/me" not in str(recorded)
    assert not {"quiet", "verbose", "json"} & recorded.keys()

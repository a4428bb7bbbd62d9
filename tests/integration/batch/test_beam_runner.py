"""Engines that cannot be used are said in one line, with what to do about it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from batch.beam import runner
from batch.monitoring.stats import Meter
from batch.output.dataset import Output
from batch.scoring.worker import ScoresTarget, ShardWorker
from serving import contract
from serving.bundle import BundleMetadata
from serving.errors import HubheadError

FLINK = ("--runner=FlinkRunner", "--flink_master=localhost:1")

pytestmark = pytest.mark.beam


@pytest.fixture
def task(tmp_path: Path) -> ShardWorker:
    """One that never gets to work."""
    model = tmp_path / "models" / "food" / "1"
    model.mkdir(parents=True)
    (model / contract.SAVED_MODEL_FILE).write_bytes(b"")
    BundleMetadata(["apple"], {"fingerprint": "f", "dimension": 4}, {}).write(model)
    (tmp_path / "plan.txt").write_text("")
    scores = ScoresTarget(Output(str(tmp_path / "out")), "night", datetime.now(UTC), ("digest",))
    return ShardWorker((str(model),), str(tmp_path / "store"), str(tmp_path), scores)


def failure(task: ShardWorker, *beam_args: str) -> HubheadError:
    with pytest.raises(HubheadError) as raised:
        runner.run(str(Path(task.plan) / "plan.txt"), task, Meter(), [*FLINK, *beam_args])
    return raised.value


def test_a_jar_that_is_not_there(task: ShardWorker) -> None:
    error = failure(task, "--flink_job_server_jar=/nowhere/job-server.jar")
    assert 'Unable to parse jar URL "/nowhere/job-server.jar".' in error.what
    assert "gradlew" not in str(error)
    assert "Check the path of the job server's jar" in error.remedy


def test_no_java(task: ShardWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = tmp_path / "job-server.jar"
    jar.write_bytes(b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    error = failure(task, f"--flink_job_server_jar={jar}")
    assert "there is no java, which Beam's job server runs on" in error.what
    assert "Install Java 11 or later" in error.remedy


def test_a_job_server_that_does_not_answer(task: ShardWorker) -> None:
    error = failure(task, "--job_endpoint=localhost:1", "--job_server_timeout=1")
    assert error.what.startswith("The Beam job failed: ")
    assert "the engine can be reached" in error.remedy

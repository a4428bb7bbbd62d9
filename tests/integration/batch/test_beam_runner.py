"""Failures of a Flink job server are reported in one line, with a remedy."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from batch.beam import runner
from batch.monitoring.stats import Meter
from batch.output.attempt import Attempt
from batch.scoring.worker import ScoresTarget, ShardWorker
from serving import contract
from serving.bundle import BundleMetadata
from serving.errors import HubheadError

FLINK = ("--runner=FlinkRunner", "--flink_master=localhost:1")

pytestmark = [pytest.mark.beam, pytest.mark.server]


@pytest.fixture
def worker(tmp_path: Path) -> ShardWorker:
    """A worker that never gets a shard."""
    model = tmp_path / "models" / "food" / "1"
    model.mkdir(parents=True)
    (model / contract.SAVED_MODEL_FILE).write_bytes(b"")
    BundleMetadata(["apple"], {"fingerprint": "f", "dimension": 4}, {}).write(model)
    (tmp_path / "plan.txt").write_text("")
    scores = ScoresTarget(Attempt(str(tmp_path / "out"), "token"), "night", datetime.now(UTC), ("digest",))
    return ShardWorker((str(model),), str(tmp_path / "store"), str(tmp_path), scores)


def run_and_catch(worker: ShardWorker, *beam_args: str) -> HubheadError:
    with pytest.raises(HubheadError) as raised:
        runner.run(str(Path(worker.plan) / "plan.txt"), worker, Meter(), [*FLINK, *beam_args], name="job")
    return raised.value


def test_missing_job_server_jar_is_reported(worker: ShardWorker) -> None:
    error = run_and_catch(worker, "--flink_job_server_jar=/nowhere/job-server.jar")
    assert 'Unable to parse jar URL "/nowhere/job-server.jar".' in error.what
    assert "gradlew" not in str(error)
    assert "Check the path of the job server's jar" in error.remedy


def test_missing_java_is_reported(
    worker: ShardWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jar = tmp_path / "job-server.jar"
    jar.write_bytes(b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    error = run_and_catch(worker, f"--flink_job_server_jar={jar}")
    assert "java was not found, which Beam's job server needs" in error.what
    assert "Install Java 11 or later" in error.remedy


def test_unreachable_job_server_is_reported(worker: ShardWorker) -> None:
    error = run_and_catch(worker, "--job_endpoint=localhost:1", "--job_server_timeout=1")
    assert error.what.startswith("The Beam job failed: the job server localhost:1 does not answer (")
    assert "the cluster is reachable" in error.remedy


@pytest.mark.parametrize("is_distributed", [True, False])
def test_shards_are_distributed_among_several_workers_alone(
    worker: ShardWorker, is_distributed: bool
) -> None:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.utils.shared import Shared

    options = PipelineOptions(["--runner=FnApiRunner"])
    pipeline = runner._build_pipeline(options, worker.plan, worker, Shared(), is_distributed=is_distributed)
    assert "embed and score" in pipeline.applied_labels
    assert ("shards" in pipeline.applied_labels) is is_distributed

"""The job on an engine of other processes: a job server, and workers that may be killed.

The job server is Beam's own in Python, which speaks the protocol of Flink's; the workers are the
pool of the Python SDK (`--environment_type=EXTERNAL`), as in k8s/overlays/flink.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batch.jobs import score as pipeline
from batch.jobs.score import ScoreSettings
from tests.support import processes
from tests.support.fake_model import eventually, free_port
from tests.support.rescore import read_rows
from tests.support.score_job import GOOD, make_bundle

PHOTOS = 120
SECONDS = 180.0

pytestmark = [pytest.mark.tf, pytest.mark.beam]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Photos, a model, and the rows of a run in one process."""
    top = tmp_path_factory.mktemp("portable")
    photos = top / "photos"
    photos.mkdir()
    for number in range(PHOTOS):
        (photos / f"{number}.jpg").write_bytes(GOOD + bytes([number]) * number)
    (photos / "text.jpg").write_bytes(b"text")
    model = make_bundle(top / "models" / "food" / "1")
    settings = ScoreSettings(
        (model,), str(top / "out"), str(photos), embedding_store=str(top / "store"), shard_size=2
    )
    pipeline.score(settings)
    return {"photos": photos, "model": model, "rows": read_rows(top / "out")}


@contextmanager
def group(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all that it starts; nothing of it is left."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # Beam starts `python`
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=processes.environment({"PATH": path}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


@contextmanager
def job_server(tmp_path: Path) -> Iterator[int]:
    said = tmp_path / "port"
    said.unlink(missing_ok=True)
    module = "apache_beam.runners.portability.local_job_service_main"
    with group(module, "--port_file", str(said), "--staging_dir", str(tmp_path)):
        eventually(said.exists)
        yield int(said.read_text())


@contextmanager
def workers() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    with group("apache_beam.runners.worker.worker_pool_main", "--service_port", str(port)) as pool:
        eventually(lambda: answers(port))
        yield port, pool


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
        return True
    return False


def engine_of(server: int, pool: int) -> list[str]:
    """Beam's options."""
    return [
        "--runner=PortableRunner",
        f"--job_endpoint=localhost:{server}",
        "--environment_type=EXTERNAL",
        f"--environment_config=localhost:{pool}",
    ]


def score(job: dict[str, Any], tmp_path: Path, server: int, pool: int) -> subprocess.Popen[str]:
    arguments = ["score", "--photos", str(job["photos"]), "--model", str(job["model"])]
    arguments += ["--output", str(tmp_path / "out"), "--embedding_store", str(tmp_path / "store")]
    arguments += ["--shard_size", "2", "--run_id", "night", "--", *engine_of(server, pool)]
    return processes.start(arguments, tmp_path / "log")


def finished(tmp_path: Path) -> dict[str, int]:
    """The records of finished shards, and when they were written."""
    records = (tmp_path / "out" / "_hubhead" / "shards").glob("*.json")
    return {record.name: record.stat().st_mtime_ns for record in records}


def test_other_processes_give_the_same_rows_and_are_watched(job: dict[str, Any], tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    with job_server(tmp_path) as server, workers() as (pool, _):
        settings = ScoreSettings(
            (job["model"],),
            str(tmp_path / "out"),
            str(job["photos"]),
            embedding_store=str(tmp_path / "store"),
            shard_size=2,
            beam_args=tuple(engine_of(server, pool)),
        )
        summary = pipeline.score(settings, lambda now: seen.append((now.done, now.total, now.rejected)))
    assert summary.this_run.photos == PHOTOS + 1
    assert seen[-1] == (PHOTOS + 1, PHOTOS + 1, 1)
    assert len(seen) > PHOTOS // 2, "each shard is told by itself"
    assert read_rows(tmp_path / "out") == job["rows"]


def test_workers_killed_in_the_middle_cost_the_shards_they_were_at(
    job: dict[str, Any], tmp_path: Path
) -> None:
    with job_server(tmp_path) as server, workers() as (pool, process):
        first = score(job, tmp_path, server, pool)
        end = time.monotonic() + SECONDS
        while len(finished(tmp_path)) < 3:
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.002)
        kill(process)
        time.sleep(1)
        first.kill()  # some engines wait for ever for a worker that is gone
        first.communicate()
    before = finished(tmp_path)
    assert 3 <= len(before) < PHOTOS // 2, "it was not killed in the middle"
    assert not (tmp_path / "out" / "run.json").exists()
    with job_server(tmp_path) as server, workers() as (pool, _):
        second = score(job, tmp_path, server, pool)
        out, _ = second.communicate(timeout=SECONDS)
    assert second.returncode == 0, (tmp_path / "log").read_text()
    assert "of them were written by a previous run" in out
    assert read_rows(tmp_path / "out") == job["rows"]
    after = finished(tmp_path)
    assert {name: after[name] for name in before} == before, "a finished shard was done again"

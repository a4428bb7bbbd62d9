"""The job on a portable runner: workers in other processes, which may be killed.

The job server is Beam's own in Python, which speaks the same protocol as Flink's. The workers are the
pool of the Python SDK (`--environment_type=EXTERNAL`), as in k8s/overlays/flink.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batch.jobs import score as score_job
from batch.jobs.score import ScoreSettings
from tests.support import processes
from tests.support.beam_cluster import is_listening, kill_group, process_group
from tests.support.fake_model import eventually, free_port
from tests.support.rescore import read_rows
from tests.support.score_job import GOOD, make_bundle

PHOTOS = 120
SECONDS = 180.0

pytestmark = [pytest.mark.tf, pytest.mark.beam, pytest.mark.server]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Photos, a model, and the rows of a run with the default runner."""
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
    score_job.score(settings)
    return {"photos": photos, "model": model, "rows": read_rows(top / "out")}


@contextmanager
def job_server(tmp_path: Path) -> Iterator[int]:
    port_file = tmp_path / "port"
    port_file.unlink(missing_ok=True)
    module = "apache_beam.runners.portability.local_job_service_main"
    with process_group(module, "--port_file", str(port_file), "--staging_dir", str(tmp_path)):
        eventually(port_file.exists)
        yield int(port_file.read_text())


@contextmanager
def worker_pool() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    with process_group("apache_beam.runners.worker.worker_pool_main", "--service_port", str(port)) as pool:
        eventually(lambda: is_listening(port))
        yield port, pool


def beam_options(server: int, pool: int) -> list[str]:
    """Return the options of Beam for a job server and a worker pool."""
    return [
        "--runner=PortableRunner",
        f"--job_endpoint=localhost:{server}",
        "--environment_type=EXTERNAL",
        f"--environment_config=localhost:{pool}",
    ]


def score(reference: dict[str, Any], tmp_path: Path, server: int, pool: int) -> subprocess.Popen[str]:
    arguments = ["score", "--photos", str(reference["photos"]), "--model", str(reference["model"])]
    arguments += ["--output", str(tmp_path / "out"), "--embedding_store", str(tmp_path / "store")]
    arguments += ["--shard_size", "2", "--run_id", "night", "--", *beam_options(server, pool)]
    return processes.start(arguments, tmp_path / "log")


def list_records(tmp_path: Path) -> set[str]:
    """Return the ids of the shards that an attempt finished."""
    return {path.stem for path in tmp_path.glob("out/_hubhead/attempts/*/shards/*.json")}


def list_rows(tmp_path: Path) -> dict[str, int]:
    """Return the files of rows, published or not, with their times of modification."""
    return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("scores-*.parquet")}


def test_external_workers_give_the_same_rows_and_report_progress(
    reference: dict[str, Any], tmp_path: Path
) -> None:
    seen: list[tuple[int, int, int]] = []
    with job_server(tmp_path) as server, worker_pool() as (pool, _):
        settings = ScoreSettings(
            (reference["model"],),
            str(tmp_path / "out"),
            str(reference["photos"]),
            embedding_store=str(tmp_path / "store"),
            shard_size=2,
            beam_args=tuple(beam_options(server, pool)),
        )
        summary = score_job.score(settings, lambda now: seen.append((now.done, now.total, now.rejected)))
    assert summary.this_run.photos == PHOTOS + 1
    assert seen[-1] == (PHOTOS + 1, PHOTOS + 1, 1)
    assert len(seen) > PHOTOS // 2, "progress is reported for each shard"
    assert read_rows(tmp_path / "out") == reference["rows"]


def test_killed_workers_lose_only_their_unfinished_shards(reference: dict[str, Any], tmp_path: Path) -> None:
    with job_server(tmp_path) as server, worker_pool() as (pool, process):
        first = score(reference, tmp_path, server, pool)
        end = time.monotonic() + SECONDS
        while len(list_records(tmp_path)) < 3:
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.002)
        kill_group(process)
        time.sleep(1)
        first.kill()  # some runners wait forever for a lost worker
        first.communicate()
    before, files = list_records(tmp_path), list_rows(tmp_path)
    assert 3 <= len(before) < PHOTOS // 2, "it was not killed in the middle"
    assert not (tmp_path / "out" / "run.json").exists()
    with job_server(tmp_path) as server, worker_pool() as (pool, _):
        second = score(reference, tmp_path, server, pool)
        out, _ = second.communicate(timeout=SECONDS)
    assert second.returncode == 0, (tmp_path / "log").read_text()
    assert "of them were written by a previous run" in out
    assert read_rows(tmp_path / "out") == reference["rows"]
    after = list_rows(tmp_path)
    kept = {name: time for name, time in files.items() if name[7:39] in before}
    assert {name: after[name] for name in kept} == kept, "a finished shard was processed again"

"""Messages to the user of a cluster: while nothing happens, when something is missing, when interrupted.

The texts of the errors are those of Beam's job server and of its pool of workers.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from batch.beam.engine import EngineJob
from tests.support import processes
from tests.support.beam_cluster import (
    BeamCluster,
    delayed,
    is_listening,
    kill_group,
    process_group,
    write_delays,
)
from tests.support.fake_model import free_port
from tests.support.score_job import GOOD, make_bundle

pytestmark = [pytest.mark.tf, pytest.mark.beam, pytest.mark.server, pytest.mark.slow(seconds=60)]

PHOTOS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("models") / "food" / "1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BeamCluster]:
    with BeamCluster(tmp_path_factory.mktemp("cluster"), {}).run() as cluster:
        yield cluster


class Run:
    """A run of `hubhead score` in a process of its own, with a temporary directory of its own."""

    def __init__(self, tmp_path: Path, model: Path, *beam_args: str) -> None:
        self.top, self.output, self.log = tmp_path, tmp_path / "out", tmp_path / "log"
        photos, self.temporary = tmp_path / "photos", tmp_path / "tmp"
        for directory in (photos, self.temporary):
            directory.mkdir(exist_ok=True)
        for number in range(PHOTOS):
            if not (path := photos / f"{number}.jpg").exists():
                path.write_bytes(GOOD + bytes([number]) * number)
        arguments = ["score", "--photos", str(photos), "--model", str(model), "--output", str(self.output)]
        arguments += ["--embedding_store", str(tmp_path / "store"), "--shard_size", "2", "--", *beam_args]
        more = {"TMPDIR": str(self.temporary), **delayed(tmp_path / "delays")}
        self.process = processes.start(arguments, self.log, more)

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Wait until stderr has a text."""
        processes.eventually(lambda: text in self.log.read_text(), text, seconds)

    def end(self, number: int = 0) -> tuple[int, str]:
        """Send a signal, and return the exit code and stderr, which has no traceback."""
        if number:
            self.process.send_signal(number)
        self.process.communicate(timeout=90)
        errors = self.log.read_text()
        assert "Traceback" not in errors
        assert list(self.temporary.iterdir()) == [], "temporary files"
        return self.process.returncode, errors

    def count_finished(self) -> int:
        return len(list(self.output.glob("_hubhead/attempts/*/shards/*")))

    def is_free(self) -> bool:
        """Return whether the lease has been released."""
        newest = max((self.output / "_hubhead" / "lease").glob("0*"))
        return bool(json.loads(newest.read_text()).get("free"))


def beam_args(jobs: int, pool: int) -> list[str]:
    """Return the options of Beam for a job server and a pool."""
    return BeamCluster(Path(), {}, jobs, pool).beam_args


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("where", ["in process", "on a cluster"])
def test_an_interrupted_run_releases_its_lease_and_cancels_its_job(
    cluster: BeamCluster, model: Path, tmp_path: Path, where: str, number: int, code: int
) -> None:
    arguments = cluster.beam_args if where == "on a cluster" else []
    write_delays(tmp_path / "delays", "Attempt.commit 0.3")
    cluster.delay("Attempt.commit 0.3")
    run = Run(tmp_path, model, *arguments)
    processes.eventually(lambda: run.count_finished() >= 2, "finished shards")
    assert run.end(number)[0] == code
    assert run.is_free()
    finished = run.count_finished()
    if arguments:
        job = EngineJob.read(str(next(run.output.glob("_hubhead/attempts/*/job.json"))))
        assert job
        assert job.read_state() == "CANCELLED"
    write_delays(tmp_path / "delays")
    cluster.delay()
    again = Run(tmp_path, model, *arguments)
    out, _ = again.process.communicate(timeout=90)
    assert again.process.returncode == 0, again.log.read_text()
    assert int(re.findall(r"(\d+) of them were written by a previous run", out)[0]) >= finished
    assert "left a job" not in again.log.read_text()


def test_a_job_server_that_ends_is_named_when_its_job_cannot_be_cancelled(
    model: Path, tmp_path: Path
) -> None:
    jobs, pool = free_port(), free_port()
    with ExitStack() as stack:
        server = stack.enter_context(process_group("tests.support.beam_cluster", "jobs", str(jobs)))
        _start_pool(stack, pool, tmp_path, "exec sleep 100")
        processes.eventually(lambda: is_listening(jobs), "a job server")
        run = Run(tmp_path, model, *beam_args(jobs, pool))
        # Nothing is finished, but the user sees what the run waits for, and where to look.
        run.wait_for(f"0 of {PHOTOS} photos (0 %); no shard finished for 1", 30)
        assert re.search(
            rf"engine RUNNING \(job job-\S+, .*job server localhost:{jobs}, worker pool localhost:{pool}\)",
            run.log.read_text(),
        )
        kill_group(server)
        code, errors = run.end()
    assert code == 1
    assert "The job could not be cancelled (job job-" in errors
    assert f"): the job server localhost:{jobs} answers UNAVAILABLE. It cannot change the scores" in errors
    assert f"The Beam job failed: the job server localhost:{jobs} does not answer" in errors


def test_a_job_server_that_is_missing_is_named_while_the_run_waits_for_it(
    model: Path, tmp_path: Path
) -> None:
    jobs, pool = free_port(), free_port()
    run = Run(tmp_path, model, *beam_args(jobs, pool), "--job_server_timeout=14")
    run.wait_for(f"engine not reachable (the job server localhost:{jobs} answers UNAVAILABLE)", 30)
    code, errors = run.end()
    assert code == 1
    assert f"The Beam job failed: the job server localhost:{jobs} does not answer" in errors
    assert "Start it or correct --job_endpoint" in errors
    assert "could not be cancelled" not in errors


def test_a_pool_that_is_missing_is_named(cluster: BeamCluster, model: Path, tmp_path: Path) -> None:
    pool = free_port()
    code, errors = Run(tmp_path, model, *beam_args(cluster.jobs, pool)).end()
    assert code == 1
    assert f"The Beam job failed: the worker pool localhost:{pool} does not answer (" in errors
    assert "or correct --environment_config" in errors


@pytest.mark.parametrize(
    ("startup", "cause", "remedy"),
    [
        ("sys.modules['batch'] = None", "ModuleNotFoundError: No module named", "Install the same version"),
        (
            "import batch.output.attempt as a; a.Attempt.check = lambda _: 1 / 0",
            "ZeroDivisionError: division by zero.",
            "Correct the cause, which the engine's log describes (job ",
        ),
    ],
    ids=["without hubhead", "that raise"],
)
def test_workers_that_fail(
    cluster: BeamCluster, model: Path, tmp_path: Path, startup: str, cause: str, remedy: str
) -> None:
    directory, pool = tmp_path / "startup", free_port()
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(f"import sys\n{startup}\n")
    with ExitStack() as stack:
        _start_pool(stack, pool, tmp_path, f'PYTHONPATH={directory}:$PYTHONPATH exec "$0.real" "$@"')
        code, errors = Run(tmp_path, model, *beam_args(cluster.jobs, pool)).end()
    assert code == 1
    assert f"The Beam job failed: {cause}" in errors
    assert remedy in errors
    assert f"worker pool localhost:{pool}" in errors


def _start_pool(stack: ExitStack, port: int, tmp_path: Path, script: str) -> None:
    """Start Beam's pool, whose workers run a shell script as `python`; `$0.real` is the real one."""
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "python").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "python").chmod(0o755)
    (directory / "python.real").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (directory / "python.real").chmod(0o755)
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    command = ("apache_beam.runners.worker.worker_pool_main", "--service_port", str(port))
    stack.enter_context(process_group(*command, more={"PATH": path}))
    processes.eventually(lambda: is_listening(port), "a pool")


def test_temporary_directories_of_killed_runs_are_deleted_by_the_next(
    cluster: BeamCluster, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "tmp" / "hubhead-beam-killed").mkdir(parents=True)
    write_delays(tmp_path / "delays")
    cluster.delay("Attempt.commit 0.3")
    run = Run(tmp_path, model, *cluster.beam_args)
    processes.eventually(lambda: run.count_finished() >= 1, "a finished shard")
    assert run.end(signal.SIGKILL)[0] == -signal.SIGKILL

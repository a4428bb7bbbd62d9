"""A small Beam cluster: a job server in Python and a pool of workers, which outlive the drivers of jobs.

`python -m tests.support.beam_cluster jobs|pool PORT` runs one of the two. The job server speaks the same
protocol as Flink's, but does not really cancel: a cancelled job goes on. The workers of the pool are threads
of one process, so that TensorFlow is imported once; the pool of Beam's `worker_pool_main` starts processes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import processes
from tests.support.delays import sitecustomize
from tests.support.fake_model import free_port
from tests.support.repository import REPO


@contextmanager
def process_group(
    *command: str, more: Mapping[str, str] | None = None, log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a Python module in a process group of its own, and kill the whole group at the end."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # Beam starts `python`
    with (log or Path(os.devnull)).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=processes.environment({"PATH": path, **(more or {})}),
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=REPO,
        )
    try:
        yield process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_listening(port: int) -> bool:
    """Return whether something listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
        return True
    return False


@dataclass
class BeamCluster:
    """A job server and a pool of workers.

    Attributes:
        top: directory for the logs and for the file of the delays.
        environment: environment variables of both, and of the drivers.
        jobs: port of the job server.
        pool: port of the pool.
    """

    top: Path
    environment: dict[str, str]
    jobs: int = field(default_factory=free_port)
    pool: int = field(default_factory=free_port)

    @property
    def beam_args(self) -> list[str]:
        """Options of Beam for jobs on this cluster."""
        return [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{self.jobs}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{self.pool}",
        ]

    def delay(self, *actions: str) -> None:
        """Set the delays of the workers (tests.support.delays), also of those that are running."""
        write_delays(self.top / "delays", *actions)

    @contextmanager
    def run(self) -> Iterator[BeamCluster]:
        """Run both within a `with` block."""
        self.delay()
        more = {**self.environment, **delayed(self.top / "delays")}
        module = "tests.support.beam_cluster"
        with (
            process_group(module, "jobs", str(self.jobs), more=self.environment, log=self.top / "jobs.log"),
            process_group(module, "pool", str(self.pool), more=more, log=self.top / "pool.log"),
        ):
            processes.eventually(
                lambda: is_listening(self.jobs) and is_listening(self.pool), "a cluster", 120
            )
            yield self


def write_delays(file: Path, *actions: str) -> None:
    """Replace the delays in a file at once."""
    temporary = file.with_suffix(".new")
    temporary.write_text("\n".join(actions))
    temporary.replace(file)


def delayed(file: Path) -> dict[str, str]:
    """Return the environment variables of a process that the delays in a file apply to."""
    directory = Path(sitecustomize.__file__).parent
    return {sitecustomize.VARIABLE: str(file), "PYTHONPATH": f"{directory}{os.pathsep}{REPO}"}


def main(kind: str, port: str) -> None:
    """Run a job server, or a pool with TensorFlow imported, until the process is killed."""
    logging.basicConfig(level=logging.INFO)  # tests find running jobs by the log
    if kind == "jobs":
        from apache_beam.runners.portability.local_job_service import LocalJobServicer

        service: Any = LocalJobServicer()
        service.start_grpc_server(int(port))
    else:
        import tensorflow  # noqa: F401
        from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

        service = BeamFnExternalWorkerPoolServicer.start(port=int(port))
    threading.Event().wait()
    del service


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Commands of hubhead in forked processes, which import nothing: a run on a cluster costs little time.

The forks come from multiprocessing's server, which has imported Beam and the modules of `hubhead score`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

_IMPORTED = [
    "apache_beam.runners.portability.portable_runner",
    "pyarrow.parquet",
    "batch.commands.score",
    "batch.jobs.score",
    "batch.monitoring.progress",
    "hubhead",
    __name__,
]
_CONTEXT = multiprocessing.get_context("forkserver")


def start_server(environment: Mapping[str, str]) -> None:
    """Start the process that is forked, with more environment variables than this one."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        _CONTEXT.set_forkserver_preload(_IMPORTED)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def start(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> BaseProcess:
    """Start a command; its stdout and stderr are appended to `log`, its exit code is `exitcode`."""
    process = _CONTEXT.Process(target=_run, args=(arguments, str(log), dict(environment)))
    process.start()
    return process


def _run(arguments: Sequence[str], log: str, environment: dict[str, str]) -> None:
    import hubhead

    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.argv = ["hubhead", *arguments]
    hubhead.main()

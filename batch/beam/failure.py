"""Failures of the jobs of engines: what the user reads of their messages and stack traces."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from batch.beam.engine import EngineJob
from serving.errors import HubheadError

_TRACE_LINE = r"at |\.\.\. \d+ more|File \"|Traceback|[~^]+$"
"""Beginning of the lines of stack traces, of Python or Java, that do not say what happened."""


def describe_failure(error: Exception, job: EngineJob) -> HubheadError:
    """Return the error for a failed job, with a remedy for the known causes."""
    text, cause = str(error), summarize(error)
    remedy = f"Correct the cause, which the engine's log describes ({job.where})."
    if "jar URL" in text:
        # Beam's own advice is for developers of Beam.
        cause = text.partition(". ")[0]
        remedy = (
            "Check the path of the job server's jar, or omit the option: Beam then downloads a matching jar."
        )
    elif isinstance(error, FileNotFoundError) and str(error.filename).endswith("java"):
        cause = f"{error.filename} was not found, which Beam's job server needs"
        remedy = "Install Java 11 or later, or give the address of a running job server with --job_endpoint."
    elif "ModuleNotFoundError" in text or "No module named" in text:
        remedy = f"Install the same version of hubhead in the environment of the workers ({job.where})."
    elif (job.pool and re.search(r"StartWorker|ExternalWorkerPool|External environment", text)) or (
        job.pool and job.pool.rpartition(":")[2] in re.findall(r":(\d+)", cause)
    ):
        cause = f"the worker pool {job.pool} does not answer ({cause})"
        remedy = (
            "Start a pool (python -m apache_beam.runners.worker.worker_pool_main) on every machine of the"
            f" cluster, or correct --environment_config ({job.where})."
        )
    elif job.endpoint and not isinstance(error, RuntimeError):
        cause = f"the job server {job.endpoint} does not answer ({cause})"
        remedy = f"Start it or correct --job_endpoint, and check that the cluster is reachable ({job.where})."
    elif not isinstance(error, RuntimeError) or "UNAVAILABLE" in text or "onnection refused" in text:
        remedy = f"Check Beam's options, and that the cluster is reachable ({job.where})."
    return HubheadError(
        f"The Beam job failed: {cause.rstrip('.')}.",
        remedy=f"{remedy} Finished shards are kept, and the same command then does the rest.",
    )


def summarize(error: Exception) -> str:
    """Return the line of an error's text that says what happened."""
    return _summarize_text(str(error)) or type(error).__name__


def _summarize_text(text: str) -> str:
    # The text of a gRPC error is a block of several lines, with the message in one of them.
    if details := re.findall(r'details = "(.+?)"\s*$', text, re.MULTILINE):
        return str(details[-1])
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w\w", line)]
    lines = [line for line in lines if not re.match(_TRACE_LINE, line)]
    return re.sub(r" \[while running '.*?'\]$", "", lines[-1]).removeprefix("Caused by: ") if lines else ""


@contextmanager
def shorten_messages() -> Iterator[None]:
    """Log the engine's messages that contain stack traces, of Python or Java, as one line each, and once."""
    seen = {""}

    def shorten(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.module != "portable_runner" or "\n" not in text.strip():
            return True
        record.msg, record.args, record.exc_info = _summarize_text(text), (), None
        is_new = record.msg not in seen
        seen.add(record.msg)
        return is_new

    def report(given: threading.ExceptHookArgs) -> None:
        # Beam's thread for messages fails with a traceback when the job server goes; the job's error follows.
        if not is_reader(given.thread):
            hook(given)

    def is_reader(thread: threading.Thread | None) -> bool:
        return thread is not None and thread.name == "wait_until_finish_read"

    root, hook = logging.getLogger(), threading.excepthook
    root.addFilter(shorten)
    threading.excepthook = report
    try:
        yield
    finally:
        for thread in filter(is_reader, threading.enumerate()):
            thread.join(1)
        root.removeFilter(shorten)
        threading.excepthook = hook

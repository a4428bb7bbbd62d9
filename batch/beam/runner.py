"""The Beam pipeline: read the plan | distribute the shards | embed and score.

Its elements are shards, not photos, and each shard ends as finished files. Memory use is constant, no photo
is shuffled, a restart repeats no finished shard, and a million photos are a few hundred elements on any
runner.
"""

from __future__ import annotations

import argparse
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from batch.monitoring.stats import Meter, Stats
from batch.scoring.worker import ShardWorker
from batch.shards import shard
from batch.shards.shard import PlannedShard
from serving.contract import Status
from serving.errors import HubheadError, InputError

DEFAULT_RUNNER = "FnApiRunner"

POLL_SECONDS = 5.0
"""Time between two checks for shards that the workers of a cluster finished."""

_log = logging.getLogger(__name__)

_METRICS = "hubhead"
_REFUSED_RUNNERS = {
    "direct": "it selects one of three runners by the pipeline's content, one of which is downloaded",
    "switchingdirect": "it selects one of three runners by the pipeline's content",
    "prism": "it is downloaded on the first run, and hangs behind a proxy that does not answer",
    "dask": "it loses elements without an error (observed with Beam 2.77)",
    "interactive": "it is meant for notebooks",
}


def run(plan: str, worker: ShardWorker, meter: Meter, beam_args: Sequence[str]) -> None:
    """Process the shards of a plan with Beam.

    Args:
        plan: file with one planned shard per line.
        worker: configuration of the workers.
        meter: progress meter of this process.
        beam_args: options of Beam, including `--runner`.

    Raises:
        HubheadError: the job failed; finished shards are kept.
    """
    with _suppress_apitools_message():
        import apache_beam as beam
        import grpc
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.utils.shared import Shared

    options = PipelineOptions(list(beam_args))
    _check_unknown_options(options)
    handle = Shared()
    # Shards that run in this process find this state, and with it the meter, by the handle. Other worker
    # processes create their own.
    state = handle.acquire(lambda: _ProcessState(worker, meter))
    watch = nullcontext() if _runs_in_this_process(options) else _watch_progress(plan, worker, meter)
    try:
        with watch, beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "plan" >> beam.Create([plan])
                | "photos" >> beam.FlatMap(shard.read_plan)
                | "shards" >> beam.Reshuffle()
                | "embed and score" >> beam.Map(_process_shard, worker, handle)
            )
    except RuntimeError as error:
        # Beam passes on only the text of an exception, and has logged the traceback.
        raise _job_error(error) from error
    except (ValueError, OSError, grpc.RpcError, grpc.FutureTimeoutError) as error:
        if _is_default_runner(options):
            raise  # a bug: this runner connects to nothing
        raise _job_error(error) from error
    if state.failure:
        raise state.failure


def _job_error(error: Exception) -> HubheadError:
    """Return the error for a failed job, with a remedy for the known causes."""
    text = str(error).strip() or type(error).__name__
    cause, remedy = text.splitlines()[-1], "Run the same command again; finished shards are kept."
    if "jar URL" in text:
        # Beam's own advice is for developers of Beam.
        cause = text.partition(". ")[0]
        remedy = (
            "Check the path of the job server's jar, or omit the option: Beam then downloads a matching jar."
        )
    elif isinstance(error, FileNotFoundError) and str(error.filename).endswith("java"):
        cause = f"{error.filename} was not found, which Beam's job server needs"
        remedy = "Install Java 11 or later, or give the address of a running job server with --job_endpoint."
    elif not isinstance(error, RuntimeError):
        remedy = f"Check Beam's options, and that the cluster is reachable. {remedy}"
    return HubheadError(f"The Beam job failed: {cause.rstrip('.')}.", remedy=remedy)


def _is_default_runner(options: Any) -> bool:
    from apache_beam.options.pipeline_options import StandardOptions

    return str(options.view_as(StandardOptions).runner).endswith(DEFAULT_RUNNER)


def _runs_in_this_process(options: Any) -> bool:
    """Return whether the shards run in this process and report to its meter."""
    from apache_beam.options.pipeline_options import DirectOptions, PortableOptions

    if _is_default_runner(options):
        return str(options.view_as(DirectOptions).direct_running_mode) != "multi_processing"
    return str(options.view_as(PortableOptions).environment_type) == "LOOPBACK"


@contextmanager
def _watch_progress(plan: str, worker: ShardWorker, meter: Meter) -> Iterator[None]:
    """Report the shards that other processes finish, by polling for the files that they write."""
    unfinished = {planned.id for planned in shard.read_plan(plan)}
    ended = threading.Event()

    def report_finished() -> None:
        for shard_id in worker.list_finished() & unfinished:
            if stats := worker.finished_stats(shard_id):
                unfinished.remove(shard_id)
                meter.add(stats.photos, stats.rejected)

    def poll() -> None:
        while not ended.wait(POLL_SECONDS):
            try:
                report_finished()
            except OSError as error:  # storage briefly unreachable: only the progress display is late
                _log.warning("Cannot list the finished shards, retrying in %g s: %s", POLL_SECONDS, error)

    thread = threading.Thread(target=poll, name="hubhead-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    report_finished()


@contextmanager
def _suppress_apitools_message() -> Iterator[None]:
    """Suppress a log message at Beam's import about a package that this job does not use."""

    def keep(record: logging.LogRecord) -> bool:
        return "apitools not found" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


class _ProcessState:
    """State shared by all shards of one worker process.

    Attributes:
        models: resources of each model.
        is_driver: True in the process that runs the command.
        failure: why a shard failed or was interrupted. Beam would pass on only its text, so the exception
            is kept here and raised after the pipeline.
    """

    def __init__(self, worker: ShardWorker, meter: Meter | None = None) -> None:
        self.models = worker.load_models(meter or Meter())
        self.is_driver = meter is not None
        self.failure: HubheadError | KeyboardInterrupt | None = None


def _process_shard(planned: PlannedShard, worker: ShardWorker, handle: Any) -> str:
    """Process one shard of the plan and return its id. The state is created once per process."""
    state: _ProcessState = handle.acquire(lambda: _ProcessState(worker))
    if state.failure:  # skip the rest, so that the pipeline ends soon
        return ""
    try:
        stats = worker.process(planned, state.models)
    except (HubheadError, KeyboardInterrupt) as error:
        if not state.is_driver:
            raise
        state.failure = error
        return ""
    _record_metrics(stats)
    return planned.id


def _record_metrics(stats: Stats) -> None:
    """Record a shard's statistics as Beam metrics: counters, and one distribution per stage."""
    _count("shards", 1)
    _count("photos", stats.photos)
    _count("rows", stats.rows)
    _count("bytes_read", stats.read_bytes)
    _count("photos_embedded", stats.embedded)
    _count("embeddings_reused", stats.reused)
    for status, number in stats.statuses.items():
        if not Status(status).usable:
            _count(f"rejected_{status}", number)
    _measure("shard_photos", stats.photos)
    _measure("shard_milliseconds", stats.elapsed * 1000)
    for stage, seconds in stats.seconds.items():
        _measure(f"{stage}_milliseconds", seconds * 1000)


def _count(name: str, number: int) -> None:
    from apache_beam.metrics.metric import Metrics

    Metrics.counter(_METRICS, name).inc(number)


def _measure(name: str, value: float) -> None:
    from apache_beam.metrics.metric import Metrics

    Metrics.distribution(_METRICS, name).update(round(value))


def check_beam_args(arguments: Sequence[str]) -> list[str]:
    """Return Beam's options with the runner named explicitly. Does not import Beam.

    Raises:
        InputError: the runner is known to lose data, to hang, or to select another runner by itself.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--runner", default=None)
    try:
        runner = parser.parse_known_args(list(arguments))[0].runner
    except argparse.ArgumentError as error:
        raise InputError(f"Beam's options: {error}.", remedy="Write --runner=NAME.") from error
    if runner is None:
        return [*arguments, f"--runner={DEFAULT_RUNNER}"]
    reason = _REFUSED_RUNNERS.get(runner.rpartition(".")[2].lower().removesuffix("runner"))
    if reason:
        raise InputError(
            f"The runner {runner} is not supported: {reason}.",
            remedy=f"Leave --runner out on one machine ({DEFAULT_RUNNER}); use FlinkRunner or DataflowRunner"
            " on several.",
        )
    return list(arguments)


def _check_unknown_options(options: Any) -> None:
    """Reject options that Beam would ignore.

    Only for the default runner: a job server may know options that Beam itself does not.

    Raises:
        InputError: an option is unknown.
    """
    if not _is_default_runner(options):
        return
    known = options.get_all_options()
    unknown = options.get_all_options(retain_unknown_options=True).keys() - known.keys()
    if unknown:
        raise InputError(
            f"Apache Beam has no option {', '.join(f'--{name}' for name in sorted(unknown))}.",
            remedy="Put options of hubhead before the `--`, and Beam's after it.",
        )

"""The Beam job: photos | shards | embed and score | results.

Its elements are shards, not photos, and each ends as finished files. So memory is flat,
nothing is shuffled, a restart repeats nothing, and a million photos are a few hundred
elements on any runner.
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

LOOK_SECONDS = 5.0
"""Between two looks at what the workers of a cluster have finished."""

_log = logging.getLogger(__name__)

_METRICS = "hubhead"
_REFUSED_RUNNERS = {
    "direct": "it picks one of three engines by the pipeline's content, one of which is downloaded",
    "switchingdirect": "it picks one of three engines by the pipeline's content",
    "prism": "it is downloaded at the first run and waits for ever behind a proxy that does not answer",
    "dask": "it loses elements silently (seen with Beam 2.77)",
    "interactive": "it is made for notebooks",
}


def run(plan: str, task: ShardWorker, meter: Meter, beam_args: Sequence[str]) -> None:
    """Work on the shards of a plan with Beam.

    Raises:
        HubheadError: the job failed; what was finished is kept.
    """
    with _without_remarks():
        import apache_beam as beam
        import grpc
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.utils.shared import Shared

    options = PipelineOptions(list(beam_args))
    _check_known(options)
    handle = Shared()
    # Shards that run in this process share this worker and with it the meter; others make their own.
    local = handle.acquire(lambda: _Local(task, meter))
    watched = nullcontext() if _works_here(options) else _watched(plan, task, meter)
    try:
        with watched, beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "photos" >> beam.io.ReadFromText(plan)
                | "shards" >> beam.Reshuffle()
                | "embed and score" >> beam.Map(_work, task, handle)
            )
    except RuntimeError as error:
        # Beam keeps of an exception its text alone, and has logged the rest.
        raise _failed(error) from error
    except (ValueError, OSError, grpc.RpcError, grpc.FutureTimeoutError) as error:
        if _in_process(options):
            raise  # a bug
        raise _failed(error) from error
    if local.failure:
        raise local.failure


def _failed(error: Exception) -> HubheadError:
    text = str(error).strip() or type(error).__name__
    said, remedy = text.splitlines()[-1], "Run the same command again: finished shards are kept."
    if "jar URL" in text:
        # Its own advice is for those who build Beam.
        said = text.partition(". ")[0]
        remedy = "Check the path of the job server's jar; without the option Beam fetches one that fits."
    elif isinstance(error, FileNotFoundError) and str(error.filename).endswith("java"):
        said = f"there is no {error.filename}, which Beam's job server runs on"
        remedy = "Install Java 11 or later, or give the address of a running job server: --job_endpoint."
    elif not isinstance(error, RuntimeError):
        remedy = f"Check Beam's options, and that the engine can be reached. {remedy}"
    return HubheadError(f"The Beam job failed: {said.rstrip('.')}.", remedy=remedy)


def _in_process(options: Any) -> bool:
    from apache_beam.options.pipeline_options import StandardOptions

    return str(options.view_as(StandardOptions).runner).endswith(DEFAULT_RUNNER)


def _works_here(options: Any) -> bool:
    """Whether the shards run in this process, and so tell its meter."""
    from apache_beam.options.pipeline_options import DirectOptions, PortableOptions

    if _in_process(options):
        return str(options.view_as(DirectOptions).direct_running_mode) != "multi_processing"
    return str(options.view_as(PortableOptions).environment_type) == "LOOPBACK"


@contextmanager
def _watched(plan: str, task: ShardWorker, meter: Meter) -> Iterator[None]:
    """Tell of the shards that other processes finish, by what they leave behind."""
    left = {planned.id for planned in shard.read_plan(plan)}
    ended = threading.Event()

    def look() -> None:
        for shard_id in task.list_finished() & left:
            if stats := task.finished_stats(shard_id):
                left.remove(shard_id)
                meter.add(stats.photos, stats.rejected)

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            try:
                look()
            except OSError as error:  # of a storage that is away for a moment: progress alone waits for it
                _log.warning("Cannot see what is finished: %s", error)

    thread = threading.Thread(target=watch, name="hubhead-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    look()


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep Beam's remark on a package that this job does not use, said at its import, off the terminal."""

    def wanted(record: logging.LogRecord) -> bool:
        return "apitools not found" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)


class _Local:
    """What the shards of one process share.

    Attributes:
        workers: the models, and the store between them.
        reports: whether the process is the one that the user watches.
        failure: why a shard failed or was stopped; kept beside Beam, which would pass on its text alone.
    """

    def __init__(self, task: ShardWorker, meter: Meter | None = None) -> None:
        self.workers = task.load_models(meter or Meter())
        self.reports = meter is not None
        self.failure: HubheadError | KeyboardInterrupt | None = None


def _work(line: str, task: ShardWorker, handle: Any) -> str:
    """Work on one shard of the plan; the worker is made once a process."""
    local: _Local = handle.acquire(lambda: _Local(task))
    if local.failure:
        return ""
    planned = PlannedShard.parse(line)
    try:
        stats = task.process(planned, local.workers)
    except (HubheadError, KeyboardInterrupt) as error:
        if not local.reports:
            raise
        local.failure = error
        return ""
    _record_metrics(stats)
    return planned.id


def _record_metrics(stats: Stats) -> None:
    """A shard's figures as Beam metrics, for the runner's own pages: counts, and a distribution a stage."""
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
    """Beam's options with the runner named; without importing Beam.

    Raises:
        InputError: a runner that is known to lose data, hang or change under the job.
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
            f"The runner {runner} is not used here: {reason}.",
            remedy=f"On one machine leave it out ({DEFAULT_RUNNER}); else FlinkRunner or DataflowRunner.",
        )
    return list(arguments)


def _check_known(options: Any) -> None:
    """Refuse options that Beam would ignore; a job server may know more than Beam, so only in process."""
    if not _in_process(options):
        return
    known = options.get_all_options()
    unknown = options.get_all_options(retain_unknown_options=True).keys() - known.keys()
    if unknown:
        raise InputError(
            f"Beam has no option {', '.join(f'--{name}' for name in sorted(unknown))}.",
            remedy="Options of hubhead go before the `--`, Beam's after it.",
        )

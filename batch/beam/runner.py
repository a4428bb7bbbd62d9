"""The Beam pipeline: read the plan | distribute the shards | embed and score.

Its elements are shards, not photos, and each shard ends as finished files. Memory use is constant, no photo
is shuffled, a restart repeats no finished shard, and a million photos are a few hundred elements on any
runner.
"""

from __future__ import annotations

import argparse
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from batch.beam.engine import EngineJob
from batch.beam.failure import describe_failure, shorten_messages, summarize
from batch.beam.imports import import_beam
from batch.beam.temporary import temporary_directory
from batch.monitoring.stats import Meter, Stats
from batch.scoring.embed import ModelResources
from batch.scoring.worker import ShardWorker
from batch.shards import shard
from batch.shards.shard import PlannedShard
from serving.contract import Status
from serving.errors import HubheadError, InputError
from serving.process import is_main_program
from serving.text import redact, redact_logs

DEFAULT_RUNNER = "FnApiRunner"
_DEFAULT_ARGS = [f"--runner={DEFAULT_RUNNER}"]

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


def run(
    plan: str,
    worker: ShardWorker,
    meter: Meter,
    beam_args: Sequence[str],
    *,
    name: str,
    on_job: Callable[[EngineJob], None] | None = None,
) -> None:
    """Process the shards of a plan with Beam. If this process is interrupted, the engine's job is cancelled.

    Args:
        plan: file with one planned shard per line.
        worker: configuration of the workers.
        meter: progress meter of this process.
        beam_args: options of Beam, including `--runner`.
        name: name of the job, unless Beam's options give one: letters, digits and dashes.
        on_job: called with the job of a cluster's engine before it is submitted, and again with its id.

    Raises:
        HubheadError: the job failed; finished shards are kept.
    """
    models = worker.load_models(meter)
    is_default = list(beam_args) == _DEFAULT_ARGS
    if is_default and worker.server is None:
        # Most of the loading is not in Python, and so goes on beside the import of Beam.
        threading.Thread(target=worker.load_ahead, args=(plan, models), name="hubhead-load").start()
    import_beam(optional=not (is_default and is_main_program()))
    import grpc
    from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, SetupOptions
    from apache_beam.utils.shared import Shared

    options = PipelineOptions(list(beam_args))
    _check_unknown_options(options)
    job = EngineJob.from_options(options, name)
    # It would run `pip freeze` for a list that nobody reads.
    options.view_as(DebugOptions).add_experiment("disable_logging_submission_environment")
    setup = options.view_as(SetupOptions)
    if setup.requirements_file is None:
        setup.requirements_cache = "skip"  # otherwise a directory is created for it
    handle = Shared()
    # Shards that run in this process find this state, and with it the meter, by the handle. Other worker
    # processes create their own.
    state = handle.acquire(lambda: _ProcessState(worker, models))
    pipeline = _build_pipeline(options, plan, worker, handle, is_distributed=not is_default)
    try:
        if _runs_in_this_process(options):
            pipeline.run().wait_until_finish()
        else:
            with shorten_messages():
                _run_on_engine(pipeline, job, on_job, _Watch(plan, worker, meter))
    except RuntimeError as error:
        # Beam passes on only the text of an exception, and has logged the traceback.
        raise describe_failure(error, job) from error
    except (ValueError, OSError, grpc.RpcError, grpc.FutureTimeoutError) as error:
        if _is_default_runner(options):
            raise  # a bug: this runner connects to nothing
        raise describe_failure(error, job) from error
    if state.failure:
        raise state.failure


def _build_pipeline(
    options: Any, plan: str, worker: ShardWorker, handle: Any, *, is_distributed: bool
) -> Any:
    import apache_beam as beam

    pipeline = beam.Pipeline(options=options)
    Path(pipeline.local_tempdir).rmdir()  # for cross-language transforms only; a killed driver would leave it
    shards = pipeline | "plan" >> beam.Create([plan]) | "photos" >> beam.FlatMap(shard.read_plan)
    if is_distributed:  # a single worker takes them one after the other anyway
        shards |= "shards" >> beam.Reshuffle()
    _ = shards | "embed and score" >> beam.Map(_process_shard, worker, handle)
    return pipeline


def _run_on_engine(
    pipeline: Any, job: EngineJob, on_job: Callable[[EngineJob], None] | None, watch: _Watch
) -> None:
    """Run a pipeline on an engine with processes of its own, and cancel its job if this process gives up."""
    result: Any = None
    record = on_job or (lambda _: None)
    record(job)
    try:
        with watch.run(job), ExitStack() as temporary:
            temporary.enter_context(temporary_directory())
            result = pipeline.run()
            if job.endpoint:  # otherwise the job server is a child of this process, and keeps files there
                temporary.close()
            watch.job = job = replace(job, id=str(getattr(result, "_job_id", "")))
            watch.get_state = job.read_state if job.endpoint else lambda: str(result.state)
            record(job)
            result.wait_until_finish()
    except BaseException:
        _cancel(job, result)
        raise


def _cancel(job: EngineJob, result: Any) -> None:
    """Cancel a job through its engine and, if this process started the job server, through that."""
    ways = [job.cancel, *([result.cancel] if result and not job.endpoint else [])]
    errors: list[Exception] = []
    for cancel in ways:
        try:
            cancel()
        except Exception as error:  # of whatever class: it must not replace the one that is handled
            errors.append(error)
    if result and len(errors) == len(ways):
        _log.warning(
            "The job could not be cancelled (%s): %s. It cannot change the scores, but uses the cluster until"
            " it ends or is cancelled there.",
            job.where,
            summarize(errors[-1]),
        )


def _is_default_runner(options: Any) -> bool:
    from apache_beam.options.pipeline_options import StandardOptions

    return str(options.view_as(StandardOptions).runner).endswith(DEFAULT_RUNNER)


def _runs_in_this_process(options: Any) -> bool:
    """Return whether the shards run in this process and report to its meter."""
    from apache_beam.options.pipeline_options import DirectOptions, PortableOptions

    if _is_default_runner(options):
        return str(options.view_as(DirectOptions).direct_running_mode) != "multi_processing"
    return str(options.view_as(PortableOptions).environment_type) == "LOOPBACK"


class _Watch:
    """Reports the shards that other processes finish, by polling for the files that they write.

    Attributes:
        job: the engine's job, for the heartbeat.
        get_state: returns the state of the job as the engine calls it.
    """

    def __init__(self, plan: str, worker: ShardWorker, meter: Meter) -> None:
        self._unfinished = {planned.id for planned in shard.read_plan(plan)}
        self._worker, self._meter = worker, meter
        self._latest = time.monotonic()  # when a shard was last found to be finished
        self.get_state: Callable[[], str] = lambda: "not submitted yet"

    @contextmanager
    def run(self, job: EngineJob) -> Iterator[None]:
        """Poll within a `with` block, and once more at its end."""
        self.job = job
        if job.endpoint:
            self.get_state = job.read_state
        ended = threading.Event()

        def poll() -> None:
            while not ended.wait(POLL_SECONDS):
                try:
                    self._report()
                except OSError as error:  # storage briefly unreachable: only the progress display is late
                    _log.warning("Cannot list the finished shards, retrying in %g s: %s", POLL_SECONDS, error)

        thread = threading.Thread(target=poll, name="hubhead-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        self._report()

    def _report(self) -> None:
        for shard_id in self._worker.list_finished() & self._unfinished:
            if stats := self._worker.finished_stats(shard_id):
                self._unfinished.remove(shard_id)
                self._latest = time.monotonic()
                self._meter.add(stats.photos, stats.rejected)
        if (waiting := time.monotonic() - self._latest) > 2 * POLL_SECONDS:
            try:
                state = self.get_state()
            except (
                Exception
            ) as error:  # grpc's, Dataflow's, ...: the engine itself is asked for this text only
                state = f"not reachable ({summarize(error)})"
            self._meter.note(f"no shard finished for {waiting:.0f} s, engine {state} ({self.job.where})")


class _ProcessState:
    """State shared by all shards of one worker process.

    Attributes:
        models: resources of each model.
        is_driver: True in the process that runs the command.
        failure: why a shard failed or was interrupted. Beam would pass on only its text, so the exception
            is kept here and raised after the pipeline.
    """

    def __init__(self, worker: ShardWorker, models: Sequence[ModelResources] | None = None) -> None:
        self.is_driver = models is not None
        if models is None:
            redact_logs()
            models = worker.load_models(Meter())
        self.models = models
        self.failure: HubheadError | KeyboardInterrupt | SystemExit | None = None


def _process_shard(planned: PlannedShard, worker: ShardWorker, handle: Any) -> str:
    """Process one shard of the plan and return its id. The state is created once per process."""
    state: _ProcessState = handle.acquire(lambda: _ProcessState(worker))
    if state.failure:  # skip the rest, so that the pipeline ends soon
        return ""
    try:
        stats = worker.process(planned, state.models)
    except (HubheadError, KeyboardInterrupt, SystemExit) as error:
        if not state.is_driver:
            # Without its cause, whose text may have secrets of addresses: Beam passes on all of it.
            raise redact_error(error) from None
        state.failure = error
        return ""
    _record_metrics(stats)
    return planned.id


E = TypeVar("E", bound=BaseException)


def redact_error(error: E) -> E:
    """Return an error after removing the secrets of addresses from its text."""
    if isinstance(error, HubheadError):
        error.what, error.remedy = redact(error.what), redact(error.remedy)
        error.args = (error.what,)
    return error


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
        return [*arguments, *_DEFAULT_ARGS]
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

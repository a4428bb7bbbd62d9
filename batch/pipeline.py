"""The Beam job: photos | shards | embed and score | results.

Its elements are shards, not photos, and each ends as one finished file. So memory is flat,
nothing is shuffled, a restart repeats nothing, and a million photos are a few hundred
elements on any runner.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from batch import files, photos, results, scoring, shards
from batch.embeddings import EmbeddingStore, default_root
from batch.photos import Photo
from batch.results import Output, Summary
from batch.scoring import Worker
from batch.shards import Shard
from batch.stats import Meter, Progress, Stats
from serving import bundle, contract
from serving.bundle import Bundle
from serving.contract import Status
from serving.errors import BundleError, HubheadError, InputError, OutputError

DEFAULT_RUNNER = "FnApiRunner"

_METRICS = "hubhead"
_REFUSED_RUNNERS = {
    "direct": "it picks one of three engines by the pipeline's content, one of which is downloaded",
    "switchingdirect": "it picks one of three engines by the pipeline's content",
    "prism": "it is downloaded at the first run and waits for ever behind a proxy that does not answer",
    "dask": "it loses elements silently (seen with Beam 2.77)",
    "interactive": "it is made for notebooks",
}

ProgressReport = Callable[[Progress], None]


@dataclass(frozen=True)
class EmbedSettings:
    """How embeddings are made.

    Attributes:
        shard_size: photos a shard at most.
        beam_args: Beam's own options, such as `--runner=FlinkRunner`.
    """

    shard_size: int = shards.DEFAULT_SIZE
    beam_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreSettings:
    """What to score, with what, and where to.

    Attributes:
        photos: file, directory or glob.
        model: bundle directory, or the base path above its versions.
        output: directory of the scores, local or remote.
        embedding_store: root of the embedding store.
        shard_size: photos a shard at most.
        price_per_hour: of one machine, for the cost in run.json; None leaves it out.
        overwrite: replace the scores of another model or other photos.
        beam_args: Beam's own options, such as `--runner=FlinkRunner`.
    """

    photos: str
    model: Path
    output: str
    embedding_store: str = ""
    shard_size: int = shards.DEFAULT_SIZE
    price_per_hour: float | None = None
    overwrite: bool = False
    beam_args: tuple[str, ...] = ()

    @property
    def store_root(self) -> str:
        """The embedding store, the shared one where none is given."""
        return files.absolute(self.embedding_store or default_root())


@dataclass(frozen=True)
class Task:
    """What a worker does with each shard; it travels to every worker, so it is small.

    Attributes:
        model: the bundle's version directory.
        store: root of the embedding store.
        output: of the scores; None where only embeddings are wanted.
        plan: directory of the run's plan, which also takes the stats of an embedded shard.
    """

    model: str
    store: str
    plan: str
    output: Output | None = None

    def run(self, shard: Shard, worker: Worker) -> Stats:
        """Do it."""
        if self.output is not None:
            return scoring.score_shard(shard, worker, self.output.shard_file(shard.id), datetime.now(UTC))
        stats = scoring.embed_shard(shard, worker)
        files.write(_stats_file(self.plan, shard.id), stats.to_json().encode())
        return stats


def score(settings: ScoreSettings, progress: ProgressReport | None = None) -> Summary:
    """Score photos into a Parquet dataset; the same call again does what is left.

    Raises:
        InputError: no photos, or a runner or Beam option that cannot be used.
        BundleError: the model cannot be used.
        OutputError: the output or the store cannot be written, or the output holds something else.
    """
    started, start = datetime.now(UTC), perf_counter()
    beam_args = check_beam_args(settings.beam_args)
    model = bundle.read(settings.model)
    if not model.manifest.labels:
        raise BundleError(
            f"{model.path} is a headless bundle: it embeds photos and knows no labels.",
            remedy="Give --model the bundle that hubhead train made.",
        )
    found = photos.find(settings.photos)
    identity = _identity(model)
    planned = shards.plan(found, settings.shard_size, identity)
    output = Output(files.absolute(settings.output))
    files.check_writable(settings.store_root)
    output.claim({"photos": files.absolute(settings.photos), **identity}, overwrite=settings.overwrite)
    finished = output.finished(planned)
    todo = [shard for shard in planned if shard.id not in finished]
    task = Task(str(model.path), settings.store_root, output.plan, output)
    meter = Meter(len(found), progress)
    for stats in finished.values():
        meter.add(stats.photos, stats.rejected, known=True)
    if todo:
        _run(todo, task, meter, beam_args)
    complete = output.finished(planned)
    results.check_complete(planned, complete)
    shards.remove_plan(output.plan)
    summary = Summary(
        path=output.directory,
        total=sum(complete.values(), Stats()),
        this_run=sum((complete[shard.id] for shard in todo), Stats()),
        skipped_shards=len(finished),
        worked_shards=len(todo),
        seconds=perf_counter() - start,
        price_per_hour=settings.price_per_hour,
    )
    results.write_run(
        summary,
        started=started,
        model={**identity["model"], "fingerprint": model.manifest.fingerprint},
        settings={**asdict(settings), "model": str(settings.model), "embedding_store": settings.store_root},
    )
    return summary


def embed(
    found: Sequence[Photo],
    bundle_path: Path,
    store: EmbeddingStore,
    settings: EmbedSettings | None = None,
    progress: ProgressReport | None = None,
) -> Summary:
    """Bring the embeddings of photos into the store; those that are there cost a look.

    Where all are there, neither Beam nor TensorFlow is imported.

    Raises:
        InputError: a runner or Beam option that cannot be used.
        BundleError: the bundle cannot be used, or is not of the store's backbone.
        OutputError: the store cannot be written.
    """
    settings, start = settings or EmbedSettings(), perf_counter()
    beam_args = check_beam_args(settings.beam_args)
    model = bundle.read(bundle_path)
    if store.fingerprint != model.manifest.fingerprint:
        raise BundleError(
            f"{model.path} is of another backbone than the store {store.directory}.",
            remedy=f"Its fingerprint is {model.manifest.fingerprint}.",
        )
    known = store.known(found)
    there = store.statuses(known.values())
    reused = {photo: there[sha] for photo, sha in known.items() if sha in there}
    before = _reused(reused.values())
    meter = Meter(len(found), progress)
    meter.add(before.photos, before.rejected, known=True)
    todo = shards.plan((photo for photo in found if photo not in reused), settings.shard_size, {})
    worked = _embed_open(todo, model, store, meter, beam_args) if todo else Stats()
    return Summary(store.directory, before + worked, worked, 0, len(todo), perf_counter() - start)


def _embed_open(
    todo: Sequence[Shard], model: Bundle, store: EmbeddingStore, meter: Meter, beam_args: Sequence[str]
) -> Stats:
    files.check_writable(store.directory)
    # A name of its own, since two runs may embed the same photos at once.
    plan = files.join(store.directory, f"_plan-{secrets.token_hex(8)}")
    try:
        _run(todo, Task(str(model.path), store.root, plan), meter, beam_args)
        done = {shard.id: _read_stats(_stats_file(plan, shard.id)) for shard in todo}
        results.check_complete(todo, done)
        return sum(done.values(), Stats())
    finally:
        shards.remove_plan(plan)


def _run(todo: Sequence[Shard], task: Task, meter: Meter, beam_args: Sequence[str]) -> None:
    """Work on shards with Beam.

    Raises:
        HubheadError: the job failed; what was finished is kept.
    """
    with _without_remarks():
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.utils.shared import Shared

    options = PipelineOptions(list(beam_args))
    _check_known(options)
    plan = shards.write_plan(task.plan, todo)
    handle = Shared()
    # Shards that run in this process share this worker and with it the meter; others make their own.
    local = handle.acquire(lambda: _Local(task, meter))
    try:
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "photos" >> beam.io.ReadFromText(plan)
                | "shards" >> beam.Reshuffle()
                | "embed and score" >> beam.Map(_work, task, handle)
            )
    except RuntimeError as error:
        # Beam keeps of an exception its text alone, and has logged the rest.
        raise HubheadError(
            f"The Beam job failed: {str(error).strip().splitlines()[-1]}",
            remedy="Run the same command again: finished shards are kept.",
        ) from error
    if local.failure:
        raise local.failure


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
        worker: model and store.
        reports: whether the process is the one that the user watches.
        failure: why a shard failed or was stopped; kept beside Beam, which would pass on its text alone.
    """

    def __init__(self, task: Task, meter: Meter | None = None) -> None:
        self.worker = Worker(Path(task.model), task.store, meter or Meter())
        self.reports = meter is not None
        self.failure: HubheadError | KeyboardInterrupt | None = None


def _work(line: str, task: Task, handle: Any) -> str:
    """Work on one shard of the plan; the worker is made once a process."""
    local: _Local = handle.acquire(lambda: _Local(task))
    if local.failure:
        return ""
    shard = shards.read_shard(line)
    try:
        stats = task.run(shard, local.worker)
    except (HubheadError, KeyboardInterrupt) as error:
        if not local.reports:
            raise
        local.failure = error
        return ""
    _record(stats)
    return shard.id


def _record(stats: Stats) -> None:
    """A shard's figures as Beam metrics, for the runner's own pages."""
    _count("photos", stats.photos)
    _count("bytes_read", stats.read_bytes)
    _count("photos_embedded", stats.embedded)
    _count("embeddings_reused", stats.reused)
    for status, number in stats.statuses.items():
        if not Status(status).usable:
            _count(f"rejected_{status}", number)
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
    from apache_beam.options.pipeline_options import StandardOptions

    if not str(options.view_as(StandardOptions).runner).endswith(DEFAULT_RUNNER):
        return
    known = options.get_all_options()
    unknown = options.get_all_options(retain_unknown_options=True).keys() - known.keys()
    if unknown:
        raise InputError(
            f"Beam has no option {', '.join(f'--{name}' for name in sorted(unknown))}.",
            remedy="Options of hubhead go before the `--`, Beam's after it.",
        )


def _identity(model: Bundle) -> dict[str, Any]:
    """What rows depend on beside the photos: the model by what it holds, not only by its name."""
    manifest = model.manifest
    rules = [manifest.fingerprint, manifest.labels, manifest.calibration, manifest.top_k]
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode())
    for path in [model.path / contract.SAVED_MODEL_FILE, *sorted((model.path / "variables").glob("*"))]:
        digest.update(path.read_bytes())
    return {"model": {"name": model.name, "version": model.version, "digest": digest.hexdigest()[:32]}}


def _reused(statuses: Iterable[Status]) -> Stats:
    stats = Stats()
    stats.statuses.update(status.value for status in statuses)
    return replace(stats, photos=stats.statuses.total(), reused=stats.statuses.total())


def _stats_file(plan: str, shard_id: str) -> str:
    return files.join(plan, f"{shard_id}.stats.json")


def _read_stats(uri: str) -> Stats:
    try:
        return Stats.from_json(files.read(uri))
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(
            f"The Beam job ended without {uri}.",
            remedy="Run the same command again: what is finished is kept.",
        ) from error

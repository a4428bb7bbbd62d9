"""The score and embed jobs: plan the open shards, process them with Beam, verify, publish."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from batch.beam import runner
from batch.beam.engine import EngineJob
from batch.beam.runner import check_beam_args
from batch.embeddings import EmbeddingStore
from batch.inputs.listing import Photo
from batch.inputs.passthrough import PassThroughColumns
from batch.inputs.sources import Source
from batch.jobs import publish
from batch.jobs.planner import Plan, RunPlanner, incomplete_error, is_complete
from batch.jobs.settings import RunSettings
from batch.monitoring.stats import Meter, Progress, Stats
from batch.output import run_diff, run_record, schema
from batch.output.attempt import check_partitions
from batch.output.dataset import Output, check_run_id
from batch.output.run_record import Summary
from batch.scoring import remote_backbone
from batch.scoring.shard import model_key
from batch.scoring.worker import ScoresTarget, ShardWorker
from batch.shards import shard
from batch.shards.partition import WHOLE_INPUT, Partition
from batch.shards.shard import Entry, PlanWriter
from serving import bundle, contract
from serving.bundle import Bundle
from serving.client import ClientConfig
from serving.contract import Status
from serving.errors import BundleError, InputError
from serving.storage import files
from serving.text import redact_arguments

_log = logging.getLogger(__name__)

ProgressReport = Callable[[Progress], None]


@dataclass(frozen=True)
class ScoreSettings(RunSettings):
    """Settings of a score job.

    Attributes:
        photos: file, directory or glob; "" with a manifest.
        manifest: dataset manifest, or a glob of several; "" with photos.
        uri_column: name of the manifest's column that holds the address; "" for the usual names.
        shard_size: maximum number of photos per shard.
        share: partition of the photos that this run scores. Runs over several partitions need separate
            outputs.
        only_new: add rows of photos that no run in this output has scored, and keep all existing rows.
        server: connection to a model server that embeds the photos; None to embed them in the workers.
        beam_args: options of Apache Beam, such as `--runner=FlinkRunner`.
    """

    photos: str = ""
    manifest: str = ""
    uri_column: str = ""
    shard_size: int = shard.DEFAULT_SIZE
    share: Partition = WHOLE_INPUT
    only_new: bool = False
    server: ClientConfig | None = None
    beam_args: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, with the address of a server but without its credentials."""
        values = super().to_json() | {"beam_args": redact_arguments(self.beam_args)}
        if self.server:
            values["server"] = {
                "server": self.server.target,
                "model_name": self.server.model or None,
                "model_version": self.server.version,
                "label": self.server.label,
                "timeout": self.server.timeout,
            }
        return values


def score(settings: ScoreSettings, progress: ProgressReport | None = None) -> Summary:
    """Score photos into a Parquet dataset. Calling it again processes only what is new or unfinished.

    Raises:
        InputError: there are no photos, or a line of a manifest, a runner or an option of Beam is invalid.
        BundleError: a model cannot be used, two do not go together, or a server has another model.
        OutputBusy: another run is writing to the output.
        LeaseLost: this run was stopped for so long that another one took over.
        OutputError: the output or the store cannot be written, or the output has other content.
        ServerError: a model server does not answer, at the start or within its `timeout`.
    """
    started, start = datetime.now(UTC), perf_counter()
    beam_args = check_beam_args(settings.beam_args)
    if settings.only_new and settings.overwrite:
        raise InputError("--only_new keeps the rows that --overwrite removes.", remedy="Give one of the two.")
    publish.check_dependencies(settings)
    run_id = check_run_id(settings.run_id or started.date().isoformat())
    bundles = read_models(settings.model)
    check_partitions(settings.partition_by, (label for model in bundles for label in model.metadata.labels))
    models = [describe_model(model) for model in bundles]
    output = Output(files.absolute(settings.output), settings.partition_by)
    planner = _create_planner(settings, output, run_id, models)
    # Everything that can be checked is checked before the output is locked and changed.
    planner.check()
    files.check_writable(settings.store_root)
    if settings.server:
        remote_backbone.resolve_version(settings.server, bundles)
    files.check_writable(output.work_directory)
    with output.hold_lease() as output:
        planner.output = output
        planner.check()  # again, now that no other run can change the output
        cancel_earlier_jobs(output)
        plan = planner.plan(settings.shard_size, progress)
        attempt = planner.publication.attempt
        worker = _configure_worker(
            settings,
            bundles,
            ScoresTarget(attempt, run_id, started, tuple(model["digest"] for model in models)),
        )
        _process_plan(plan, planner.summary.total, worker, progress, beam_args)
        planner.finish(plan)
        seconds = perf_counter() - start
        summary = replace(planner.summary, seconds=seconds, price_per_hour=settings.price_per_hour)
        run = run_record.build_run_record(
            summary, started=started, models=models, settings=settings.to_json()
        )
        publish.publish_run(run, summary, output, settings, run_diff.find_previous_run(output, run_id))
        output.remove_attempts()
    return summary


def _create_planner(
    settings: ScoreSettings, output: Output, run_id: str, models: Sequence[dict[str, Any]]
) -> RunPlanner:
    reserved = _reserved_columns(settings.partition_by)
    # The output and the store may be in the directory of the photos.
    own = (*output.own, files.join(settings.store_root, models[0]["fingerprint"]))
    return RunPlanner(
        output,
        run_id,
        Source(settings.photos, settings.manifest, settings.uri_column, reserved, own),
        models,
        only_new=settings.only_new,
        overwrite=settings.overwrite,
        share=settings.share,
    )


def _configure_worker(
    settings: ScoreSettings, bundles: Iterable[Bundle], target: ScoresTarget
) -> ShardWorker:
    return ShardWorker(
        tuple(str(model.path) for model in bundles),
        settings.store_root,
        target.attempt.plan_directory,
        target,
        settings.server,
        settings.engine,
    )


def _process_plan(
    plan: Plan,
    finished: Stats,
    worker: ShardWorker,
    progress: ProgressReport | None,
    beam_args: Sequence[str],
) -> None:
    """Run Beam over the open shards; without any, Beam is not imported.

    Args:
        plan: open shards.
        finished: statistics of the shards that were finished before, for the progress.
        worker: configuration of the workers.
        progress: called with the progress at every micro-batch.
        beam_args: options of Beam.
    """
    meter = Meter(finished.photos + plan.photos, progress)
    meter.add(finished.photos, finished.rejected, known=True)
    if plan.shards and worker.scores:
        attempt = worker.scores.attempt

        def record(job: EngineJob) -> None:
            files.write(attempt.job_file, job.encode())

        name = f"hubhead-score-{attempt.token}"
        runner.run(plan.path, worker, meter, beam_args, name=name, on_job=record)


def cancel_earlier_jobs(output: Output) -> None:
    """Cancel the jobs of earlier attempts that an engine still runs, as far as it can be asked.

    What they do cannot change the scores, but they use the cluster, and would do this run's work twice.
    """
    unreachable: set[tuple[str, str]] = set()
    for attempt in output.list_attempts():
        job = EngineJob.read(attempt.job_file)
        if job is None or job.services in unreachable:
            continue
        try:
            if found := job.cancel():
                _log.warning("An earlier attempt left a job running (%s). %s", job.where, found)
            files.remove(attempt.job_file)
        except OSError as error:
            unreachable.add(job.services)
            _log.warning(
                "An earlier attempt may have left a job running (%s), but %s. It cannot change the scores.",
                job.where,
                error,
            )


def embed(
    photos: Sequence[Photo],
    bundle_path: Path,
    store: EmbeddingStore,
    progress: ProgressReport | None = None,
    beam_args: Sequence[str] = (),
    engine: str = "auto",
) -> Summary:
    """Add the embeddings of photos to the store. Photos whose embeddings are stored cost one lookup.

    If all are stored, neither Beam nor TensorFlow is imported.

    Args:
        photos: the photos.
        bundle_path: bundle whose backbone embeds them.
        store: store of that backbone.
        progress: called with the progress of the run.
        beam_args: options of Apache Beam.
        engine: what runs the backbone, one of serving.contract.ENGINES.

    Raises:
        InputError: a runner or an option of Beam is invalid.
        BundleError: the bundle cannot be used, or has another backbone than the store.
        OutputError: the store cannot be written.
    """
    start = perf_counter()
    beam_args = check_beam_args(beam_args)
    model = bundle.read(bundle_path)
    if store.fingerprint != model.metadata.fingerprint:
        raise BundleError(
            f"{model.path} has another backbone than the store {store.directory}: its fingerprint is"
            f" {model.metadata.fingerprint}.",
            remedy="Give the store of that fingerprint, or a bundle of the store's backbone.",
        )
    known = store.lookup_digests(photos)
    stored = store.get_statuses(known.values())
    reused = {photo: stored[sha] for photo, sha in known.items() if sha in stored}
    before = _count_reused(reused.values())
    meter = Meter(len(photos), progress)
    meter.add(before.photos, before.rejected, known=True)
    worked, count = Stats(), 0
    if len(reused) < len(photos):
        entries = shard.sort_entries((photo, []) for photo in photos if photo not in reused)
        worked, count = _embed_missing(entries, model, store, meter, beam_args, engine)
    total = before + worked
    return Summary(store.directory, total, worked, worked, 0, count, perf_counter() - start)


def _embed_missing(
    entries: Iterable[Entry],
    model: Bundle,
    store: EmbeddingStore,
    meter: Meter,
    beam_args: Sequence[str],
    engine: str,
) -> tuple[Stats, int]:
    """Embed photos that the store does not contain.

    Returns:
        The statistics, and the number of shards.
    """
    files.check_writable(store.directory)
    # A unique name, since two runs may embed the same photos at the same time.
    token = secrets.token_hex(8)
    plan = files.join(store.directory, f"_plan-{token}")
    worker = ShardWorker((str(model.path),), store.root, plan, engine=engine)
    try:
        with PlanWriter(plan) as writer:
            for raw in shard.plan_shards(entries, shard.DEFAULT_SIZE, {}):
                writer.add(raw.to_shard(PassThroughColumns()))
        runner.run(writer.path, worker, meter, beam_args, name=f"hubhead-embed-{token}")
        total = Stats()
        for planned in shard.read_plan(writer.path):
            stats = worker.finished_stats(planned.id)
            if stats is None or not is_complete(planned, stats):
                raise incomplete_error(planned)
            total += stats
        return total, writer.shards
    finally:
        shard.remove_plan(plan)


def _count_reused(statuses: Iterable[Status]) -> Stats:
    stats = Stats()
    stats.statuses.update(status.value for status in statuses)
    return replace(stats, photos=stats.statuses.total(), reused=stats.statuses.total())


def read_models(paths: Sequence[Path]) -> list[Bundle]:
    """Read bundles that are to score in one pass, and sort them by name and version.

    Raises:
        BundleError: a bundle cannot be used, or they have different backbones.
    """
    bundles = sorted((bundle.read(path) for path in paths), key=lambda model: (model.name, model.version))
    for model in bundles:
        if not model.metadata.labels:
            raise BundleError(
                f"{model.path} is a headless bundle: it embeds photos but has no labels.",
                remedy="Give --model a bundle that hubhead train made.",
            )
    first = bundles[0]
    for before, model in pairwise(bundles):
        if model.metadata.fingerprint != first.metadata.fingerprint:
            raise BundleError(
                f"{first.path} and {model.path} have different backbones or preprocessing"
                f" (fingerprints {first.metadata.fingerprint} and {model.metadata.fingerprint}).",
                remedy="Score them in separate runs, each with its own --output.",
            )
        if model_key(before) == model_key(model):
            raise BundleError(
                f"{before.path} and {model.path} would both be called {model.name}, version {model.version},"
                " in the rows.",
                remedy="Give each model once, and give different models different names.",
            )
    return bundles


def describe_model(model: Bundle) -> dict[str, Any]:
    """Return name, version and fingerprint of a model, and a digest of all that its scores depend on."""
    metadata = model.metadata
    rules = [metadata.fingerprint, metadata.labels, metadata.calibration, metadata.top_k]
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode())
    for path in [model.path / contract.SAVED_MODEL_FILE, *sorted((model.path / "variables").glob("*"))]:
        digest.update(path.read_bytes())
    return {
        "name": model.name,
        "version": model.version,
        "digest": digest.hexdigest()[:32],
        "fingerprint": metadata.fingerprint,
    }


def _reserved_columns(partition_by: str) -> dict[str, str]:
    """Return the names that a pass-through column may not have, each with the reason for the error."""
    ours = {name: f"where {name} is one of hubhead's columns" for name in schema.COLUMNS}
    return ours | ({partition_by: f"which are partitioned by {partition_by}"} if partition_by else {})

"""Scoring and embedding from beginning to end: plan what is open, have Beam work on it, check, sum up."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from batch.beam import runner
from batch.beam.runner import check_beam_args
from batch.embeddings import EmbeddingStore, default_root
from batch.inputs.listing import Photo
from batch.inputs.passthrough import PassThroughColumns
from batch.inputs.sources import Source
from batch.jobs import publish
from batch.jobs.planner import RunPlanner, incomplete_error, is_complete
from batch.monitoring.stats import Meter, Progress, Stats
from batch.output import dataset as output
from batch.output import run_diff, run_record, schema
from batch.output.dataset import Output
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
from serving.storage import files, lock

ProgressReport = Callable[[Progress], None]


@dataclass(frozen=True)
class EmbedSettings:
    """How embeddings are made.

    Attributes:
        shard_size: photos a shard at most.
        beam_args: Beam's own options, such as `--runner=FlinkRunner`.
    """

    shard_size: int = shard.DEFAULT_SIZE
    beam_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreSettings:
    """What to score, with what, and where to.

    Attributes:
        model: bundle directories, or the base paths above their versions; all of one backbone.
        output: directory of the scores, local or remote.
        photos: file, directory or glob; "" where a manifest is given.
        manifest: a table of photos, or a glob of some; "" where photos are given.
        uri_column: of the manifest; "" for the usual names.
        embedding_store: root of the embedding store; "" for the shared one.
        shard_size: photos a shard at most.
        share: of the photos, where several runs divide them, each with an output of its own.
        run_id: of the run; "" for the date (UTC) on which it starts.
        only_new: add rows of photos that no run in this output has scored, and leave the others.
        partition_by: one of output.PARTITIONS, or "".
        price_per_hour: of one machine, for the cost in run.json; None leaves it out.
        overwrite: replace the scores of another model or other photos.
        no_report: write no report.html.
        metrics_textfile: file for the node exporter, or "".
        metrics_push: address of a Pushgateway, or "".
        server: of a model server that embeds the photos; None does it here.
        beam_args: Beam's own options, such as `--runner=FlinkRunner`.
    """

    model: tuple[Path, ...]
    output: str
    photos: str = ""
    manifest: str = ""
    uri_column: str = ""
    embedding_store: str = ""
    shard_size: int = shard.DEFAULT_SIZE
    share: Partition = WHOLE_INPUT
    run_id: str = ""
    only_new: bool = False
    partition_by: str = ""
    price_per_hour: float | None = None
    overwrite: bool = False
    no_report: bool = False
    metrics_textfile: str = ""
    metrics_push: str = ""
    server: ClientConfig | None = None
    beam_args: tuple[str, ...] = ()

    @property
    def store_root(self) -> str:
        """The embedding store, the shared one where none is given."""
        return files.absolute(self.embedding_store or default_root())


def score(settings: ScoreSettings, progress: ProgressReport | None = None) -> Summary:
    """Score photos into a Parquet dataset; the same call again does what is left.

    Raises:
        InputError: no photos, a line of a manifest, a runner or a Beam option that cannot be used.
        BundleError: a model cannot be used, two do not go together, or a server has another one.
        OutputBusy: another run is at work in the output.
        OutputError: the output or the store cannot be written, or the output holds something else.
        ServerError: a model server does not answer, at the start or for as long as its `timeout`.
    """
    started, start = datetime.now(UTC), perf_counter()
    beam_args = check_beam_args(settings.beam_args)
    if settings.only_new and settings.overwrite:
        raise InputError("--only_new keeps what --overwrite removes.", remedy="Give one of the two.")
    publish.check_dependencies(settings)
    run_id = output.check_run_id(settings.run_id or started.date().isoformat())
    bundles = read_models(settings.model)
    models = [describe_model(model) for model in bundles]
    place = Output(files.absolute(settings.output), settings.partition_by)
    source = Source(settings.photos, settings.manifest, settings.uri_column, _reserved(settings.partition_by))
    job = RunPlanner(
        place,
        run_id,
        source,
        models,
        only_new=settings.only_new,
        overwrite=settings.overwrite,
        share=settings.share,
    )
    job.check()
    files.check_writable(settings.store_root)
    if settings.server:
        remote_backbone.resolve_version(settings.server, bundles)
    with lock.hold(place.work_directory):
        job.check()  # again, now that nobody else changes it
        open_shards = job.plan(settings.shard_size, progress)
        digests = tuple(model["digest"] for model in models)
        scores = ScoresTarget(place, run_id, started, digests)
        task = ShardWorker(
            tuple(str(model.path) for model in bundles),
            settings.store_root,
            place.plan_directory,
            scores,
            settings.server,
        )
        meter = Meter(job.total.photos + open_shards.photos, progress)
        meter.add(job.total.photos, job.total.rejected, known=True)
        if open_shards.shards:
            runner.run(open_shards.path, task, meter, beam_args)
        worked = job.finish(open_shards)
        summary = Summary(
            path=place.directory,
            total=job.total,
            this_run=worked,
            of_id=job.of_id,
            skipped_shards=job.skipped,
            worked_shards=open_shards.shards,
            seconds=perf_counter() - start,
            run_id=run_id,
            lines=job.lines,
            known=job.known,
            price_per_hour=settings.price_per_hour,
        )
        run = run_record.build_run_record(
            summary, started=started, models=models, settings=_described(settings)
        )
        publish.publish_run(run, summary, place, settings, run_diff.find_previous_run(place, run_id))
        shard.remove_plan(place.plan_directory)
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
    if store.fingerprint != model.metadata.fingerprint:
        raise BundleError(
            f"{model.path} is of another backbone than the store {store.directory}.",
            remedy=f"Its fingerprint is {model.metadata.fingerprint}.",
        )
    known = store.lookup_digests(found)
    there = store.get_statuses(known.values())
    reused = {photo: there[sha] for photo, sha in known.items() if sha in there}
    before = _reused(reused.values())
    meter = Meter(len(found), progress)
    meter.add(before.photos, before.rejected, known=True)
    worked, count = Stats(), 0
    if len(reused) < len(found):
        entries = shard.sort_entries((photo, []) for photo in found if photo not in reused)
        worked, count = _embed_open(entries, model, store, meter, settings.shard_size, beam_args)
    total = before + worked
    return Summary(store.directory, total, worked, worked, 0, count, perf_counter() - start)


def _embed_open(
    entries: Iterable[Entry],
    model: Bundle,
    store: EmbeddingStore,
    meter: Meter,
    shard_size: int,
    beam_args: Sequence[str],
) -> tuple[Stats, int]:
    """Embed photos that the store does not have; the figures, and the number of shards."""
    files.check_writable(store.directory)
    # A name of its own, since two runs may embed the same photos at once.
    plan = files.join(store.directory, f"_plan-{secrets.token_hex(8)}")
    task = ShardWorker((str(model.path),), store.root, plan)
    try:
        with PlanWriter(plan) as writer:
            for piece in shard.plan_shards(entries, shard_size, {}):
                writer.add(piece.to_shard(PassThroughColumns()))
        runner.run(writer.path, task, meter, beam_args)
        total = Stats()
        for planned in shard.read_plan(writer.path):
            stats = task.finished_stats(planned.id)
            if stats is None or not is_complete(planned, stats):
                raise incomplete_error(planned)
            total += stats
        return total, writer.shards
    finally:
        shard.remove_plan(plan)


def _reused(statuses: Iterable[Status]) -> Stats:
    stats = Stats()
    stats.statuses.update(status.value for status in statuses)
    return replace(stats, photos=stats.statuses.total(), reused=stats.statuses.total())


def read_models(paths: Sequence[Path]) -> list[Bundle]:
    """Bundles that score in one pass, in the order of name and version.

    Raises:
        BundleError: one cannot be used, or they are not of one backbone.
    """
    bundles = sorted((bundle.read(path) for path in paths), key=lambda model: (model.name, model.version))
    for model in bundles:
        if not model.metadata.labels:
            raise BundleError(
                f"{model.path} is a headless bundle: it embeds photos and knows no labels.",
                remedy="Give --model the bundle that hubhead train made.",
            )
    first = bundles[0]
    for before, model in pairwise(bundles):
        if model.metadata.fingerprint != first.metadata.fingerprint:
            raise BundleError(
                f"{first.path} and {model.path} have different backbones or preprocessing"
                f" (fingerprints {first.metadata.fingerprint} and {model.metadata.fingerprint}).",
                remedy="Score them in runs of their own, each with another --output.",
            )
        if model_key(before) == model_key(model):
            raise BundleError(
                f"{before.path} and {model.path} would both be called {model.name}, version {model.version},"
                " in the rows.",
                remedy="Give each model once, and other models other names.",
            )
    return bundles


def describe_model(model: Bundle) -> dict[str, Any]:
    """Name and version of a model, and a digest of what its answers depend on."""
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


def _reserved(partition_by: str) -> dict[str, str]:
    """The names that a column of a manifest may not have, and why."""
    ours = {name: f"where {name} is one of hubhead's columns" for name in schema.COLUMNS}
    return ours | ({partition_by: f"which are partitioned by {partition_by}"} if partition_by else {})


def _described(settings: ScoreSettings) -> dict[str, Any]:
    """The settings as JSON values; of a server where it is and what it was asked for, no credentials."""
    models = [str(model) for model in settings.model]
    described = {**asdict(settings), "model": models, "embedding_store": settings.store_root}
    if settings.server:
        described["server"] = {
            "server": settings.server.target,
            "model_name": settings.server.model or None,
            "model_version": settings.server.version,
            "label": settings.server.label,
            "timeout": settings.server.timeout,
        }
    return described

"""Work of a batch worker on the shards of a plan, independent of Beam."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from batch.embeddings import EmbeddingStore
from batch.monitoring.stats import Meter, Stats
from batch.output.attempt import Attempt
from batch.output.shard_record import ScoredKeys
from batch.scoring import remote_backbone
from batch.scoring.embed import Backbone, ModelResources
from batch.scoring.head_runner import HeadRunner, check_dimension
from batch.scoring.shard import embed_shard, score_shard, select_for_model
from batch.shards import scored_index
from batch.shards.shard import PlannedShard, Shard, read_plan
from serving import bundle, contract
from serving.client import ClientConfig
from serving.contract import Status
from serving.storage import files

if TYPE_CHECKING:
    import pyarrow as pa


_STATS = ".stats.json"


@dataclass(frozen=True)
class ScoresTarget:
    """Destination of the rows, and the run that they belong to.

    Attributes:
        attempt: attempt of the run, in whose directory workers leave finished shards.
        run_id: id of the run.
        started: start of the run; written as `scored_at` into all of its rows.
        models: digest of each model.
    """

    attempt: Attempt
    run_id: str
    started: datetime
    models: tuple[str, ...]


@dataclass(frozen=True)
class ShardWorker:
    """Configuration of a worker, and its work on a shard. Beam pickles it for every worker: keep it small.

    Attributes:
        models: version directories of bundles with one backbone; the first one embeds.
        store: root of the embedding store.
        plan: directory of the run's plan; statistics of shards that are only embedded are written there.
        scores: destination of the rows; None to embed only.
        server: connection to a model server that runs the backbone; None to run it in the worker.
        engine: what runs it in the worker, one of serving.contract.ENGINES.
    """

    models: tuple[str, ...]
    store: str
    plan: str
    scores: ScoresTarget | None = None
    server: ClientConfig | None = None
    engine: str = "auto"

    def load_models(self, meter: Meter) -> list[ModelResources]:
        """Return the resources of each model; they share one store.

        Only the first model's backbone is ever loaded, since that model embeds for all.
        """
        heads = [HeadRunner(bundle.read(Path(model))) for model in self.models]
        metadata = heads[0].bundle.metadata
        store = EmbeddingStore(self.store, metadata.fingerprint, metadata.dimension)
        connect = partial(remote_backbone.connect, self.server, heads) if self.server else self._load
        return [ModelResources(head, store, meter, connect) for head in heads]

    def _load(self) -> Backbone:
        from serving import runtime

        model = runtime.load(self.models[0], engine=self.engine)
        path = Path(self.models[0])
        check_dimension(model.signatures, bundle.read(path).metadata, path)
        model.warm_up(contract.EMBED)
        return model

    def load_ahead(self, plan: str, models: Sequence[ModelResources]) -> None:
        """Load the backbone if the first shard of a plan needs it, and the heads.

        Errors are left to the shard.

        A process that is about to work on the plan calls this on a thread, while it imports Beam.
        """
        with suppress(Exception):
            store, photos = models[0].store, next(read_plan(plan)).read_shard().photos
            known = store.lookup_digests(photos)
            present = store.filter_present(known.values())
            if not all(known.get(photo) in present for photo in photos):
                _ = models[0].backbone
            if self.scores:
                for model in models:
                    _ = model.head.run

    def process(self, planned: PlannedShard, models: Sequence[ModelResources]) -> Stats:
        """Process the shard unless a previous attempt already finished it.

        Returns:
            Statistics of the shard.

        Raises:
            LeaseLost: another run took the output over.
            OutputError: the rows or the embedding store cannot be written.
            ServerError: a model server does not answer.
        """
        if self.scores:
            self.scores.attempt.check()
        if (stats := self.finished_stats(planned.id)) is not None:
            return stats
        shard = planned.read_shard()
        if self.scores is None:
            stats = embed_shard(shard, models[0])
            files.write(self._stats_file(shard.id), stats.encode())
            return stats
        table, stats = score_shard(shard, models, self.scores.started)
        with stats.time_stage("write"):  # for Beam only: the record is already written
            self.scores.attempt.commit(
                shard.id,
                self.scores.run_id,
                table,
                stats,
                _scored_keys(shard, table, self.scores.models),
                date=self.scores.started.date().isoformat(),
            )
        return stats

    def finished_stats(self, shard_id: str) -> Stats | None:
        """Return the statistics of a shard that this run finished; None if it did not."""
        if self.scores is not None:
            shard = self.scores.attempt.read(shard_id)
            return shard.record.stats if shard else None
        return Stats.read(self._stats_file(shard_id))

    def list_finished(self) -> set[str]:
        """Return the ids of the shards that this run finished, judged by the names of their files."""
        if self.scores is not None:
            return self.scores.attempt.list_finished()
        names = files.list_names(self.plan)
        return {name.removesuffix(_STATS) for name in names if name.endswith(_STATS)}

    def _stats_file(self, shard_id: str) -> str:
        return files.join(self.plan, f"{shard_id}{_STATS}")


def _scored_keys(shard: Shard, table: pa.Table, models: Iterable[str]) -> dict[str, ScoredKeys]:
    """Return the keys of a shard's photos by model digest; photos to retry in later runs are kept apart."""
    statuses = zip(table["uri"].to_pylist(), table["status"].to_pylist(), strict=True)
    # The status may differ next time, so these photos do not count as scored in another run.
    lost = {uri for uri, status in statuses if status in (Status.UNREADABLE, Status.FAILED)}
    keys = {}
    for number, model in enumerate(models):
        photos, _ = select_for_model(shard, number)
        keys[model] = ScoredKeys(
            [scored_index.scored_key(photo) for photo in photos if photo.uri not in lost],
            [scored_index.scored_key(photo) for photo in photos if photo.uri in lost],
        )
    return keys

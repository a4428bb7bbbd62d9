"""What a worker does with each shard of the plan, without Beam."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from batch.embeddings import EmbeddingStore
from batch.monitoring.stats import Meter, Stats
from batch.output.dataset import Output, ScoredKeys
from batch.scoring import remote_backbone
from batch.scoring.head_runner import HeadRunner
from batch.scoring.shard import Backbone, ModelResources, embed_shard, score_shard, select_for_model
from batch.shards import scored_index
from batch.shards.shard import PlannedShard, Shard
from serving import bundle, contract
from serving.client import ClientConfig
from serving.contract import Status
from serving.storage import files

if TYPE_CHECKING:
    import pyarrow as pa


_STATS = ".stats.json"


@dataclass(frozen=True)
class ScoresTarget:
    """Where rows go, and what they say of their run.

    Attributes:
        output: the dataset.
        run_id: of the run.
        started: of the run: when all its rows were scored, as they say.
        models: digest of each model.
    """

    output: Output
    run_id: str
    started: datetime
    models: tuple[str, ...]


@dataclass(frozen=True)
class ShardWorker:
    """What is to be done with shards; it travels to every worker, so it is small.

    Attributes:
        models: the version directories of bundles of one backbone; the first one embeds.
        store: root of the embedding store.
        plan: directory of the run's plan, which also takes the stats of an embedded shard.
        scores: where rows go; None where only embeddings are wanted.
        server: of a model server that has the backbone; None where it runs in the worker.
    """

    models: tuple[str, ...]
    store: str
    plan: str
    scores: ScoresTarget | None = None
    server: ClientConfig | None = None

    def load_models(self, meter: Meter) -> list[ModelResources]:
        """The models of this process, one store and one backbone between them."""
        heads = [HeadRunner(bundle.read(Path(model))) for model in self.models]
        metadata = heads[0].bundle.metadata
        store = EmbeddingStore(self.store, metadata.fingerprint, metadata.dimension)
        connect = partial(remote_backbone.connect, self.server, heads) if self.server else self._load
        return [ModelResources(head, store, meter, connect) for head in heads]

    def _load(self) -> Backbone:
        from serving import runtime

        model = runtime.load(self.models[0])
        model.run(contract.EMBED, {contract.IMAGE_BYTES: [b""]})  # so that the first photo does not wait
        return model

    def process(self, planned: PlannedShard, models: Sequence[ModelResources]) -> Stats:
        """Do it; a shard that is finished, as after a retry of its element, is not done again."""
        if (stats := self.finished_stats(planned.id)) is not None:
            return stats
        shard = planned.read_shard()
        if self.scores is None:
            stats = embed_shard(shard, models[0])
            files.write(self._stats_file(shard.id), stats.to_json().encode())
            return stats
        table, stats = score_shard(shard, models, self.scores.started)
        with stats.time_stage("write"):  # told to Beam alone: what is written cannot say how long that took
            self.scores.output.commit(
                shard.id,
                self.scores.run_id,
                table,
                stats,
                _scored(shard, table, self.scores.models),
                date=self.scores.started.date().isoformat(),
            )
        return stats

    def finished_stats(self, shard_id: str) -> Stats | None:
        """The figures of a shard that this run has done; None where it has not."""
        if self.scores is not None:
            record = self.scores.output.read_record(shard_id, self.scores.run_id)
            return record.stats if record else None
        try:
            return Stats.from_json(files.read(self._stats_file(shard_id)))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def list_finished(self) -> set[str]:
        """The ids of those that this run has done, by the names of what they leave behind."""
        if self.scores is not None:
            run_id, records = self.scores.run_id, self.scores.output.list_records()
            return {shard_id for shard_id, runs in records.items() if run_id in runs}
        names = files.list_names(self.plan)
        return {name.removesuffix(_STATS) for name in names if name.endswith(_STATS)}

    def _stats_file(self, shard_id: str) -> str:
        return files.join(self.plan, f"{shard_id}{_STATS}")


def _scored(shard: Shard, table: pa.Table, models: Iterable[str]) -> dict[str, ScoredKeys]:
    """The keys of the photos that a shard's rows are about, by model; apart those that are tried again."""
    statuses = zip(table["uri"].to_pylist(), table["status"].to_pylist(), strict=True)
    lost = {uri for uri, status in statuses if status in (Status.UNREADABLE, Status.FAILED)}
    found = {}
    for number, model in enumerate(models):
        photos, _ = select_for_model(shard, number)
        found[model] = ScoredKeys(
            [scored_index.scored_key(photo) for photo in photos if photo.uri not in lost],
            [scored_index.scored_key(photo) for photo in photos if photo.uri in lost],
        )
    return found

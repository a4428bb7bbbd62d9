"""Settings that the score and the rescore job share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any

from batch.embeddings import default_root
from serving.storage import files


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run that writes scores.

    Attributes:
        model: bundle directories, or the base paths above their versions; all with one backbone.
        output: directory of the scores, local or remote.
        embedding_store: root of the embedding store; "" for the default store.
        run_id: id of the run; "" for the date (UTC) on which it starts.
        partition_by: one of batch.output.dataset.PARTITIONS, or "".
        engine: what embeds photos in the workers, one of serving.contract.ENGINES.
        price_per_hour: price of one machine, for the cost in run.json; None to omit it.
        overwrite: replace the scores of another model or of other photos.
        no_report: write no report.html.
        metrics_textfile: file for the node exporter's textfile collector, or "".
        metrics_push: address of a Pushgateway, or "".
        configuration: options of the command, as in a configuration file, for run.json.
    """

    model: tuple[Path, ...]
    output: str
    _: KW_ONLY
    embedding_store: str = ""
    run_id: str = ""
    partition_by: str = ""
    engine: str = "auto"
    price_per_hour: float | None = None
    overwrite: bool = False
    no_report: bool = False
    metrics_textfile: str = ""
    metrics_push: str = ""
    configuration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def store_root(self) -> str:
        """Root of the embedding store; the default store unless one is given."""
        return files.absolute(self.embedding_store or default_root())

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        models = [str(path) for path in self.model]
        return {**asdict(self), "model": models, "embedding_store": self.store_root}

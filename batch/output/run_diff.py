"""Comparison of two runs by their records (run.json)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from batch.monitoring import drift
from batch.monitoring.drift import Change, DecisionCounts, Moments
from batch.output.dataset import Output
from batch.output.run_record import ModelRecord, RunRecord, read_run
from serving.errors import InputError
from serving.storage import files

_log = logging.getLogger(__name__)

_READERS = 16


@dataclass(frozen=True)
class RunDiff:
    """Changes from a previous run, as far as both records contain the figures.

    Attributes:
        since: id of the previous run.
        embeddings: shift of the mean embedding; None if the backbones differ.
        models: changes of `labels` and `scores` of each model in both runs, by `name/version`.
        before: decisions of the same model, or of its previous version, in the previous run.
    """

    since: str
    embeddings: Change | None = None
    models: Mapping[str, Mapping[str, Change]] = field(default_factory=dict)
    before: Mapping[str, DecisionCounts] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the changes as JSON values, without `before`, which the previous run.json contains."""
        models = {
            name: {what: change.to_json() for what, change in changes.items()}
            for name, changes in self.models.items()
        }
        embeddings = self.embeddings and self.embeddings.to_json()
        return {"since": self.since, "embeddings": embeddings, "models": models}


def find_previous_run(output: Output, run_id: str) -> RunRecord | None:
    """Return the record of the newest run in an output other than the given one; None if there is none."""
    directory = files.join(output.work_directory, "runs")
    own = output.run_record_file(run_id)
    uris = [files.join(directory, name) for name in files.list_names(directory) if name.endswith(".json")]
    with ThreadPoolExecutor(_READERS, "runs") as pool:
        found = list(pool.map(_read_record, (uri for uri in uris if uri != own)))
    return max((run for run in found if run is not None), key=lambda run: run["finished"], default=None)


def _read_record(uri: str) -> RunRecord | None:
    try:
        return read_run(uri)
    except (OSError, InputError) as error:
        _log.warning("The record of a previous run is ignored: %s", error)
        return None


def model_key(model: ModelRecord) -> str:
    """Return `name/version` of a model in a run record."""
    return f"{model['name']}/{model['version']}"


def compare_runs(now: RunRecord, before: RunRecord) -> RunDiff:
    """Return the changes between two runs, as far as both records have the figures."""
    since = before["run_id"]
    try:
        pairs = {
            model_key(model): (DecisionCounts.from_json(model), DecisionCounts.from_json(previous))
            for model in now["models"]
            if (previous := _find_counterpart(model, before["models"])) is not None and "scores" in previous
        }
        embeddings = None
        if "embeddings" in before and _list_fingerprints(now) == _list_fingerprints(before):
            embeddings = drift.embedding_shift(
                *(Moments.from_json(run["embeddings"]) for run in (now, before))
            )
    except ValueError:  # histograms or moments of another size
        return RunDiff(since)
    return RunDiff(
        since,
        embeddings,
        {name: drift.compare_counts(*pair) for name, pair in pairs.items()},
        {name: previous for name, (_, previous) in pairs.items()},
    )


def _find_counterpart(model: ModelRecord, others: list[ModelRecord]) -> ModelRecord | None:
    """Return the same version of a model in another run, or else its newest version there."""
    same_name = [other for other in others if other["name"] == model["name"]]
    same_version = [other for other in same_name if other["version"] == model["version"]]
    return max(same_version or same_name, key=lambda other: other["version"], default=None)


def _list_fingerprints(run: RunRecord) -> set[str]:
    return {model["fingerprint"] for model in run["models"]}

"""What changed between two runs, by what run.json says of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from batch.monitoring import drift
from batch.monitoring.drift import Change, DecisionCounts, Moments
from batch.output.dataset import Output
from serving.storage import files

RunRecord = Mapping[str, Any]
"""What run.json says."""

_READERS = 16


@dataclass(frozen=True)
class RunDiff:
    """The differences, as far as they are known.

    Attributes:
        since: id of the earlier run.
        embeddings: how far the photos moved, as the backbone sees them; None with another backbone.
        models: of each model of the run, by `name/version`, the differences of `labels` and `scores`.
        before: what the same model, or its earlier version, decided in that run.
    """

    since: str
    embeddings: Change | None = None
    models: Mapping[str, Mapping[str, Change]] = field(default_factory=dict)
    before: Mapping[str, DecisionCounts] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without what run.json of the earlier run has."""
        models = {
            name: {what: change.to_json() for what, change in found.items()}
            for name, found in self.models.items()
        }
        embeddings = self.embeddings and self.embeddings.to_json()
        return {"since": self.since, "embeddings": embeddings, "models": models}


def find_previous_run(output: Output, run_id: str) -> RunRecord | None:
    """The newest run in an output beside that of this id; None where there is none."""
    directory = files.join(output.work_directory, "runs")
    own = output.run_record(run_id)
    uris = [files.join(directory, name) for name in files.list_names(directory) if name.endswith(".json")]
    with ThreadPoolExecutor(_READERS, "runs") as pool:
        found = list(pool.map(_read, (uri for uri in uris if uri != own)))
    return max(
        (run for run in found if run is not None), key=lambda run: str(run.get("finished")), default=None
    )


def _read(uri: str) -> RunRecord | None:
    try:
        run = json.loads(files.read(uri))
    except (OSError, ValueError):
        return None
    return run if isinstance(run, dict) else None


def model_key(model: Mapping[str, Any]) -> str:
    """How a model is called where several are told apart."""
    return f"{model['name']}/{model['version']}"


def compare_runs(now: RunRecord, before: RunRecord) -> RunDiff:
    """What is different now; a run whose record does not tell is as good as none."""
    since = str(before.get("run_id", ""))
    try:
        pairs = {
            model_key(model): (DecisionCounts.from_json(model), DecisionCounts.from_json(earlier))
            for model in now["models"]
            if (earlier := _earlier(model, before["models"])) is not None
        }
        embeddings = None
        if _fingerprints(now) == _fingerprints(before):
            embeddings = drift.embedding_shift(
                *(Moments.from_json(run["embeddings"]) for run in (now, before))
            )
    except (KeyError, TypeError, ValueError, AttributeError):
        return RunDiff(since)
    return RunDiff(
        since,
        embeddings,
        {name: drift.compare_counts(*pair) for name, pair in pairs.items()},
        {name: earlier for name, (_, earlier) in pairs.items()},
    )


def _earlier(model: Mapping[str, Any], others: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The same model in another run, else its newest version there."""
    named = [other for other in others if other["name"] == model["name"]]
    same = [other for other in named if other["version"] == model["version"]]
    return max(same or named, key=lambda other: int(other["version"]), default=None)


def _fingerprints(run: RunRecord) -> set[str]:
    return {str(model["fingerprint"]) for model in run["models"]}

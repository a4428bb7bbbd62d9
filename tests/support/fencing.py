"""Changes of an output, an embedding store and a registry, by processes that can be stopped at any step.

`python -m tests.support.fencing CHANGE WHERE NAME FUNCTION NUMBER` makes a change, and before the n-th call
of a method of the lease prints a line and waits for one. It exits with 1 and the error if the change fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.errors import HubheadError
from serving.storage import lease

LEASE_SECONDS = 0.6
HEARTBEAT_SECONDS = 0.1
YOUNG_SECONDS = -60.0


def write_scores(where: str, name: str) -> None:
    """Write one shard to an output, and publish the run, as `hubhead score` does."""
    import pyarrow as pa

    from batch.monitoring.stats import Stats
    from batch.output.dataset import Output
    from batch.output.finished import Publication
    from batch.output.shard_record import ScoredKeys

    with Output(f"{where}/out").hold_lease() as output:
        publication = Publication(output)
        table, scored = pa.table({"run": [name]}), {"model": ScoredKeys([name.encode().ljust(24)])}
        stats = Stats(photos=1, rows=1)
        publication.attempt.commit("0" * 32, name, table, stats, scored, date="2026-05-31")
        assert list(publication.collect(["0" * 32]))
        publication.publish({"photos": "p", "models": [], "partition_by": ""}, [], ["model"])
        output.publish_run("night", name.encode(), b"<html>")
        output.remove_attempts()


def compact_store(where: str, name: str) -> None:
    """Compact an embedding store, and delete what no photo refers to."""
    from batch.embeddings import maintenance

    del name
    maintenance.compact(f"{where}/store", "f1")
    maintenance.prune(f"{where}/store", "f1")


def promote_bundle(where: str, name: str) -> None:
    """Promote a bundle, given its directory, without a configuration."""
    _promote(where, name, config=False)


def move_label(where: str, name: str) -> None:
    """Promote a bundle, given its directory, and move the label stable in model.config."""
    _promote(where, name, config=True)


def _promote(where: str, name: str, *, config: bool) -> None:
    from serving.registry.promote import promote
    from serving.registry.target import DeploymentTarget
    from serving.storage.address import parse_address

    base = parse_address(f"{where}/models/double")
    target = DeploymentTarget(base, "double", parse_address(f"{where}/model.config") if config else None)
    promote(target, source=Path(name))


CHANGES: dict[str, Callable[[str, str], None]] = {
    "scores": write_scores,
    "embeddings": compact_store,
    "registry": promote_bundle,
    "labels": move_label,
}


def main(change: str, where: str, name: str, function: str, number: str) -> None:
    """Make a change that waits before the n-th call of a method of the lease."""
    from batch.embeddings import maintenance

    maintenance.YOUNG_SECONDS = YOUNG_SECONDS
    lease.LEASE_SECONDS, lease.HEARTBEAT_SECONDS = LEASE_SECONDS, HEARTBEAT_SECONDS
    original, calls = getattr(lease.Lease, function), 0

    def wait(self: lease.Lease, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(number):
            print("waiting", flush=True)
            sys.stdin.readline()
        return original(self, *arguments, **named)

    setattr(lease.Lease, function, wait)
    try:
        CHANGES[change](where, name)
    except HubheadError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Inventory of a model: its versions, their verdicts and which of them are served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from serving import bundle
from serving.errors import BundleError
from serving.registry import verdict
from serving.registry.stores.store import Store
from serving.registry.target import DeploymentTarget
from serving.storage.address import Address


@dataclass(frozen=True)
class Version:
    """One version of a model.

    Attributes:
        version: version number.
        path: directory or address of the version.
        labels: version labels that point to it.
        live: True for the version that answers requests without a version or label: the newest one served.
        serves: True if the configuration has it served.
        state: state reported by the server; None if no server was queried or it does not know the version.
        size: total size of its files, in bytes.
        verdict: "blessed", "forced", "not blessed", "none", or "void" if the bundle has changed since.
        failed: names of the checks that it failed.
        accuracy: {"value", "n", "low", "high"} on its test photos; None if unknown.
        label_count: number of class labels.
        created: time of its training, ISO 8601; None if unknown.
        problem: why its metadata cannot be read, or "".
    """

    version: int
    path: Address
    labels: tuple[str, ...]
    live: bool
    serves: bool
    state: str | None
    size: int
    verdict: str = "none"
    failed: tuple[str, ...] = ()
    accuracy: Mapping[str, Any] | None = None
    label_count: int = 0
    created: str | None = None
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return {**vars(self), "path": str(self.path)}


def list_versions(target: DeploymentTarget) -> list[Version]:
    """List all versions, newest first.

    Raises:
        InputError: the configuration cannot be read.
        ServerError: the server does not answer.
    """
    existing = target.versions
    config = target.read_config()
    configured = config.served_versions(existing)
    states = {s.version: s.state.value for s in target.client.status()} if target.client else {}
    # Without a server to query, assume that it has loaded what the configuration names.
    serving = [v for v in existing if states.get(v) == "AVAILABLE"] if target.client else list(configured)
    live = max(serving, default=None)
    return [
        _describe_version(
            target.store,
            number,
            labels=tuple(label for label, on in config.labels.items() if on == number),
            live=number == live,
            serves=number in configured,
            state=states.get(number),
        )
        for number in reversed(existing)
    ]


def verdict_of(store: Store, version: int) -> tuple[str, tuple[str, ...]]:
    """Return the verdict and the names of the failed checks of a version, as in `Version`."""
    found = verdict.read(store.path(version))
    if found is None:
        return "none", ()
    failed = tuple(check.name for check in found.failed)
    if found.content != store.digest(version):
        return "void", failed
    if found.forced:
        return "forced", failed
    return ("blessed" if found.blessed else "not blessed"), failed


def _describe_version(store: Store, number: int, **known: Any) -> Version:
    """Read a version's metadata and verdict; what cannot be read becomes its `problem`."""
    path = store.path(number)
    found = Version(number, path, size=sum(store.sizes(number).values()), **known)
    try:
        metadata = bundle.read_metadata(path)
        found = replace(
            found,
            accuracy=(metadata.metrics.get("test") or {}).get("accuracy"),
            label_count=len(metadata.labels),
            created=metadata.provenance.get("created"),
        )
        word, failed = verdict_of(store, number)
    except BundleError as error:
        return replace(found, problem=error.what)
    return replace(found, verdict=word, failed=failed)

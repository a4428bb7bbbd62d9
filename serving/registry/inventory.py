"""The versions of a model: what is known of each, and which of them serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.errors import BundleError
from serving.registry.stores.store import Store
from serving.registry.target import DeploymentTarget
from serving.storage.address import Address


@dataclass(frozen=True)
class Version:
    """One version of a model.

    Attributes:
        version: its number.
        path: its directory or address.
        labels: version labels on it.
        live: whether it is what callers get who ask for no version: the newest of those that serve.
        serves: whether the configuration has it served.
        state: what the server says of it; None where none is asked or it does not know the version.
        verdict: "blessed", "forced", "not blessed", "none", or "void" where the bundle changed since.
        failed: the checks that it did not pass.
        accuracy: {"value", "n", "low", "high"} on its test photos; None where it is not known.
        label_count: labels that it knows.
        created: when, ISO 8601; None where it is not known.
        size: bytes of its files.
        problem: why its records cannot be read, or "".
    """

    version: int
    path: Address
    labels: tuple[str, ...]
    live: bool
    serves: bool
    state: str | None
    verdict: str
    failed: tuple[str, ...]
    accuracy: Mapping[str, Any] | None
    label_count: int
    created: str | None
    size: int
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "path": str(self.path)}


def list_versions(place: DeploymentTarget) -> list[Version]:
    """All versions, newest first.

    Raises:
        InputError: the configuration cannot be used.
        ServerError: the server does not answer.
    """
    there = place.versions
    config = place.read_config()
    serving = config.serves(there)
    states = {s.version: s.state.value for s in place.client.status()} if place.client else {}
    answering = [v for v in there if states.get(v) == "AVAILABLE"] if place.client else list(serving)
    live = max(answering, default=None)
    return [
        _version(
            place.store,
            number,
            labels=tuple(label for label, on in config.labels.items() if on == number),
            live=number == live,
            serves=number in serving,
            state=states.get(number),
        )
        for number in reversed(there)
    ]


def verdict_of(store: Store, version: int) -> tuple[str, tuple[str, ...]]:
    """(verdict in a word, the checks that failed) of a version, as in `Version`."""
    found = store.verdict(version)
    if found is None:
        return "none", ()
    failed = tuple(check.name for check in found.failed)
    if found.content != store.digest(version):
        return "void", failed
    if found.forced:
        return "forced", failed
    return ("blessed" if found.blessed else "not blessed"), failed


def _version(store: Store, number: int, **known: Any) -> Version:
    problem, word = "", "none"
    failed: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = {}
    label_count, created = 0, None
    try:
        metadata = store.read_metadata(number)
        metrics, label_count = metadata.metrics, len(metadata.labels)
        created = metadata.provenance.get("created")
        word, failed = verdict_of(store, number)
    except BundleError as error:
        problem = error.what
    return Version(
        number,
        store.path(number),
        verdict=word,
        failed=failed,
        accuracy=metrics.get("test", {}).get("accuracy"),
        label_count=label_count,
        created=created,
        size=sum(store.sizes(number).values()),
        problem=problem,
        **known,
    )

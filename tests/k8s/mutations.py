"""Ways to break the manifests, each of them one that an editor slips into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.k8s.reading import Manifest, find, job_specs, of_kind, server


@dataclass(frozen=True)
class Mutation:
    """One mistake.

    Attributes:
        name: what is wrong.
        change: makes it so, in a variant's manifests.
        variant: the one that it is made in.
        caught: whether a check or a schema is known to see it.
    """

    name: str
    change: Callable[[list[Manifest]], object]
    variant: str = "cpu"
    caught: bool = True


def spec_of(manifests: list[Manifest], kind: str, name: str = "hubhead-serving") -> Manifest:
    """The spec of a resource, by default of the servers'."""
    spec: Manifest = find(manifests, kind, name)["spec"]
    return spec


def swap(a_container: Manifest, old: str, new: str | None) -> None:
    """Another argument in place of one; None: none."""
    args = a_container["args"]
    place = args.index(old)
    args[place : place + 1] = [] if new is None else [new]


def serve(manifests: list[Manifest]) -> Manifest:
    """The model server's container."""
    return server(manifests)[1]


def pod_of_server(manifests: list[Manifest]) -> Manifest:
    """The spec of its pod."""
    spec: Manifest = server(manifests)[0]["spec"]
    return spec


def job(manifests: list[Manifest], name: str) -> Any:
    """The spec of a job."""
    return job_specs(manifests)[f"hubhead-{name}"]


def edit(manifests: list[Manifest], file: str, old: str, new: str) -> None:
    """Another text in a file of a ConfigMap."""
    data = next(m["data"] for m in of_kind(manifests, "ConfigMap") if file in m["data"])
    assert old in data[file], f"{file} has no {old}"
    data[file] = data[file].replace(old, new)


def fail_rule(manifests: list[Manifest], name: str) -> Any:
    """When a job fails at once, by its container's exit code."""
    rules = job(manifests, name)["podFailurePolicy"]["rules"]
    return next(rule for rule in rules if rule["action"].startswith("Fail"))["onExitCodes"]

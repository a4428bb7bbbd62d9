"""Mutations of the manifests: realistic mistakes that the checks must find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.k8s.reading import Manifest, find, get_job_specs, select_kind, server


@dataclass(frozen=True)
class Mutation:
    """One mistake in the manifests.

    Attributes:
        name: description of the mistake.
        change: makes the mistake in the manifests of a variant.
        variant: variant that is changed.
        caught: True if a check or a schema is known to find it.
    """

    name: str
    change: Callable[[list[Manifest]], object]
    variant: str = "cpu"
    caught: bool = True


def spec_of(manifests: list[Manifest], kind: str, name: str = "hubhead-serving") -> Manifest:
    """Return the spec of a resource; by default that of the servers."""
    spec: Manifest = find(manifests, kind, name)["spec"]
    return spec


def swap(a_container: Manifest, old: str, new: str | None) -> None:
    """Replace an argument; None deletes it."""
    args = a_container["args"]
    position = args.index(old)
    args[position : position + 1] = [] if new is None else [new]


def serve(manifests: list[Manifest]) -> Manifest:
    """Return the container of the model server."""
    return server(manifests)[1]


def pod_of_server(manifests: list[Manifest]) -> Manifest:
    """Return the pod spec of the model server."""
    spec: Manifest = server(manifests)[0]["spec"]
    return spec


def job(manifests: list[Manifest], name: str) -> Any:
    """Return the spec of a job."""
    return get_job_specs(manifests)[f"hubhead-{name}"]


def edit(manifests: list[Manifest], file: str, old: str, new: str) -> None:
    """Replace text in a file of a ConfigMap."""
    data = next(m["data"] for m in select_kind(manifests, "ConfigMap") if file in m["data"])
    assert old in data[file], f"{file} has no {old}"
    data[file] = data[file].replace(old, new)


def fail_rule(manifests: list[Manifest], name: str) -> Any:
    """Return the exit code rule by which a job fails without a retry."""
    rules = job(manifests, name)["podFailurePolicy"]["rules"]
    return next(rule for rule in rules if rule["action"].startswith("Fail"))["onExitCodes"]

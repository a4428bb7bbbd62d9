"""Overlays that are applied to a cluster for the time of a test."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.k8s.reading import Manifest, load_manifests, names
from tests.support.kubernetes.api import NAMESPACE, Api, Object
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.definitions import read_definitions
from tests.support.kubernetes.resources import OPERATOR_ACCOUNT, service_account, storage_class, volumes

LIMIT_SECONDS = 120.0
"""Time limit of every wait: controllers act within seconds, on a loaded machine within tens of seconds."""


def to_json(manifests: list[Manifest]) -> str:
    """Return manifests as one file for kubectl."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})


def eventually(condition: Callable[[], Any], what: str, seconds: float = LIMIT_SECONDS) -> Any:
    """Wait until a condition is true, and return its value; `what` describes it in the error."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return value


def workloads(variant: str) -> list[Manifest]:
    """Return the manifests of a variant without the pods that are applied on their own."""
    return [m for m in load_manifests(variant) if m["kind"] != "Pod"]


@functools.cache
def install_definitions(cluster: ControlPlane) -> None:
    """Install the custom kinds and the storage class of the volumes, once a cluster."""
    manifests = [*read_definitions(), storage_class()]
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=to_json(manifests))
    cluster.kubectl("wait", "--for=condition=Established", "customresourcedefinitions", "--all")


@contextmanager
def prepared(cluster: ControlPlane) -> Iterator[None]:
    """Install the custom kinds, and volumes for claims; afterwards delete the volumes."""
    install_definitions(cluster)
    api = cluster.api
    made = [api.call("POST", api.path("persistentvolumes"), volume)[0] for volume in volumes()]
    assert set(made) == {201}, made
    try:
        yield
    finally:
        api.call("DELETE", f"{api.path('persistentvolumes')}?labelSelector=test=volume")


@contextmanager
def applied(cluster: ControlPlane, manifests: list[Manifest]) -> Iterator[None]:
    """Apply manifests with volumes for their claims, and delete them afterwards, but not their namespace."""
    with prepared(cluster):
        try:
            cluster.kubectl("apply", "-f", "-", stdin=to_json(manifests))
            if names(manifests, "FlinkDeployment"):
                account = to_json([service_account(OPERATOR_ACCOUNT)])
                cluster.kubectl("apply", "--server-side", "-f", "-", stdin=account)
            yield
        finally:
            empty_namespace(cluster.api, manifests)


def empty_namespace(api: Api, manifests: list[Manifest]) -> None:
    """Delete the objects of manifests and what came of them; the namespace stays.

    The controller of namespaces waits five seconds before it deletes what is in one, and half a grace period
    before it looks again.
    """
    kept = ("Namespace", "PriorityClass")
    for manifest in manifests:
        if manifest["kind"] not in kept:
            api.call("DELETE", f"{api.path_of(manifest)}?propagationPolicy=Background")
    eventually(lambda: not _delete_rest(api), "the namespace is empty")


def _delete_rest(api: Api) -> list[Object]:
    """Delete what workloads have created, and return what is left of it and of the claims."""
    for resource in ("jobs", "replicasets", "pods"):
        options = "propagationPolicy=Background&gracePeriodSeconds=0"
        api.call("DELETE", f"{api.path(resource)}?{options}")
    return [
        found
        for resource in ("jobs", "replicasets", "pods", "persistentvolumeclaims")
        for found in api.items(resource)
    ]


def delete_namespace(cluster: ControlPlane) -> None:
    """Delete the namespace that an earlier test has left, and wait until it is gone."""
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")


def wait_until_deleted(api: Api) -> None:
    """Wait until the namespace and all that is in it are deleted."""
    eventually(
        lambda: api.call("GET", f"/api/v1/namespaces/{NAMESPACE}")[0] == 404, "the namespace is deleted"
    )


def servers(api: Api) -> list[Object]:
    """Return the pods of the model servers that are not being deleted."""
    pods = api.items("pods", "app.kubernetes.io/component=serving")
    return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]


def is_ready(pod: Object) -> bool:
    """Return whether the condition Ready of a pod holds."""
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def wait_until_ready(api: Api, number: int) -> list[Object]:
    """Wait until this number of servers is ready, and return them."""
    return list(
        eventually(
            lambda: ready if len(ready := [pod for pod in servers(api) if is_ready(pod)]) == number else None,
            f"{number} servers are ready",
        )
    )


def conditions(job: Object) -> dict[str, Object]:
    """Return the conditions of a job that hold, by type."""
    return {one["type"]: one for one in job["status"].get("conditions", []) if one["status"] == "True"}


def pods_of_job(api: Api, job: str) -> list[Object]:
    """Return the pods of a job, the oldest first."""
    pods = api.items("pods", f"batch.kubernetes.io/job-name={job}")
    return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def create_job(cluster: ControlPlane, name: str, job: str) -> None:
    """Create a Job of a CronJob, as `kubectl create job --from` does."""
    api = cluster.api
    cron = api.get("cronjobs", f"hubhead-{name}")
    template = cron["spec"]["jobTemplate"]
    owner = {
        **{key: cron[key] for key in ("apiVersion", "kind")},
        **{key: cron["metadata"][key] for key in ("name", "uid")},
        "controller": True,
    }
    metadata = {
        "name": job,
        "labels": template["metadata"]["labels"],
        "annotations": {"cronjob.kubernetes.io/instantiate": "manual"},
        "ownerReferences": [owner],
    }
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]}
    status, answer = api.call("POST", api.path("jobs"), body)
    assert status == 201, answer


def wait_until_complete(api: Api, job: str) -> None:
    """Wait until a Job has succeeded."""
    eventually(lambda: "Complete" in conditions(api.get("jobs", job)), f"{job} is complete")


def unschedulable(pod: Object) -> str:
    """Return why no node takes a pod, or ""."""
    for one in pod["status"].get("conditions", []):
        if one["type"] == "PodScheduled" and one["status"] == "False":
            return str(one.get("message", ""))
    return ""


def drain(cluster: ControlPlane, node: str, selector: str, seconds: int) -> Any:
    """Evict the pods of a node that a selector matches, with kubectl, and let the node take new ones.

    Returns:
        The completed process of `kubectl drain`, which fails if it has not evicted all within the seconds.
    """
    flags = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", f"--timeout={seconds}s")
    done = cluster.kubectl("drain", node, *flags, f"--pod-selector={selector}", check=False)
    cluster.kubectl("uncordon", node)
    return done

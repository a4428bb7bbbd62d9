"""Rollouts, drains and scheduling of the overlays, on nodes that are only objects."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import pytest

from tests.k8s.reading import K8S, Manifest, find, load_manifests
from tests.support.kubernetes.api import NAMESPACE, Api
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.deployment import (
    applied,
    conditions,
    create_job,
    drain,
    eventually,
    is_ready,
    pods_of_job,
    servers,
    to_json,
    unschedulable,
    wait_until_complete,
    wait_until_ready,
    workloads,
)
from tests.support.kubernetes.nodes import LARGE, Behaviour, FakeNodes, Node

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.server,
    pytest.mark.needs("etcd", "kubectl"),
    pytest.mark.slow(seconds=20),
]

LAPTOP = Node("laptop", cpu="2", memory="9.3Gi")
"""Smallest machine of overlays/local: 2 CPUs and 10 GB."""


def restart(cluster: ControlPlane) -> None:
    cluster.kubectl("-n", NAMESPACE, "rollout", "restart", "deployment/hubhead-serving")


def rollout_is_complete(api: Api) -> bool:
    deployment = api.get("deployments", "hubhead-serving")
    status = deployment["status"]
    wanted = deployment["spec"]["replicas"]
    return bool(
        status.get("observedGeneration") == deployment["metadata"]["generation"]
        and status.get("updatedReplicas")
        == status.get("replicas")
        == status.get("availableReplicas")
        == wanted
    )


# --- Servers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "gpus", "completes"),
    [("gpu", 3, True), ("gpu", 2, False), ("gpu-scarce", 2, True)],
    ids=["spare GPU", "no spare GPU", "no spare GPU, scarce"],
)
def test_a_rollout_needs_a_spare_gpu_but_in_gpu_scarce(
    cluster: ControlPlane, nodes: FakeNodes, variant: str, gpus: int, completes: bool
) -> None:
    nodes.add(Node("gpu", gpus=gpus))
    with applied(cluster, workloads(variant)):
        before = {pod["metadata"]["name"] for pod in wait_until_ready(cluster.api, 2)}
        restart(cluster)
        if completes:
            eventually(lambda: rollout_is_complete(cluster.api), "the rollout is complete")
            assert not before & {pod["metadata"]["name"] for pod in servers(cluster.api)}
        else:
            waiting = eventually(
                lambda: [pod for pod in servers(cluster.api) if unschedulable(pod)],
                "a server waits for a GPU",
            )
            assert "Insufficient nvidia.com/gpu" in unschedulable(waiting[0])
            # Both old servers go on.
            assert before <= {p["metadata"]["name"] for p in servers(cluster.api) if is_ready(p)}


def test_a_drain_evicts_one_server_at_a_time(cluster: ControlPlane, nodes: FakeNodes) -> None:
    nodes.add(Node("one"), Node("two", zone="b"))
    with applied(cluster, workloads("cpu")):
        ready = wait_until_ready(cluster.api, 2)
        assert {pod["spec"]["nodeName"] for pod in ready} == {"one", "two"}  # spread over the nodes
        # Those that replace them do not get ready.
        nodes.behaviours = {re.escape(pod["metadata"]["name"]): Behaviour() for pod in ready}
        nodes.behaviours["hubhead-serving"] = Behaviour(ready=False)
        assert drain(cluster, "one", "app.kubernetes.io/component=serving", 20).returncode == 0
        second = drain(cluster, "two", "app.kubernetes.io/component=serving", 8)
        assert second.returncode != 0
        assert "would violate the pod's disruption budget" in second.stderr
        assert any(is_ready(pod) for pod in servers(cluster.api))


def test_servers_that_are_not_ready_do_not_hold_up_a_drain(cluster: ControlPlane, nodes: FakeNodes) -> None:
    """Before the first promotion no server is ready."""
    nodes.add(Node("one"), Node("two"))
    nodes.behaviours["hubhead-serving"] = Behaviour(ready=False)
    with applied(cluster, workloads("cpu")):
        eventually(
            lambda: [pod["status"]["phase"] for pod in servers(cluster.api)] == ["Running"] * 2,
            "two servers run",
        )
        for node in ("one", "two"):
            done = drain(cluster, node, "app.kubernetes.io/component=serving", 30)
            assert done.returncode == 0, done.stderr


# --- The laptop -----------------------------------------------------------------------------------------


def system_pods() -> Manifest:
    """Return a pod that requests what those of kind's control plane do together, on one node."""
    requests = {"cpu": "950m", "memory": "290Mi"}
    container = {"name": "system", "image": "system", "resources": {"requests": requests}}
    spec = {"containers": [container], "priorityClassName": "system-cluster-critical"}
    metadata = {"name": "system", "namespace": "kube-system"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.fixture
def laptop(cluster: ControlPlane, nodes: FakeNodes) -> Iterator[FakeNodes]:
    """The smallest machine of overlays/local, with the overlay, the loader and the toolbox."""
    nodes.add(LAPTOP)
    nodes.behaviours["^system$"] = Behaviour()
    cluster.kubectl("apply", "-f", "-", stdin=to_json([system_pods()]))
    try:
        with applied(cluster, workloads("local")):
            cluster.kubectl("apply", "-f", K8S / "loader.yaml")
            wait_until_ready(cluster.api, 1)
            yield nodes
    finally:
        cluster.kubectl("-n", "kube-system", "delete", "pod", "system")


def test_a_training_runs_beside_server_and_loader_on_two_cpus(
    cluster: ControlPlane, laptop: FakeNodes
) -> None:
    create_job(cluster, "train", "train-1")
    wait_until_complete(cluster.api, "train-1")
    restart(cluster)
    eventually(lambda: rollout_is_complete(cluster.api), "the rollout is complete")
    assert cluster.api.get("pods", "hubhead-loader")["status"]["phase"] == "Running"


def test_a_promotion_preempts_a_training_and_never_the_loader(
    cluster: ControlPlane, laptop: FakeNodes
) -> None:
    laptop.behaviours["^train-"] = Behaviour(runs=True)
    trainings = ("train-1", "train-2")
    for name in trainings:
        create_job(cluster, "train", name)
    eventually(
        lambda: any(
            unschedulable(pod) for name in ("train-1", "train-2") for pod in pods_of_job(cluster.api, name)
        ),
        "the node is full",
    )
    create_job(cluster, "promote", "promote-1")
    wait_until_complete(cluster.api, "promote-1")
    assert cluster.api.get("pods", "hubhead-loader")["status"]["phase"] == "Running"
    for name in trainings:
        job = cluster.api.get("jobs", name)  # the preempted pod is no failure
        assert (job["status"].get("failed", 0), conditions(job)) == (0, {})


def test_the_toolbox_waits_instead_of_preempting_a_training(cluster: ControlPlane, laptop: FakeNodes) -> None:
    laptop.behaviours["^train-"] = Behaviour(runs=True)
    create_job(cluster, "train", "train-1")
    (training,) = eventually(lambda: pods_of_job(cluster.api, "train-1"), "the training runs")
    eventually(
        lambda: cluster.api.get("pods", training["metadata"]["name"])["spec"].get("nodeName"), "it runs"
    )
    toolbox = yaml_pod("toolbox")
    toolbox["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "1"  # more than what is left
    cluster.kubectl("apply", "-f", "-", stdin=to_json([toolbox]))
    eventually(lambda: unschedulable(cluster.api.get("pods", "hubhead-toolbox")), "it waits")
    assert [p["metadata"]["uid"] for p in pods_of_job(cluster.api, "train-1")] == [
        training["metadata"]["uid"]
    ]


def yaml_pod(name: str) -> Manifest:
    return copy.deepcopy(find(load_manifests("local"), "Pod", f"hubhead-{name}"))


def test_a_quota_admits_every_pod(cluster: ControlPlane, nodes: FakeNodes) -> None:
    """A namespace with a quota rejects pods whose containers state no requests and limits."""
    nodes.add(LARGE)
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "quota", "namespace": NAMESPACE},
        "spec": {"hard": {"requests.cpu": "500", "requests.memory": "2Ti", "limits.memory": "2Ti"}},
    }
    with applied(cluster, [*workloads("cpu"), quota]):
        wait_until_ready(cluster.api, 2)
        for name in ("train", "canary", "promote", "rollback", "score"):
            create_job(cluster, name, f"{name}-1")
        for name in ("train", "canary", "promote", "rollback", "score"):
            wait_until_complete(cluster.api, f"{name}-1")
        used = cluster.api.get("resourcequotas", "quota")["status"]["used"]
        assert used["limits.memory"] != "0"

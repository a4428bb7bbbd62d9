"""Overlays and components applied to a cluster: twice, by either kind of apply, and deleted."""

from __future__ import annotations

import pytest

from tests.k8s.reading import VARIANTS, find
from tests.support.kubernetes.api import NAMESPACE
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.deployment import applied, delete_namespace, eventually, to_json, workloads

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.server,
    pytest.mark.needs("etcd", "kubectl"),
    pytest.mark.slow(seconds=100),
]


REPORTED_AS_CHANGED = "poddisruptionbudget.policy/hubhead-serving configured"
"""kubectl sends the selector of a budget at every client-side apply, although it is the same."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_second_apply_changes_nothing_and_a_deletion_leaves_nothing(
    cluster: ControlPlane, variant: str
) -> None:
    manifests = workloads(variant)
    text = to_json(manifests)
    delete_namespace(cluster)
    with applied(cluster, manifests):
        claims = cluster.api.items("persistentvolumeclaims")
        assert len(claims) == 4
        again = cluster.kubectl("apply", "-f", "-", stdin=text)
        changed = {line for line in again.stdout.splitlines() if not line.endswith(" unchanged")}
        assert again.stderr == ""
        assert changed <= {REPORTED_AS_CHANGED}
        assert cluster.api.get("poddisruptionbudgets", "hubhead-serving")["metadata"]["generation"] == 1
        difference = cluster.kubectl("diff", "-f", "-", stdin=text, check=False)
        assert (difference.returncode, difference.stdout) == (0, "")
        server_side = cluster.kubectl("apply", "--server-side", "-f", "-", stdin=text)
        assert server_side.stdout.count(" serverside-applied") == len(manifests)
        deleted = cluster.kubectl("delete", "-f", "-", stdin=text)
        assert deleted.stdout.count(" deleted") == len(manifests)
    for kind in ("namespaces", "priorityclasses"):
        left = cluster.kubectl("get", kind, "-o", "name").stdout
        assert "hubhead" not in left


def test_every_claim_is_bound(cluster: ControlPlane) -> None:
    with applied(cluster, workloads("cpu")):
        eventually(
            lambda: {c["status"]["phase"] for c in cluster.api.items("persistentvolumeclaims")} == {"Bound"},
            "all claims are bound",
        )


@pytest.mark.parametrize("prepared", [True, False])
def test_an_autoscaler_added_to_running_servers_keeps_their_number(
    cluster: ControlPlane, prepared: bool
) -> None:
    """README.md, pitfalls: without the command there, kubectl apply resets the number to 1."""

    def replicas() -> int:
        return int(cluster.api.get("deployments", "hubhead-serving")["spec"]["replicas"])

    with_autoscaler = workloads("autoscaling")
    with applied(cluster, workloads("gpu")):
        assert replicas() == 2
        if prepared:
            cluster.kubectl(
                "-n",
                NAMESPACE,
                "annotate",
                "deployment/hubhead-serving",
                "kubectl.kubernetes.io/last-applied-configuration-",
            )
        scaler = find(with_autoscaler, "HorizontalPodAutoscaler", "hubhead-serving")
        deployment = find(with_autoscaler, "Deployment", "hubhead-serving")
        cluster.kubectl("apply", "-f", "-", stdin=to_json([deployment]))
        assert replicas() == (2 if prepared else 1)
        # From then on an apply does not touch the number that the autoscaler has set.
        cluster.api.patch(cluster.api.path("deployments", "hubhead-serving"), {"spec": {"replicas": 5}})
        cluster.kubectl("apply", "-f", "-", stdin=to_json([deployment, scaler]))
        assert replicas() == 5

"""k8s/job.sh on a cluster: logs of every container, and the exit code of the job."""

from __future__ import annotations

import subprocess

import pytest

from tests.k8s.reading import K8S, get_job_specs
from tests.support.kubernetes.api import NAMESPACE
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.deployment import applied, workloads
from tests.support.kubernetes.nodes import LARGE, Behaviour, FakeNodes, Node

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.server,
    pytest.mark.needs("etcd", "kubectl"),
    pytest.mark.slow(seconds=20),
]


def run_script(cluster: ControlPlane, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [K8S / "job.sh", *arguments],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_script_prints_every_log_and_returns_the_exit_code_of_the_job(
    cluster: ControlPlane, nodes: FakeNodes
) -> None:
    nodes.add(LARGE)
    nodes.behaviours |= {
        "^not-blessed-": Behaviour({"promote": 4}),
        "^rejected-": Behaviour({"score": 3}),
        "^flink-": Behaviour(),
    }
    with applied(cluster, workloads("flink")):
        done = run_script(cluster, "train", "good")
        assert (done.returncode, done.stdout) == (0, "train says hello\nvalidate says hello\n"), done.stderr
        assert "job.batch/good created" in done.stderr
        assert [line.rpartition(", ")[2] for line in done.stderr.splitlines() if "---" in line] == [
            "train",
            "validate",
        ]
        done = run_script(cluster, "promote", "not-blessed")
        assert (done.returncode, done.stdout) == (4, "promote says hello\n"), done.stderr
        assert "not-blessed failed: Container promote for pod" in done.stderr
        assert "failed with exit code 4" in done.stderr
        # The sidecar ends with 143, which is not the code of the job.
        done = run_script(cluster, "score", "flink")
        assert (done.returncode, sorted(done.stdout.splitlines())) == (
            0,
            ["job-server says hello", "score says hello"],
        ), done.stderr
        assert run_script(cluster, "score", "rejected").returncode == 3
        assert run_script(cluster, "no-such-job").returncode == 1


def test_the_script_returns_the_code_of_the_last_attempt(cluster: ControlPlane, nodes: FakeNodes) -> None:
    nodes.add(LARGE)
    nodes.behaviours["^busy-"] = Behaviour({"rollback": 5})
    manifests = workloads("cpu")
    get_job_specs(manifests)["hubhead-rollback"]["backoffLimit"] = 1  # the delay doubles with each retry
    with applied(cluster, manifests):
        done = run_script(cluster, "rollback", "busy")
        assert (done.returncode, done.stdout) == (5, "rollback says hello\n" * 2), done.stderr
        assert "busy failed: Job has reached the specified backoff limit" in done.stderr


def test_the_script_ends_when_the_job_is_deleted(cluster: ControlPlane, nodes: FakeNodes) -> None:
    nodes.add(LARGE)
    nodes.behaviours["^deleted-"] = Behaviour(runs=True)
    with applied(cluster, workloads("cpu")):
        command = [K8S / "job.sh", "rollback", "deleted"]
        with subprocess.Popen(
            command, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as script:
            assert script.stdout
            assert script.stdout.readline() == "rollback says hello\n"
            cluster.kubectl("-n", NAMESPACE, "delete", "job", "deleted")
            _, errors = script.communicate(timeout=120)
        assert script.returncode == 1
        assert 'jobs.batch "deleted" not found' in errors


def test_the_script_says_why_no_node_takes_the_pod(cluster: ControlPlane, nodes: FakeNodes) -> None:
    nodes.add(Node("small", cpu="1"))
    manifests = workloads("cpu")
    get_job_specs(manifests)["hubhead-score"]["activeDeadlineSeconds"] = 15
    with applied(cluster, manifests):
        done = run_script(cluster, "score")
        assert done.returncode == 1
        assert "Insufficient cpu" in done.stderr
        assert "failed: Job was active longer than specified deadline" in done.stderr

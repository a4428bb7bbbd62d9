"""Jobs of the overlays on a cluster: retries by exit code, evictions, shards and the schedule."""

from __future__ import annotations

import datetime

import pytest

from tests.k8s.checks_jobs import NOT_RETRIED
from tests.k8s.reading import find, get_job_specs, load_manifests, select_kind
from tests.support.kubernetes.api import Api, Object
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.deployment import (
    applied,
    conditions,
    create_job,
    drain,
    eventually,
    pods_of_job,
    wait_until_complete,
    workloads,
)
from tests.support.kubernetes.nodes import LARGE, Behaviour, FakeNodes, Node

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.server,
    pytest.mark.needs("etcd", "kubectl"),
    pytest.mark.slow(seconds=20),
]


def steps() -> list[tuple[str, str]]:
    """Return (job, container) of each step of each job."""
    return [
        (name.removeprefix("hubhead-"), container["name"])
        for name, spec in get_job_specs(load_manifests("cpu")).items()
        for container in (
            *spec["template"]["spec"].get("initContainers", []),
            *spec["template"]["spec"]["containers"],
        )
    ]


def test_each_exit_code_of_each_step_is_retried_or_not(cluster: ControlPlane, nodes: FakeNodes) -> None:
    """Exit codes: 1 error, 2 wrong usage, 3 too many rejected photos, 4 not blessed, 5 the output is busy."""
    nodes.add(LARGE)
    cases = {
        f"{job}-{container}-{code}": (job, container, code)
        for job, container in steps()
        for code in (1, 2, 3, 4, 5)
    }
    assert len(cases) == 10 * 5
    manifests = workloads("cpu")
    for cron in select_kind(manifests, "CronJob"):  # by default all but three failed jobs are deleted
        cron["spec"]["failedJobsHistoryLimit"] = len(cases)
    with applied(cluster, manifests):
        for name, (job, container, code) in cases.items():
            nodes.behaviours[f"^{name}-"] = Behaviour({container: code})
            create_job(cluster, job, name)
        retried = {}
        for name in cases:
            job = eventually(lambda name=name: judged(cluster.api, name), f"the policy has judged {name}")
            failed = conditions(job).get("FailureTarget") or conditions(job).get("Failed")
            assert failed is None or failed["reason"] == "PodFailurePolicy", failed
            retried[name] = failed is None
    assert retried == {
        name: code not in NOT_RETRIED.get((f"hubhead-{job}", container), set())
        for name, (job, container, code) in cases.items()
    }


def judged(api: Api, name: str) -> Object | None:
    """Return a job of which a pod has failed, counted or final; None before that."""
    job = api.get("jobs", name)
    return job if job["status"].get("failed") or conditions(job) else None


def test_an_evicted_rollback_is_repeated_under_the_same_identifier(
    cluster: ControlPlane, nodes: FakeNodes
) -> None:
    nodes.add(Node("one"), Node("two"))
    nodes.behaviours["^rollback-1-"] = Behaviour(runs=True)
    with applied(cluster, workloads("cpu")):
        create_job(cluster, "rollback", "rollback-1")
        first = eventually(lambda: running(cluster.api, "rollback-1"), "the rollback runs")
        done = drain(cluster, first["spec"]["nodeName"], "batch.kubernetes.io/job-name=rollback-1", 30)
        assert done.returncode == 0, done.stderr
        second = eventually(
            lambda: (
                (pod := running(cluster.api, "rollback-1"))
                and pod["metadata"]["uid"] != first["metadata"]["uid"]
                and pod
            ),
            "a second pod runs",
        )
        assert cluster.api.get("jobs", "rollback-1")["status"].get("failed", 0) == 0
        identifiers = [
            [
                pod["metadata"]["labels"][f"batch.kubernetes.io/{name}"]
                for name in ("job-name", "controller-uid")
            ]
            for pod in (first, second)
        ]
        assert identifiers[0] == identifiers[1]
        nodes.behaviours["^rollback-1-"] = Behaviour()
        wait_until_complete(cluster.api, "rollback-1")


def running(api: Api, job: str) -> Object | None:
    pods = [pod for pod in pods_of_job(api, job) if pod["status"].get("phase") == "Running"]
    return pods[-1] if pods and not pods[-1]["metadata"].get("deletionTimestamp") else None


def test_a_shard_with_too_many_rejected_photos_fails_alone(cluster: ControlPlane, nodes: FakeNodes) -> None:
    nodes.add(LARGE)
    nodes.behaviours["^score-1-3-"] = Behaviour({"score": 3})
    with applied(cluster, workloads("score-indexed")):
        create_job(cluster, "score", "score-1")
        job = eventually(
            lambda: (job := cluster.api.get("jobs", "score-1")) and "Failed" in conditions(job) and job,
            "all shards are done",
        )
        assert (job["status"]["failedIndexes"], job["status"]["completedIndexes"]) == ("3", "0-2,4-7")
        assert job["status"]["failed"] == 1  # not retried


def test_the_schedule_starts_a_scoring(cluster: ControlPlane, nodes: FakeNodes) -> None:
    nodes.add(LARGE)
    manifests = workloads("cpu")
    find(manifests, "CronJob", "hubhead-score")["spec"]["schedule"] = "* * * * *"
    with applied(cluster, manifests):
        # As if the schedule had started one before: the last minute is due, and the next is not waited for.
        before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=2)
        path = f"{cluster.api.path('cronjobs', 'hubhead-score')}/status"
        change = {"status": {"lastScheduleTime": before.strftime("%Y-%m-%dT%H:%M:%SZ")}}
        assert cluster.api.patch(path, change)[0] == 200
        (job, *_) = eventually(lambda: cluster.api.items("jobs"), "a job of the schedule")
        assert job["metadata"]["name"].startswith("hubhead-score-")
        name = job["metadata"]["name"]
        wait_until_complete(cluster.api, name)

"""The commands of k8s/README.md and k8s/RUNBOOK.md, run as they stand against a cluster."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator

import pytest

from tests.k8s.reading import ROOT
from tests.k8s.test_guide import GUIDE, commands
from tests.k8s.test_runbook import LINES
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.deployment import (
    delete_namespace,
    prepared,
    wait_until_deleted,
    wait_until_ready,
)
from tests.support.kubernetes.nodes import LARGE, FakeNodes

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.server,
    pytest.mark.needs("etcd", "kubectl"),
    pytest.mark.slow(seconds=60),
]

NEEDS_CONTAINER = {"cp", "exec", "port-forward"}
"""Commands of kubectl that talk to a running container; fake nodes have none."""


def is_run(words: list[str]) -> bool:
    """Return whether a command is about the cluster alone."""
    own = words[0] == "k8s/job.sh" or words[0] == "kubectl"
    return own and not NEEDS_CONTAINER & set(words)


def run(cluster: ControlPlane, words: list[str]) -> None:
    """Run a command in the directory of the repository, as the guides say; it must succeed."""
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=cluster.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}\n{done.stderr}"


@pytest.fixture
def empty(cluster: ControlPlane, nodes: FakeNodes) -> Iterator[ControlPlane]:
    """A cluster with a node and volumes, to which the test applies overlays/local."""
    nodes.add(LARGE)
    delete_namespace(cluster)
    with prepared(cluster):
        yield cluster
        cluster.kubectl("delete", "-k", ROOT / "k8s" / "overlays" / "local")
        wait_until_deleted(cluster.api)


def test_the_guide_leads_from_an_empty_cluster_to_later_versions(empty: ControlPlane) -> None:
    lines = [words for words in (*GUIDE, *commands("Later versions")) if is_run(words)]
    assert len(lines) >= 9
    for words in lines:
        run(empty, words)
    done = empty.kubectl("-n", "hubhead", "get", "jobs", "-o", "name").stdout
    for name in ("train", "canary", "promote", "rollback", "score"):
        assert f"job.batch/hubhead-{name}-" in done


def test_the_commands_of_the_runbook_work_in_their_order(empty: ControlPlane) -> None:
    run(empty, ["kubectl", "apply", "-k", "k8s/overlays/local"])
    wait_until_ready(empty.api, 1)
    # The runbook speaks of what is there by then: an earlier revision, and a run of the nightly scoring.
    run(empty, shlex.split("kubectl -n hubhead rollout restart deployment/hubhead-serving"))
    run(empty, ["k8s/job.sh", "score", "hubhead-score-now"])
    lines = [words for words in map(shlex.split, LINES) if is_run(words)]
    assert len(lines) >= 18
    for words in lines:
        run(empty, words)

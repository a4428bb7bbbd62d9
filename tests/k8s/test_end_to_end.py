"""The overlay `local` on a node that runs containers, from an empty cluster to servers that die under load.

`make cluster-e2e` builds the programs and images, and runs these tests in their order: each continues
from the one before.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.client import Client
from tests.k8s.reading import K8S, container
from tests.k8s.test_guide import GUIDE
from tests.support.fake_model import free_port
from tests.support.kubernetes import binaries, images
from tests.support.kubernetes.api import NAMESPACE, Object
from tests.support.kubernetes.control_plane import ControlPlane, run_control_plane
from tests.support.kubernetes.deployment import (
    eventually,
    to_json,
    wait_until_deleted,
    wait_until_ready,
    workloads,
)
from tests.support.kubernetes.isolation import DIRECTORY
from tests.support.kubernetes.node import find_process, run_node, volumes
from tests.support.repository import REPO

pytestmark = [pytest.mark.containers, pytest.mark.server]

LOAD = REPO / "tests" / "support" / "kubernetes" / "load.py"

RATE = 8.0
"""Requests per second."""

START_SECONDS = 8.0
"""Time after which the first requests of a load have been answered."""

TARGET = "dns:///hubhead-serving-grpc:8500"

TOOLBOX = ("-n", NAMESPACE, "exec", "--stdin", "pod/hubhead-toolbox", "--")

WAIT_FOR_TOOLBOX = (
    *("kubectl", "-n", NAMESPACE, "wait", "--for=condition=Ready", "--timeout=5m"),
    "pod/hubhead-toolbox",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    """A control plane with one real node."""
    assert DIRECTORY in os.environ, "run it by make cluster-e2e: it adds mounts and network interfaces"
    top = Path(os.environ[DIRECTORY])
    programs = binaries.build((*binaries.PROGRAMS, binaries.KUBELET))
    with (
        run_control_plane(programs, top, controllers="*") as running,
        run_node(running, programs, images.archives()),
    ):
        running.kubectl("apply", "-f", "-", stdin=to_json(volumes(top, 4)))
        yield running
        for given in ("-f", "toolbox.yaml"), ("-k", "overlays/local"):
            running.kubectl("delete", "--ignore-not-found", given[0], K8S / given[1])
        wait_until_deleted(running.api)


@pytest.fixture(scope="module")
def photos(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory as the guide wants it, with a backbone, since the pods cannot download one."""
    from trainer.backbones import hub
    from trainer.dataset.samples import fetch_sample_photos

    top = tmp_path_factory.mktemp("photos")
    samples = fetch_sample_photos(cache).directory
    for directory in sorted(path for path in samples.iterdir() if path.is_dir()):
        chosen = sorted(directory.iterdir())
        for name, some in (("labelled", chosen[:40]), ("incoming", chosen), ("smoke", chosen[:1])):
            target = top / name / directory.name if name == "labelled" else top / name
            target.mkdir(parents=True, exist_ok=True)
            for photo in some:
                shutil.copy(photo, target)
    shutil.copytree(hub.build(cache), top / "backbone")
    return top


def run(cluster: ControlPlane, *words: str | Path) -> str:
    """Run a command as the guides do, print and return its output; it must succeed."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=REPO,
        env=cluster.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    print(f"$ {shlex.join(map(str, words))}\n{done.stdout}", flush=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def hubhead(cluster: ControlPlane, command: str) -> str:
    """Run a command of hubhead in the toolbox, as the runbook does."""
    return run(cluster, "kubectl", *TOOLBOX, "hubhead", *shlex.split(command))


@contextmanager
def load(cluster: ControlPlane, what: str, seconds: float) -> Iterator[None]:
    """Send requests from a pod for some seconds, beginning before the block; none may fail in the end."""
    command = ["kubectl", *TOOLBOX, "python", "-", TARGET, str(RATE), str(seconds)]
    with subprocess.Popen(
        command, env=cluster.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        process.stdin.write(LOAD.read_text())
        process.stdin.close()
        time.sleep(START_SECONDS)
        started = time.monotonic()
        yield
        acted = time.monotonic() - started
        assert acted + START_SECONDS < seconds, f"{what} took {acted:.0f} s, and the load ended before"
        assert process.stdout
        output = process.stdout.read()
    assert process.returncode == 0
    print(f"{what}, done after {acted:.0f} s: {output}", flush=True)
    result = json.loads(output)
    assert (result["failed"], set(result["statuses"])) == ({}, {"ok"}), result
    assert result["requests"] > 0.7 * RATE * seconds


@contextmanager
def forwarded(cluster: ControlPlane, port: int) -> Iterator[int]:
    """Forward a local port to one of the server, as the guide says; yield the local one."""
    local = free_port()
    command = ["kubectl", "-n", NAMESPACE, "port-forward", "deployment/hubhead-serving", f"{local}:{port}"]
    with subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("Forwarding from"), "kubectl port-forward"
        try:
            yield local
        finally:
            process.terminate()


def scale(cluster: ControlPlane, number: int) -> list[Object]:
    """Set the number of servers, and return them when all are ready."""
    cluster.kubectl("-n", NAMESPACE, "scale", "deployment/hubhead-serving", f"--replicas={number}")
    return wait_until_ready(cluster.api, number)


def test_the_guide_leads_to_a_first_prediction(cluster: ControlPlane, photos: Path) -> None:
    manifests = workloads("local")
    # The pods have no network outside; a real cluster downloads the backbone here.
    container(manifests, "hubhead-train", "train")["args"].append("--tfhub_module=/photos/backbone")
    cluster.kubectl("apply", "-f", "-", stdin=to_json(manifests))
    for words in GUIDE[2:]:
        run(cluster, *(word.replace("photos/.", f"{photos}/.") for word in words))
    wait_until_ready(cluster.api, 1)
    run(cluster, "kubectl", "delete", "-f", "k8s/loader.yaml")
    run(cluster, "kubectl", "apply", "-f", "k8s/toolbox.yaml")
    run(cluster, *WAIT_FOR_TOOLBOX)


def test_predictions_from_outside_by_grpc_and_rest(cluster: ControlPlane, photos: Path) -> None:
    photo = next((photos / "smoke").iterdir())
    with (
        forwarded(cluster, 8500) as port,
        Client(f"localhost:{port}", model="food", label="stable") as client,
    ):
        (prediction,) = client.classify([photo])
    body = json.dumps({"instances": [{"b64": base64.b64encode(photo.read_bytes()).decode()}]}).encode()
    with forwarded(cluster, 8501) as port:
        url = f"http://localhost:{port}/v1/models/food/labels/stable:predict"
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as response:
            (row,) = json.load(response)["predictions"]
    assert (row["status"], row["label"]) == ("ok", prediction.label)
    assert row["scores"] == pytest.approx([score for _, score in prediction.top], abs=1e-5)


def test_scores_of_all_incoming_photos(cluster: ControlPlane, photos: Path) -> None:
    run(cluster, "k8s/job.sh", "score")
    output = hubhead(cluster, "query --scores /scores/food --format=csv 'select count(*) from scores'")
    assert int(output.split()[-1]) == len(list((photos / "incoming").iterdir()))


def test_canary_promotion_and_rollback_under_load(cluster: ControlPlane) -> None:
    run(cluster, "k8s/job.sh", "train")
    with load(cluster, "canary and promotion", 120):
        run(cluster, "k8s/job.sh", "canary")
        run(cluster, "k8s/job.sh", "promote")
    assert stable_version(cluster) == 2
    with load(cluster, "rollback", 60):
        run(cluster, "k8s/job.sh", "rollback")
    assert stable_version(cluster) == 1


def test_rolling_update_under_load(cluster: ControlPlane) -> None:
    with load(cluster, "rolling update", 150):
        run(cluster, "kubectl", "-n", NAMESPACE, "rollout", "restart", "deployment/hubhead-serving")
        run(cluster, "kubectl", "-n", NAMESPACE, "rollout", "status", "deployment/hubhead-serving")


def test_deleted_pod_under_load(cluster: ControlPlane) -> None:
    deleted, _ = scale(cluster, 2)
    name = deleted["metadata"]["name"]
    with load(cluster, "deleted pod", 120):
        run(cluster, "kubectl", "-n", NAMESPACE, "delete", "pod", name)
        assert name not in [pod["metadata"]["name"] for pod in wait_until_ready(cluster.api, 2)]


def test_pods_deleted_without_grace_under_load(cluster: ControlPlane) -> None:
    """Servers stop within a second, in the middle of requests, one after the other."""
    scale(cluster, 2)
    with load(cluster, "five pods deleted without grace", 120):
        for _ in range(5):
            name = wait_until_ready(cluster.api, 2)[0]["metadata"]["name"]
            run(cluster, "kubectl", "-n", NAMESPACE, "delete", "pod", name, "--grace-period=1")
        wait_until_ready(cluster.api, 2)


def test_killed_process_under_load(cluster: ControlPlane) -> None:
    killed, _ = scale(cluster, 2)
    (status,) = killed["status"]["containerStatuses"]
    with load(cluster, "killed process", 60):
        os.kill(find_process(status["containerID"]), signal.SIGKILL)
        eventually(lambda: restarts(cluster, killed) == 1, "the container is restarted")
    wait_until_ready(cluster.api, 2)


def stable_version(cluster: ControlPlane) -> int:
    """Return the version that is labelled stable."""
    flags = "--model_base_path /models/food --model_config_file /models/model.config --json"
    record = json.loads(hubhead(cluster, f"models {flags}").splitlines()[-1])
    return next(one["version"] for one in record["versions"] if "stable" in one["labels"])


def restarts(cluster: ControlPlane, pod: Object) -> int:
    """Return how often the containers of a server were restarted."""
    current = cluster.api.get("pods", pod["metadata"]["name"])
    return sum(status["restartCount"] for status in current["status"]["containerStatuses"])

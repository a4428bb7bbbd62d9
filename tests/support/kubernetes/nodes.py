"""Fake nodes: Node objects whose pods run as the test says, and a kubelet that serves logs of containers."""

from __future__ import annotations

import datetime
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.support.kubernetes.api import Api, Object
from tests.support.kubernetes.control_plane import ControlPlane

POLL_SECONDS = 0.2

START_SECONDS, RUN_SECONDS = 0.3, 0.5
"""How long containers take to start, and each container of a job to end."""

SIGTERM_CODE = 143


@dataclass(frozen=True)
class Node:
    """Capacity of a fake node.

    Attributes:
        name: name of the node, which is its hostname label too.
        cpu, memory, gpus: allocatable resources.
        zone: its zone label.
    """

    name: str
    cpu: str = "16"
    memory: str = "64Gi"
    gpus: int = 0
    zone: str = "a"


@dataclass(frozen=True)
class Behaviour:
    """Behaviour of the containers of a pod.

    Attributes:
        exit_codes: exit code by container; others end with 0 if the pod is of a Job.
        runs: True if the containers of a Job run until they are stopped.
        ready: whether a server becomes ready.
    """

    exit_codes: Mapping[str, int] = field(default_factory=dict)
    runs: bool = False
    ready: bool = True


LARGE = Node("large", cpu="1000", memory="4000Gi")
"""A node on which nothing waits for resources."""


class FakeNodes:
    """Fake nodes of one control plane.

    Attributes:
        behaviours: what the pods do whose name matches a regular expression; the first match counts.
    """

    def __init__(self, api: Api, port: int) -> None:
        self.behaviours: dict[str, Behaviour] = {}
        self._api, self._port = api, port
        self._names: set[str] = set()
        self._seen: dict[str, float] = {}

    def add(self, *nodes: Node) -> None:
        """Add nodes that are ready."""
        for node in nodes:
            labels = {
                "kubernetes.io/hostname": node.name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": node.zone,
            }
            metadata = {"name": node.name, "labels": labels}
            taints = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}] if node.gpus else []
            body = {"kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": {"taints": taints}}
            self._call("POST", self._api.path("nodes"), body)
            resources = {"cpu": node.cpu, "memory": node.memory, "pods": "110", "ephemeral-storage": "100Gi"}
            if node.gpus:
                resources["nvidia.com/gpu"] = str(node.gpus)
            status = {
                "capacity": resources,
                "allocatable": resources,
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
                "conditions": [_condition("Ready", True)],
            }
            self._patch(f"{self._api.path('nodes', node.name)}/status", {"status": status})
            # The API server taints every new node until a controller, which is off here, finds it ready.
            self._patch(self._api.path("nodes", node.name), {"spec": {"taints": taints}})
            self._names.add(node.name)

    def remove_all(self) -> None:
        """Delete all nodes."""
        for name in self._names:
            self._call("DELETE", self._api.path("nodes", name))
        self._names.clear()

    def run_pods(self) -> None:
        """Report for each pod on these nodes what a kubelet would."""
        for pod in self._api.items("pods", everywhere=True):
            if pod["spec"].get("nodeName") in self._names:
                self._seen.setdefault(pod["metadata"]["uid"], time.monotonic())
                self._run_pod(pod)

    def _run_pod(self, pod: Object) -> None:
        metadata = pod["metadata"]
        path = self._api.path("pods", metadata["name"], metadata["namespace"])
        finished = pod["status"].get("phase") in ("Succeeded", "Failed")
        if metadata.get("deletionTimestamp"):
            if not finished:
                status = self._status(pod, dict.fromkeys(_names(pod), SIGTERM_CODE))
                if not self._report(pod, path, status):
                    return
            options = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
            self._call("DELETE", path, options)
        elif not finished:
            codes = self._exit_codes(pod)
            status = self._status(pod, codes)
            if status["phase"] != pod["status"].get("phase") or _states(status) != _states(pod["status"]):
                self._report(pod, path, status)

    def _exit_codes(self, pod: Object) -> dict[str, int | None]:
        """Return the exit code of each container that has started: None while it runs."""
        age = time.monotonic() - self._seen[pod["metadata"]["uid"]] - START_SECONDS
        behaviour = self.behaviour(pod)
        codes: dict[str, int | None] = {}
        if age < 0:
            return codes
        for container in pod["spec"].get("initContainers", []):
            if container.get("restartPolicy") == "Always":  # a sidecar
                codes[container["name"]] = None
                continue
            age -= RUN_SECONDS
            codes[container["name"]] = behaviour.exit_codes.get(container["name"], 0) if age >= 0 else None
            if codes[container["name"]] != 0:
                return codes
        ends = _is_of_job(pod) and not behaviour.runs and age >= RUN_SECONDS
        for container in pod["spec"]["containers"]:
            codes[container["name"]] = behaviour.exit_codes.get(container["name"], 0) if ends else None
        if ends:
            codes = {name: SIGTERM_CODE if code is None else code for name, code in codes.items()}
        return codes

    def behaviour(self, pod: Object) -> Behaviour:
        """Return what a pod does."""
        name = pod["metadata"]["name"]
        return next((b for pattern, b in self.behaviours.items() if re.search(pattern, name)), Behaviour())

    def _status(self, pod: Object, codes: Mapping[str, int | None]) -> Object:
        """Return the status of a pod whose containers have these exit codes; None for one that runs."""
        inits = pod["spec"].get("initContainers", [])
        main = [container["name"] for container in pod["spec"]["containers"]]
        sidecars = {c["name"] for c in inits if c.get("restartPolicy") == "Always"}
        steps = {c["name"] for c in inits} - sidecars
        failed = any(codes.get(name) for name in (steps | set(main)))
        if failed:
            phase = "Failed"
        elif all(codes.get(name, None) == 0 for name in main):
            phase = "Succeeded"
        else:
            phase = "Running" if any(name in codes for name in main) else "Pending"
        ready = phase == "Running" and self.behaviour(pod).ready
        own = [_container_status(container, codes, ready=ready) for container in pod["spec"]["containers"]]
        return {
            "phase": phase,
            "podIP": f"10.244.1.{sum(map(ord, pod['metadata']['uid'])) % 250 + 2}",
            "startTime": pod["status"].get("startTime") or _now(),
            "initContainerStatuses": [_container_status(c, codes, ready=True) for c in inits],
            "containerStatuses": own,
            "conditions": [
                *(c for c in pod["status"].get("conditions", []) if c["type"] == "DisruptionTarget"),
                _condition("PodScheduled", True),
                _condition("Initialized", all(codes.get(name) == 0 for name in steps)),
                _condition("ContainersReady", ready),
                _condition("Ready", ready),
            ],
        }

    def _report(self, pod: Object, path: str, status: Object) -> bool:
        """Write the status of a pod; returns False if the pod has changed since it was read.

        Its conditions are written as a whole: a DisruptionTarget that was added meanwhile would be lost.
        """
        version = {"resourceVersion": pod["metadata"]["resourceVersion"]}
        code, answer = self._api.patch(f"{path}/status", {"metadata": version, "status": status})
        self._check(code, answer)
        return code == 200

    def _patch(self, path: str, change: Object) -> None:
        self._check(*self._api.patch(path, change))

    def _call(self, method: str, path: str, body: Object | None = None) -> None:
        self._check(*self._api.call(method, path, body))

    def _check(self, status: int, answer: Any) -> None:
        """Raise for errors other than those of an object that was deleted or changed meanwhile."""
        assert status < 400 or status in (404, 409), answer


@contextmanager
def run_fake_nodes(control_plane: ControlPlane) -> Iterator[FakeNodes]:
    """Run fake nodes in a thread; the block adds them."""
    with _kubelet(control_plane) as port:
        nodes = FakeNodes(control_plane.api, port)
        done = threading.Event()
        failures: list[BaseException] = []

        def loop() -> None:
            while not done.wait(POLL_SECONDS):
                try:
                    nodes.run_pods()
                except BaseException as error:
                    failures.append(error)
                    return

        thread = threading.Thread(target=loop, name="fake nodes")
        thread.start()
        try:
            yield nodes
        finally:
            done.set()
            thread.join()
            nodes.remove_all()
        if failures:
            raise failures[0]


@contextmanager
def _kubelet(control_plane: ControlPlane) -> Iterator[int]:
    """Serve the logs of containers, as a kubelet does for the API server: one line that names each."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, _, _pod, container = urlsplit(self.path).path.strip("/").split("/")
            assert kind == "containerLogs"
            content = f"{container} says hello\n".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(control_plane.certificate, control_plane.key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, name="kubelet")
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _names(pod: Object) -> list[str]:
    return [c["name"] for c in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]]


def _is_of_job(pod: Object) -> bool:
    return any(owner["kind"] == "Job" for owner in pod["metadata"].get("ownerReferences", []))


def _states(status: Object) -> dict[str, tuple[str, Any]]:
    """Return the state of each container, without times."""
    states = {}
    for one in status.get("initContainerStatuses", []) + status.get("containerStatuses", []):
        state = one["state"]
        states[one["name"]] = (*state, state.get("terminated", {}).get("exitCode"), one["ready"])
    return states


def _container_status(container: Object, codes: Mapping[str, int | None], *, ready: bool) -> Object:
    name, now = container["name"], _now()
    if name not in codes:
        state: Object = {"waiting": {"reason": "PodInitializing"}}
    elif codes[name] is None:
        state = {"running": {"startedAt": now}}
    else:
        reason = "Completed" if codes[name] == 0 else "Error"
        state = {
            "terminated": {"exitCode": codes[name], "reason": reason, "startedAt": now, "finishedAt": now}
        }
    return {
        "name": name,
        "image": container["image"],
        "imageID": "",
        "restartCount": 0,
        "ready": ready and codes.get(name, 1) in (None, 0),
        "started": name in codes,
        "state": state,
    }


def _condition(kind: str, holds: bool) -> Object:
    return {"type": kind, "status": str(holds), "lastTransitionTime": _now()}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""Simulated cluster: the render manifests run as local processes, with other paths and ports.

Volumes are directories, ConfigMaps are files in them, services are ports of localhost.
"""

from __future__ import annotations

import re
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.k8s.reading import kustomize
from tests.support import processes
from tests.support.fake_model import free_port

Manifest = dict[str, Any]


def render(overlay: Path) -> list[Manifest]:
    """Return the manifests that `kubectl apply -k` would apply."""
    done = kustomize(overlay)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@dataclass
class Cluster:
    """Simulated cluster that runs the containers of `manifests` one after the other.

    Attributes:
        manifests: applied manifests.
        top: directory of the volumes.
        environment: variables for every container, in addition to its own.
        took: (container, seconds) of each container that ran to completion.
        labels: labels that the Job controller has set on the current pod.
    """

    manifests: list[Manifest]
    top: Path
    environment: Mapping[str, str]
    took: list[tuple[str, float]] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = {8500: free_port(), 8501: free_port()}

    def find(self, kind: str, name: str) -> Manifest:
        """Return a manifest by kind and name."""
        return next(m for m in self.manifests if m["kind"] == kind and m["metadata"]["name"] == name)

    def volume(self, pod: Manifest, name: str) -> Path:
        """Return the directory of a pod's volume; for a ConfigMap write its files there."""
        source = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == name)
        if claim := source.get("persistentVolumeClaim"):
            self.find("PersistentVolumeClaim", claim["claimName"])
            name = claim["claimName"]
        directory = self.top / name
        directory.mkdir(exist_ok=True)
        if configured := source.get("configMap"):
            for file, text in self.find("ConfigMap", configured["name"])["data"].items():
                (directory / file).write_text(self.local(pod, text))
        return directory

    def local(self, pod: Manifest, text: str, container: Manifest | None = None) -> str:
        """Replace paths and ports in a text of a manifest by those of this machine."""
        spec = pod["spec"]
        whose = [container] if container else spec.get("initContainers", []) + spec["containers"]
        mounts = {mount["mountPath"]: mount["name"] for one in whose for mount in one.get("volumeMounts", [])}
        configured = {volume["name"] for volume in spec["volumes"] if "configMap" in volume}

        def directory(found: re.Match[str]) -> str:
            name = mounts[found[0]]
            return str(self.top / name if name in configured else self.volume(pod, name))

        mount_paths = "|".join(re.escape(path) for path in mounts)
        text = re.sub(rf"(?<![\w./-])(?:{mount_paths})(?=[/\s\"']|$)", directory, text)
        services = {m["metadata"]["name"] for m in self.manifests if m["kind"] == "Service"}

        def address(found: re.Match[str]) -> str:
            assert found[1] in services, f"unknown service {found[1]}"
            return f"localhost:{self.ports[int(found[2])]}"

        text = re.sub(r"dns:///([\w-]+):(\d+)", address, text)
        return re.sub(r"(?<=port=)(8500|8501)\b", lambda found: str(self.ports[int(found[1])]), text)

    def command(self, pod: Manifest, container: Manifest) -> list[str]:
        """Return the command line of a container; hubhead is run from this source tree."""
        for mount in container.get("volumeMounts", []):
            self.volume(pod, mount["name"])
        variables = self.variables(pod, container)

        def value(found: re.Match[str]) -> str:
            return variables[found[1]]

        given = container["command"] + container.get("args", [])
        words = [self.local(pod, re.sub(r"\$\((\w+)\)", value, word), container) for word in given]
        return processes.command(words[1:]) if words[0] == "hubhead" else words

    def variables(self, pod: Manifest, container: Manifest) -> dict[str, str]:
        """Return the environment of a container."""
        own = {}
        for one in container.get("env", []):
            if "value" in one:
                own[one["name"]] = self.local(pod, one["value"], container)
            else:
                label = re.search(r"labels\['(.*)'\]", one["valueFrom"]["fieldRef"]["fieldPath"])
                assert label, one
                own[one["name"]] = self.labels[label[1]]
        return processes.environment({"HOSTNAME": "pod-1", **own, **self.environment})

    def run(self, pod: Manifest, container: Manifest, what: str, seconds: float = 600.0) -> str:
        """Run a container to completion and return its stdout; it must exit with code 0."""
        start = time.monotonic()
        done = subprocess.run(
            self.command(pod, container),
            env=self.variables(pod, container),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        self.took.append((f"{what}: {container['name']}", time.monotonic() - start))
        assert done.returncode == 0, f"{what}: {container['name']}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def job(self, name: str) -> dict[str, str]:
        """Run a job as `kubectl create job --from=cronjob/NAME` does; return the stdout of each container."""
        self.labels = {
            "batch.kubernetes.io/job-name": f"{name}-1",
            "batch.kubernetes.io/controller-uid": str(uuid.uuid4()),
        }
        pod = self.find("CronJob", name)["spec"]["jobTemplate"]["spec"]["template"]
        in_order = pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
        return {container["name"]: self.run(pod, container, name) for container in in_order}

    @contextmanager
    def deployment(self, name: str) -> Iterator[Probes]:
        """Run the pod of a deployment; it is stopped by SIGTERM within its grace period."""
        pod = self.find("Deployment", name)["spec"]["template"]
        for container in pod["spec"].get("initContainers", []):
            self.run(pod, container, name)
        (container,) = pod["spec"]["containers"]
        log = self.top / f"{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                self.command(pod, container),
                env=self.variables(pod, container),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Probes(container, self.ports, process, log)
            process.terminate()
            assert process.wait(pod["spec"]["terminationGracePeriodSeconds"]) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Probes:
    """Probes of a running container, as the kubelet runs them."""

    container: Manifest
    ports: Mapping[int, int]
    process: subprocess.Popen[bytes]
    log: Path

    def passes(self, probe: str) -> bool:
        """Return whether a probe (startupProbe, readinessProbe or livenessProbe) succeeds now."""
        assert self.process.poll() is None, f"the process exited: {self.log.read_text()}"
        wanted = self.container[probe]
        if "grpc" in wanted:
            return self._serves(wanted["grpc"]["port"])
        port = next(one for one in self.container["ports"] if one["name"] == wanted["httpGet"]["port"])
        address = f"http://localhost:{self.ports[port['containerPort']]}{wanted['httpGet']['path']}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return bool(200 <= answer.status < 400)
        except OSError:
            return False

    def _serves(self, port: int) -> bool:
        with grpc.insecure_channel(f"localhost:{self.ports[port]}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

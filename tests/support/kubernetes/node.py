"""A real node: containerd, runc, a bridge of CNI and a kubelet, inside the namespaces of isolation.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.kubernetes.control_plane import (
    KUBELET_CLIENT,
    REAL_NODE,
    ControlPlane,
    run_process,
    wait_for,
)
from tests.support.kubernetes.deployment import is_ready
from tests.support.kubernetes.images import BUSYBOX
from tests.support.kubernetes.isolation import CNI_PLUGINS
from tests.support.kubernetes.names import DOMAIN, run_dns

BRIDGE, SUBNET, ADDRESS = "hubhead0", "10.244.0.0/24", "10.244.0.1"
"""Network of the pods; the node is its gateway."""

SOCKET = Path("/run/hubhead/containerd.sock")

CONTAINERD = """
version = 2
root = "{top}/containerd"
state = "/run/hubhead/containerd"
oom_score = 0
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{top}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{top}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


@contextmanager
def run_node(control_plane: ControlPlane, programs: Path, images: Iterable[Path]) -> Iterator[None]:
    """Run a node with images, and wait until it is ready.

    Args:
        control_plane: control plane that the node joins, with the controller of nodes.
        programs: directory of kubelet.
        images: archives of images.
    """
    top = control_plane.top
    _write_configuration(top)
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
    subprocess.run(["ip", "address", "add", f"{ADDRESS}/24", "dev", BRIDGE], check=True)
    subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
    log = top / "containerd.log"
    with run_process(log, "containerd", "--config", top / "containerd.toml") as containerd:
        wait_for(containerd, log, SOCKET.exists)
        for image in images:
            command = ["ctr", "--address", SOCKET, "--namespace", "k8s.io", "images", "import", image]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        log = top / "kubelet.log"
        with (
            run_dns(control_plane.api, ADDRESS),
            run_process(log, programs / "kubelet", *_kubelet_flags(top)) as kubelet,
        ):
            wait_for(kubelet, log, lambda: _is_node_ready(control_plane))
            yield


def find_process(container_id: str) -> int:
    """Return the first process of a container, by its id as in the status of its pod."""
    name = container_id.removeprefix("containerd://")
    listed = subprocess.run(
        ["ctr", "--address", SOCKET, "--namespace", "k8s.io", "tasks", "list"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return next(int(pid) for task, pid, *_ in rows if task == name)


def volumes(top: Path, number: int) -> list[Mapping[str, Any]]:
    """Return volumes in directories of the node, and their default storage class."""
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "disk", "annotations": default},
        "provisioner": "kubernetes.io/no-provisioner",
    }
    on_node = [{"key": "kubernetes.io/hostname", "operator": "In", "values": [REAL_NODE]}]
    found: list[Mapping[str, Any]] = [storage_class]
    for index in range(number):
        directory = top / "volumes" / str(index)
        directory.mkdir(parents=True)
        spec = {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "disk",
            "local": {"path": str(directory)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": on_node}]}},
        }
        metadata = {"name": f"disk-{index}"}
        found.append({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec})
    return found


def _write_configuration(top: Path) -> None:
    values = {"top": top, "socket": SOCKET, "sandbox": BUSYBOX, "plugins": CNI_PLUGINS}
    (top / "containerd.toml").write_text(CONTAINERD.format(**values))
    (top / "cni").mkdir()
    ranges = {"type": "host-local", "ranges": [[{"subnet": SUBNET}]], "dataDir": str(top / "addresses")}
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": ranges}
    network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}
    (top / "cni" / "pods.conflist").write_text(json.dumps(network))
    (top / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet_configuration(top)))


def _kubelet_configuration(top: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(top / KUBELET_CLIENT)},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "clusterDNS": [ADDRESS],
        "clusterDomain": DOMAIN,
        "makeIPTablesUtilChains": False,
        # The images are not pulled again if they are deleted.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "podLogsDir": str(top / "logs"),
        "volumePluginDir": str(top / "plugins"),
    }


def _kubelet_flags(top: Path) -> list[str | Path]:
    return [
        f"--config={top / 'kubelet.yaml'}",
        f"--kubeconfig={top / 'kubelet.kubeconfig'}",
        f"--root-dir={top / 'kubelet'}",
        f"--cert-dir={top / 'kubelet-pki'}",
        f"--hostname-override={REAL_NODE}",
        f"--node-ip={ADDRESS}",
    ]


def _is_node_ready(control_plane: ControlPlane) -> bool:
    node = control_plane.api.find("nodes", REAL_NODE)
    return bool(node and is_ready(node) and not node["spec"].get("taints"))

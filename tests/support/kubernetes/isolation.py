"""A command in namespaces of its own: what it starts, mounts and adds to the network ends with it.

It has only a loopback interface, and empty directories in place of those into which container runtimes write.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PROGRAMS = ("buildah", "containerd", "ctr", "debootstrap", "etcd", "ip", "kubectl", "runc", "unshare")

CNI_PLUGINS = Path("/usr/lib/cni")
"""Directory of Debian's package containernetworking-plugins."""

PACKAGES = "buildah containerd containernetworking-plugins debootstrap etcd-server iproute2 runc util-linux"

CGROUPS = Path("/sys/fs/cgroup")

DIRECTORY = "HUBHEAD_ISOLATED_DIRECTORY"
"""Environment variable with a directory that is deleted at the end, when nothing is mounted in it."""

SETUP = """
mount --make-rprivate /
for directory in /run /var/lib /var/log; do mount -t tmpfs tmpfs "$directory"; done
mount --make-rshared /
ip link set lo up
exec "$@"
"""
"""Shell script in the new namespaces. Mounts are shared in them, as a kubelet wants, not with the machine."""


def find_obstacles() -> list[str]:
    """Return why this machine cannot run containers; an empty list if it can."""
    if sys.platform != "linux":
        return [f"containers need Linux; this is {sys.platform}"]
    found = []
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        found.append(f"not on the PATH: {', '.join(missing)}. On Debian: apt-get install {PACKAGES}")
    if not (CNI_PLUGINS / "bridge").exists():
        found.append(f"{CNI_PLUGINS} has no bridge plugin. On Debian: apt-get install {PACKAGES}")
    if not any(_memory_controllers()):
        found.append(f"{CGROUPS} has no memory controller")
    if next(_pod_cgroups(), None):
        found.append("another kubelet runs pods here")
    if not missing:
        done = subprocess.run(_command(["true"]), capture_output=True, text=True, check=False)
        if done.returncode:
            found.append(f"namespaces cannot be created (run it as root): {done.stderr.strip()}")
    return found


def run(command: Sequence[str]) -> int:
    """Run a command in namespaces of its own, and return its exit code.

    The kernel kills all processes with the first one of their namespace. Then their directory and cgroups are
    deleted.
    """
    with tempfile.TemporaryDirectory(prefix="hubhead-") as top:
        try:
            environment = {**os.environ, DIRECTORY: top}
            return subprocess.run(_command(command), env=environment, check=False).returncode
        finally:
            for directory in sorted(_pod_cgroups(), key=lambda path: -len(path.parts)):
                directory.rmdir()


def _command(command: Sequence[str]) -> list[str]:
    namespaces = ["--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
    return ["unshare", *namespaces, "sh", "-ec", SETUP, "sh", *command]


def _memory_controllers() -> Iterator[bool]:
    yield (CGROUPS / "memory" / "tasks").exists()
    controllers = CGROUPS / "cgroup.controllers"
    yield controllers.exists() and "memory" in controllers.read_text().split()


def _pod_cgroups() -> Iterator[Path]:
    """Yield the cgroups of pods, in every hierarchy."""
    for top in (CGROUPS, *CGROUPS.iterdir()):
        for name in ("kubepods", "k8s.io"):
            if (top / name).is_dir():
                yield from (path for path in (top / name, *(top / name).rglob("*")) if path.is_dir())

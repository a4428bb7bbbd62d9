"""Build the manifests of k8s/ with kustomize, and helpers to read them."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"

Manifest = dict[str, Any]
Check = Callable[[list[Manifest]], list[str]]
"""Function from the manifests of one variant to its findings."""

needs_builder = pytest.mark.needs("kubectl|kustomize")

OVERLAYS = ("cpu", "flink", "gpu", "gpu-scarce", "local")

COMPONENTS = {
    "../monitoring": "cpu",
    "autoscaling": "gpu",
    "keda": "gpu",
    "mixed-precision": "gpu",
    "mixed-precision-cpu": "cpu",
    "servicemonitor": "cpu",
    "storage-gs": "gpu",
    "storage-s3": "cpu",
    "score-indexed": "cpu",
}
"""Each component and the overlay that it is tested on."""

VARIANTS = (*OVERLAYS, *COMPONENTS)
"""All variants that are built and checked: overlays, and components on an overlay."""


CUSTOM = {
    "FlinkDeployment": "flink.apache.org/v1beta1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
}
"""API versions of custom resources, whose schemas kubernetes-validate does not contain."""


def kustomize(directory: Path) -> subprocess.CompletedProcess[str]:
    """Build a directory with kustomize or kubectl."""
    builder = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    return subprocess.run(
        [*builder, str(directory)], capture_output=True, text=True, timeout=600, check=False
    )


@functools.cache
def build_yaml(variant: str) -> str:
    """Build the YAML of a variant, together with the separate pods (loader and toolbox).

    Raises:
        AssertionError: the build fails or prints a warning.
    """
    is_overlay = variant in OVERLAYS
    built = build_overlay(variant) if is_overlay else build_overlay(COMPONENTS[variant], variant)
    beside = ((K8S / name).read_text() for name in ("loader.yaml", "toolbox.yaml"))
    return "\n---\n".join([built, *beside])


def build_overlay(overlay: str, *components: str) -> str:
    """Build the YAML of an overlay with components.

    Raises:
        AssertionError: the build fails or prints a warning.
    """
    with written_overlays([(overlay, *components)]) as (directory,):
        done = kustomize(directory)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@contextmanager
def written_overlays(wanted: Sequence[tuple[str, ...]]) -> Iterator[list[Path]]:
    """Write a kustomization for each (overlay, component, ...); yields their directories."""
    with tempfile.TemporaryDirectory() as top:  # kustomize requires relative paths
        shutil.copytree(K8S, Path(top) / "k8s")
        directories = []
        for number, (overlay, *components) in enumerate(wanted):
            directory = Path(top) / f"with-{number}"
            directory.mkdir()
            directory.joinpath("kustomization.yaml").write_text(
                f"resources: [../k8s/overlays/{overlay}]\n"
                f"components: [{', '.join(f'../k8s/components/{name}' for name in components)}]\n"
            )
            directories.append(directory)
        yield directories


def load_manifests(variant: str) -> list[Manifest]:
    """Return a fresh copy of the manifests of a variant, which may be changed."""
    return list(yaml.load_all(build_yaml(variant), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return next(m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)


def select_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [m for m in manifests if m["kind"] in kinds]


def names(manifests: list[Manifest], kind: str) -> set[str]:
    return {m["metadata"]["name"] for m in select_kind(manifests, kind)}


def get_job_specs(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the job spec of each CronJob, by name."""
    return {
        m["metadata"]["name"]: m["spec"]["jobTemplate"]["spec"] for m in select_kind(manifests, "CronJob")
    }


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return each pod or pod template, by the name of its owner."""
    templates = {m["metadata"]["name"]: m["spec"]["template"] for m in select_kind(manifests, "Deployment")}
    templates |= {name: spec["template"] for name, spec in get_job_specs(manifests).items()}
    return templates | {m["metadata"]["name"]: m for m in select_kind(manifests, "Pod")}


def containers(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Yield (owner name, pod, container) for each container."""
    for owner, pod in pods(manifests).items():
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
            yield owner, pod, container


def container(manifests: list[Manifest], owner: str, name: str) -> Manifest:
    return next(c for o, _, c in containers(manifests) if (o, c["name"]) == (owner, name))


def arguments(a_container: Manifest) -> list[str]:
    """Return the arguments of a command without those of Beam, with variables of Kubernetes replaced."""
    args = a_container.get("args", [])
    args = args[: args.index("--")] if "--" in args else args
    return [re.sub(r"\$\(\w+\)", "0", arg) for arg in args]


def beam_arguments(a_container: Manifest) -> list[str]:
    args = a_container.get("args", [])
    return args[args.index("--") + 1 :] if "--" in args else []


def flags(args: list[str]) -> dict[str, str]:
    """Return the values of flags by name; "" for a flag without a value."""
    parts = (arg.removeprefix("--").partition("=") for arg in args if arg.startswith("--"))
    return {name: value for name, _, value in parts}


def server(manifests: list[Manifest]) -> tuple[Manifest, Manifest]:
    """Return the pod template and the container of the model server."""
    pod = find(manifests, "Deployment", "hubhead-serving")["spec"]["template"]
    return pod, container(manifests, "hubhead-serving", "serve")


def server_flags(manifests: list[Manifest]) -> dict[str, str]:
    return flags(arguments(server(manifests)[1]))


def is_local(manifests: list[Manifest]) -> bool:
    """Return whether the servers are hubhead's own instead of TensorFlow Serving."""
    return bool(server(manifests)[1]["command"][0] == "hubhead")


def resolve_mount(pod: Manifest, a_container: Manifest, path: str) -> tuple[Manifest, str, bool]:
    """Return the volume of a path inside a container, the path below it, and whether it is writable.

    Raises:
        LookupError: the path is on no volume.
    """
    mounts = sorted(a_container.get("volumeMounts", []), key=lambda mount: -len(mount["mountPath"]))
    for mount in mounts:
        if path == mount["mountPath"] or path.startswith(mount["mountPath"] + "/"):
            volume = {v["name"]: v for v in pod["spec"]["volumes"]}[mount["name"]]
            return volume, path.removeprefix(mount["mountPath"]), not mount.get("readOnly", False)
    raise LookupError(path)


def read_config_files(manifests: list[Manifest]) -> dict[str, str]:
    """Return the files of the server's ConfigMap by name."""
    volumes = server(manifests)[0]["spec"]["volumes"]
    (name,) = (volume["configMap"]["name"] for volume in volumes if "configMap" in volume)
    return dict(find(manifests, "ConfigMap", name)["data"])

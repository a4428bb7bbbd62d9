"""Pods that the Flink Kubernetes Operator makes of the pod templates of a FlinkDeployment."""

from __future__ import annotations

import copy
from typing import Any

from tests.k8s.reading import Manifest

MAIN_CONTAINER = "flink-main-container"
"""Name by which Flink finds its own container in a template; it adds an empty one if there is none."""


def flink_pods(cluster: Manifest, *, by_name: bool) -> dict[str, Manifest]:
    """Return the pods of the job manager and of the task managers, by "jobmanager" and "taskmanager".

    Args:
        cluster: the FlinkDeployment.
        by_name: how lists are merged, kubernetes.operator.pod-template.merge-arrays-by-name.
    """
    spec = cluster["spec"]
    pods = {}
    for name, role in (("jobmanager", "jobManager"), ("taskmanager", "taskManager")):
        template = copy.deepcopy(spec.get("podTemplate", {}))
        _merge_into(template, copy.deepcopy(spec[role].get("podTemplate", {})), by_name)
        pods[name] = _add_main_container(template, spec["image"], spec[role]["resource"])
    return pods


def _merge_into(to: Manifest, more: Manifest, by_name: bool) -> None:
    """Merge objects as FlinkUtils.mergeInto of the operator does."""
    for key, value in more.items():
        mine = to.get(key)
        if isinstance(mine, list) and isinstance(value, list):
            _merge_lists(mine, value, by_name)
        elif isinstance(mine, dict) and isinstance(value, dict):
            _merge_into(mine, value, by_name)
        else:
            to[key] = value


def _merge_lists(to: list[Any], more: list[Any], by_name: bool) -> None:
    named = by_name and all(isinstance(element, dict) and "name" in element for element in to + more)
    for position, element in enumerate(more):
        if named:
            mine = next((own for own in to if own["name"] == element["name"]), None)
        else:
            mine = to[position] if position < len(to) else None
        if isinstance(mine, dict) and isinstance(element, dict):
            _merge_into(mine, element, by_name)
        elif mine is None:
            to.append(element)


def _add_main_container(pod: Manifest, image: str, resource: Manifest) -> Manifest:
    """Fill in Flink's container, as its KubernetesUtils.loadPodFromTemplateFile and decorators do."""
    containers = pod["spec"].setdefault("containers", [])
    main = next((c for c in containers if c["name"] == MAIN_CONTAINER), None)
    if main is None:
        main = {"name": MAIN_CONTAINER}
        containers.insert(0, main)
    memory = resource["memory"].replace("m", "Mi")
    limits = {"cpu": str(resource["cpu"]), "memory": memory}
    main |= {"image": image, "resources": {"requests": limits, "limits": limits}}
    return pod

"""Checks of all pods: labels, selectors, ports, volumes, resources, security and images."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from tests.k8s.reading import (
    ROOT,
    Check,
    Manifest,
    arguments,
    containers,
    flags,
    is_local,
    names,
    pods,
    resolve_mount,
    select_kind,
    server,
    server_flags,
)

_CLUSTER_WIDE = ("Namespace", "PriorityClass")
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def check_kubernetes_labels(manifests: list[Manifest]) -> list[str]:
    wanted = {f"app.kubernetes.io/{label}" for label in ("name", "component", "part-of")}
    labelled = {f"{m['kind']} {m['metadata']['name']}": m for m in manifests}
    labelled |= {f"the pods of {owner}": pod for owner, pod in pods(manifests).items()}
    return [
        f"{name} lacks {sorted(missing)}"
        for name, m in labelled.items()
        if (missing := wanted - m["metadata"].get("labels", {}).keys())
    ]


def check_namespace(manifests: list[Manifest]) -> list[str]:
    return [
        f"{m['kind']} {m['metadata']['name']} is in namespace {m['metadata'].get('namespace')}"
        for m in manifests
        if m["metadata"].get("namespace") != (None if m["kind"] in _CLUSTER_WIDE else "hubhead")
    ]


def check_selectors(manifests: list[Manifest]) -> list[str]:
    """Check that each selector matches exactly the pods of the servers."""
    labels = {owner: pod["metadata"]["labels"] for owner, pod in pods(manifests).items()}
    selectors = {
        f"Service {m['metadata']['name']}": m["spec"]["selector"] for m in select_kind(manifests, "Service")
    }
    for m in select_kind(manifests, "Deployment", "PodDisruptionBudget"):
        selectors[f"{m['kind']} {m['metadata']['name']}"] = m["spec"]["selector"]["matchLabels"]
    for m in select_kind(manifests, "NetworkPolicy"):
        if m["metadata"]["name"] not in ("hubhead-closed", "hubhead-flink"):
            selectors[f"NetworkPolicy {m['metadata']['name']}"] = m["spec"]["podSelector"]["matchLabels"]
    for owner, pod in pods(manifests).items():
        for constraint in pod["spec"].get("topologySpreadConstraints", []):
            selectors[f"the spread of {owner} by {constraint['topologyKey']}"] = constraint["labelSelector"][
                "matchLabels"
            ]
    picked = {
        name: [owner for owner in labels if selector.items() <= labels[owner].items()]
        for name, selector in selectors.items()
    }
    return [f"{name} selects {owners}" for name, owners in picked.items() if owners != ["hubhead-serving"]]


def check_ports(manifests: list[Manifest]) -> list[str]:
    """Check that services, policies, probes and server flags use ports that the containers declare."""
    _, serving = server(manifests)
    declared = {port["name"]: str(port["containerPort"]) for port in serving["ports"]}
    listening = {
        "grpc": server_flags(manifests).get("port"),
        "rest": server_flags(manifests).get("rest_api_port"),
    }
    findings = [] if listening == declared else [f"listens at {listening}, declares {declared}"]
    for service in select_kind(manifests, "Service"):
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in declared:
                findings.append(f"{service['metadata']['name']}: no port is named {port['targetPort']}")
            elif (
                service["spec"].get("clusterIP") == "None"
                and str(port["port"]) != declared[port["targetPort"]]
            ):
                findings.append(
                    f"{service['metadata']['name']}: headless, so its port must be that of the pod"
                )
    for policy in select_kind(manifests, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                if port["port"] not in declared:
                    findings.append(f"{policy['metadata']['name']}: no port is named {port['port']}")
    for owner, _, container in containers(manifests):
        known = {n for port in container.get("ports", []) for n in (port["name"], port["containerPort"])}
        for probe in _PROBES:
            for action in ("grpc", "httpGet", "tcpSocket"):
                target = container.get(probe, {}).get(action)
                if target and target["port"] not in known:
                    findings.append(f"{owner}: {probe} uses port {target['port']}")
    return findings


def check_apply_changes_nothing_twice(manifests: list[Manifest]) -> list[str]:
    """Check that fields are stated whose absence the API server fills in or whose presence it drops.

    Otherwise every kubectl apply is a change, and server-side after client-side apply a conflict.
    """
    findings = []

    def visit(value: Any, path: str) -> None:
        if isinstance(value, dict):
            is_port = {"containerPort", "targetPort"} & value.keys() or path.endswith(".ports")
            if is_port and "protocol" not in value:
                findings.append(f"{path} has a port without a protocol")
            if "fieldRef" in value and "apiVersion" not in value["fieldRef"]:
                findings.append(f"{path} has a reference without an API version")
            if "rollingUpdate" in value and "type" not in value:
                findings.append(f"{path} has no type")
            for key, below in value.items():
                if below in ([], None):
                    findings.append(f"{path}.{key} is empty, and dropped")
                visit(below, f"{path}.{key}")
        elif isinstance(value, list):
            for element in value:
                visit(element, path)

    for m in select_kind(manifests, "Deployment", "CronJob", "Service", "NetworkPolicy", "Pod"):
        visit(m["spec"], f"{m['kind']} {m['metadata']['name']}")
    return findings


def check_addresses(manifests: list[Manifest]) -> list[str]:
    """Check that each HOST:PORT in the arguments is a service or the pod itself."""
    services = {
        (m["metadata"]["name"], str(port["port"]))
        for m in select_kind(manifests, "Service")
        for port in m["spec"]["ports"]
    }
    services |= {(f"{name}-rest", "8081") for name in names(manifests, "FlinkDeployment")}
    findings = []
    for owner, pod, container in containers(manifests):
        own = {
            str(port["containerPort"])
            for c in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
            for port in c.get("ports", [])
        }
        for name, value in flags(container.get("args", [])).items():
            address = re.fullmatch(r"(?:dns:///)?([a-z][a-z0-9-]*):(\d+)", value)
            if not address or name == "environment_config":  # an address in the pod of a worker
                continue
            host, port = address.groups()
            if (host, port) not in services and not (host == "localhost" and port in own):
                findings.append(f"{owner}: nothing listens at --{name}={value}")
    return findings


def check_probes(manifests: list[Manifest]) -> list[str]:
    _, container = server(manifests)
    findings = [
        f"no gRPC {probe}"
        for probe in ("startupProbe", "livenessProbe")
        if "grpc" not in container.get(probe, {})
    ]
    ready = container.get("readinessProbe", {}).get("httpGet", {})
    if ready.get("path") != "/v1/models/food/labels/stable/metadata" or ready.get("port") != "rest":
        findings.append("is ready without a stable version")
    if not is_local(manifests) and "enable_grpc_healthcheck_service" not in server_flags(manifests):
        findings.append("the probes use a health service that is not enabled")
    start, live = container.get("startupProbe", {}), container.get("livenessProbe", {})
    if start.get("periodSeconds", 10) * start.get("failureThreshold", 3) < 300:
        findings.append("a server has less than five minutes to load and warm up its models")
    if live.get("periodSeconds", 10) * live.get("failureThreshold", 3) < 60:
        findings.append("a server that is busy for a minute is killed")
    return findings


def check_volumes(manifests: list[Manifest]) -> list[str]:
    """Check that mounts, volumes, claims and ConfigMaps match, and that paths are on volumes."""
    claims = names(manifests, "PersistentVolumeClaim")
    maps = {m["metadata"]["name"]: m["data"] for m in select_kind(manifests, "ConfigMap")}
    findings = []
    for owner, pod in pods(manifests).items():
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        every = pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
        mounted = {mount["name"] for c in every for mount in c.get("volumeMounts", [])}
        if volumes.keys() != mounted:
            findings.append(f"{owner}: volumes {sorted(volumes)}, mounts {sorted(mounted)}")
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims:
                findings.append(f"{owner}: no claim {claim}")
            if "configMap" in volume and volume["configMap"]["name"] not in maps:
                findings.append(f"{owner}: no ConfigMap {volume['configMap']['name']}")
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                findings.append(f"{owner}: {volume['name']} may fill the node")
    for owner, pod, container in containers(manifests):
        paths = [value for value in flags(container.get("args", [])).values() if value.startswith("/")]
        paths += [value for value in arguments(container) if re.fullmatch(r"/[\w./*-]+", value)]
        paths += [
            env["value"] for env in container.get("env", []) if str(env.get("value", "")).startswith("/")
        ]
        for path in paths:
            try:
                volume, below, _ = resolve_mount(pod, container, path)
            except LookupError:
                findings.append(f"{owner}: {path} is on no volume")
                continue
            files = maps.get(volume["configMap"]["name"], {}) if "configMap" in volume else None
            if files is not None and below.removeprefix("/") not in files:
                findings.append(f"{owner}: {path} is not in the ConfigMap")
    return findings


def check_priority_classes_and_accounts(manifests: list[Manifest]) -> list[str]:
    """Check that the priority classes and service accounts of pods exist."""
    findings = []
    for owner, pod in pods(manifests).items():
        wanted = pod["spec"].get("priorityClassName")
        if wanted not in names(manifests, "PriorityClass"):
            findings.append(f"{owner}: no priority class {wanted}")
        account = pod["spec"].get("serviceAccountName")
        if account and account not in names(manifests, "ServiceAccount"):
            findings.append(f"{owner}: no service account {account}")
    classes = {m["metadata"]["name"]: m for m in select_kind(manifests, "PriorityClass")}
    value = {name: m["value"] for name, m in classes.items()}
    if value.get("hubhead-serving", 0) <= value.get("hubhead-batch", 0):
        findings.append("jobs have priority over servers")
    for m in select_kind(manifests, "Pod"):
        own = m["spec"].get("priorityClassName", "")
        if value.get(own, 0) < value.get("hubhead-serving", 0):
            findings.append(f"{m['metadata']['name']}: preempted by a promotion")
        if classes.get(own, {}).get("preemptionPolicy") != "Never":
            findings.append(f"{m['metadata']['name']}: preempts jobs")
    return findings


def check_resources(manifests: list[Manifest]) -> list[str]:
    """Check that CPU is requested, and that requests equal limits for memory and GPUs."""
    findings = []
    for owner, _, container in containers(manifests):
        resources: dict[str, Any] = container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        for resource in ("nvidia.com/gpu", "memory"):
            if requests.get(resource) != limits.get(resource):
                findings.append(f"{owner}: {resource} request and limit differ")
        if not {"cpu", "memory"} <= requests.keys():
            findings.append(f"{owner}: {container['name']} has no request for CPU or memory")
    return findings


def check_pod_security(manifests: list[Manifest]) -> list[str]:
    """Check the Pod Security Standard "restricted", a read-only root file system, and no API token."""
    findings = []
    for owner, pod, container in containers(manifests):
        spec = pod["spec"]
        context = spec.get("securityContext", {}) | container.get("securityContext", {})
        secure = {
            "not as root": context.get("runAsNonRoot") is True and context.get("runAsUser", 0) > 0,
            "seccomp": context.get("seccompProfile") == {"type": "RuntimeDefault"},
            "no escalation": context.get("allowPrivilegeEscalation") is False,
            "no capabilities": context.get("capabilities") == {"drop": ["ALL"]},
            "read-only root": context.get("readOnlyRootFilesystem") is True,
            "no token": spec.get("automountServiceAccountToken") is False,
            "its group owns the volumes": context.get("fsGroup") == 1000,
            "nothing of the host": not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
            and not any("hostPath" in volume for volume in spec.get("volumes", [])),
        }
        findings += [f"{owner}: {rule} does not hold" for rule, holds in secure.items() if not holds]
    (namespace,) = select_kind(manifests, "Namespace")
    if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
        findings.append("the namespace does not enforce the standard")
    return findings


def check_images(manifests: list[Manifest]) -> list[str]:
    """Check that every image has a version: that of the package, or one version of TensorFlow Serving."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    lock = (ROOT / "requirements.txt").read_text()
    locked = {
        name: re.search(rf"^{name}==(\S+)", lock, re.MULTILINE) for name in ("apache-beam", "tensorflow")
    }
    beam, tensorflow = (str(found[1]) for found in locked.values() if found)
    findings = []
    for owner, _, container in containers(manifests):
        name, _, tag = container["image"].rpartition("/")[2].partition(":")
        if tag.partition("@")[0] in ("", "latest"):
            findings.append(f"{owner}: {container['image']} has no version")
        if container.get("command", [""])[0] == "hubhead" and tag.partition("@")[0] != version:
            findings.append(f"{owner}: {container['image']} is not {version}")
        if name.startswith("beam_flink") and tag != beam:
            findings.append(f"{owner}: a job server of another Beam than the locked {beam}")
        if container["image"].startswith("tensorflow/serving") and not re.fullmatch(
            r"2\.\d+\.\d+(-gpu)?", tag
        ):
            findings.append(f"{owner}: {container['image']} is not a released version")
        elif container["image"].startswith("tensorflow/serving"):
            older = int(tensorflow.split(".")[1]) - int(tag.split(".")[1])
            if (
                not 0 <= older <= 1
            ):  # one older loads what this one writes: tests/integration/test_old_tensorflow.py
                findings.append(f"{owner}: {container['image']} serves what TensorFlow {tensorflow} wrote")
    serving = {c["image"] for _, _, c in containers(manifests) if c["name"] in ("seed", "serve")}
    if len(serving) != 1:
        findings.append(f"the servers use the images {serving}")
    return findings


CHECKS: list[Check] = [
    check_kubernetes_labels,
    check_namespace,
    check_selectors,
    check_ports,
    check_apply_changes_nothing_twice,
    check_addresses,
    check_probes,
    check_volumes,
    check_priority_classes_and_accounts,
    check_resources,
    check_pod_security,
    check_images,
]

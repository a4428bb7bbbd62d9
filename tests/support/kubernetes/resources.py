"""Resources that the manifests need in a cluster, and the pods that come of them."""

from __future__ import annotations

import copy
import uuid
from typing import Any

from tests.k8s.flink import flink_pods
from tests.k8s.reading import Manifest, pods, select_kind
from tests.support.kubernetes.api import NAMESPACE

OPERATOR_ACCOUNT = "flink"
"""Service account that the Flink operator installs."""


def service_account(name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}}


def pods_of(manifests: list[Manifest]) -> list[Manifest]:
    """Return the pods that workloads create of their templates, Flink's as its operator merges them."""
    templates: dict[str, Any] = {**pods(manifests)}
    accounts = {}
    for flink in select_kind(manifests, "FlinkDeployment"):
        settings = flink["spec"]["flinkConfiguration"]
        by_name = settings.get("kubernetes.operator.pod-template.merge-arrays-by-name") == "true"
        made = flink_pods(flink, by_name=by_name)
        templates |= made
        accounts |= dict.fromkeys(made, flink["spec"]["serviceAccount"])
    return [_make_pod(name, template, accounts.get(name)) for name, template in templates.items()]


def _make_pod(name: str, template: Manifest, account: str | None) -> Manifest:
    metadata = {**template.get("metadata", {}), "name": f"{name}-pod", "namespace": NAMESPACE}
    spec = copy.deepcopy(template["spec"])
    if account:
        spec["serviceAccountName"] = account
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def storage_class() -> Manifest:
    """Return the default storage class of `volumes`."""
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "test", "annotations": default},
        "provisioner": "kubernetes.io/no-provisioner",
        "allowVolumeExpansion": True,
    }


def volumes(number: int = 8) -> list[Manifest]:
    """Return volumes that any claim of the manifests can be bound to, with new names."""
    spec = {
        "capacity": {"storage": "200Gi"},
        "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "test",
        "hostPath": {"path": "/nowhere"},
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"volume-{uuid.uuid4()}", "labels": {"test": "volume"}},
            "spec": spec,
        }
        for _ in range(number)
    ]

"""Every overlay with every combination of components is accepted by an API server, as strict dry runs."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from tests.k8s.checks_jobs import check_commands_parse, check_flink, check_indexed_shards, check_paths_agree
from tests.k8s.checks_serving import (
    check_mixed_precision,
    check_models_agree,
    check_scaling,
    check_tensorflow_serving_flags,
)
from tests.k8s.reading import COMPONENTS, K8S, OVERLAYS, VARIANTS, Manifest, build_overlay, load_manifests
from tests.support.kubernetes.api import NAMESPACE
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.definitions import read_definitions
from tests.support.kubernetes.resources import (
    OPERATOR_ACCOUNT,
    pods_of,
    service_account,
)

pytestmark = [pytest.mark.cluster, pytest.mark.server, pytest.mark.needs("etcd", "kubectl")]

EXCLUSIVE = ({"autoscaling", "keda"}, {"storage-gs", "storage-s3"})
"""Components of which an overlay takes one at most."""

ONLY_WITH = {
    "mixed-precision": {"gpu", "gpu-scarce"},
    "mixed-precision-cpu": {"cpu", "flink"},
    "storage-gs": {"cpu", "gpu", "gpu-scarce", "local"},
    "storage-s3": {"cpu", "gpu", "gpu-scarce", "local"},
}
"""The overlays that a component goes with, if not all."""

DRY_RUN = ("--dry-run=server", "--validate=strict", "-f", "-")


def combinations(overlay: str) -> Iterator[tuple[str, ...]]:
    """Yield all sets of components that go with an overlay, in the order of their names."""
    names = [name for name in sorted(COMPONENTS) if overlay in ONLY_WITH.get(name, {overlay})]
    for size in range(len(names) + 1):
        for chosen in itertools.combinations(names, size):
            if not any(set(chosen) >= both for both in EXCLUSIVE):
                yield chosen


@functools.cache
def all_combinations() -> dict[tuple[str, ...], list[Manifest]]:
    """Return the manifests of each overlay with each combination of components."""
    wanted = [(overlay, *chosen) for overlay in OVERLAYS for chosen in combinations(overlay)]
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda names: build_overlay(*names), wanted))
    # The same documents come again and again, and are only read.
    documents = {text for one in built for text in one.split("\n---\n")}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    parsed = {text: yaml.load(text, Loader=loader) for text in documents}
    return {
        names: [parsed[text] for text in one.split("\n---\n")]
        for names, one in zip(wanted, built, strict=True)
    }


def to_json(manifests: list[Manifest]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})


def distinct(manifests: list[Manifest]) -> list[Manifest]:
    """Return each manifest once."""
    return list({json.dumps(m, sort_keys=True): m for m in manifests}.values())


@pytest.fixture(scope="module")
def server(api_server: ControlPlane) -> ControlPlane:
    """API server with all that the manifests do not contain, and with the namespace and priority classes."""
    standard = [yaml.safe_load((K8S / "base" / "namespace.yaml").read_text())]
    # The manifest enforces the standard for pods; with this their templates are judged too.
    standard[0]["metadata"]["labels"]["pod-security.kubernetes.io/warn"] = "restricted"
    classes = list(yaml.safe_load_all((K8S / "base" / "priority.yaml").read_text()))
    accounts = [service_account(name) for name in ("default", OPERATOR_ACCOUNT)]
    buckets = [m for m in load_manifests("storage-gs") if m["kind"] == "ServiceAccount"]
    needed = to_json([*standard, *classes, *accounts, *buckets, *read_definitions()])
    api_server.kubectl("apply", "--server-side", "-f", "-", stdin=needed)
    api_server.kubectl("wait", "--for=condition=Established", "customresourcedefinitions", "--all")
    return api_server


@pytest.mark.slow(seconds=90)
def test_the_api_server_accepts_every_combination_without_a_warning(server: ControlPlane) -> None:
    """Distinct objects of all combinations; a Deployment is one object whatever came with it."""
    every = all_combinations()
    assert len(every) == 72 + 3 * 144 + 48  # local; cpu, gpu and gpu-scarce; flink
    objects = distinct([m for manifests in every.values() for m in manifests])
    names: dict[tuple[str, str], list[Manifest]] = {}
    for m in objects:
        names.setdefault((m["kind"], m["metadata"]["name"]), []).append(m)
    # One object of each name per call, since a list is applied in its order.
    for batch in itertools.zip_longest(*names.values()):
        wanted = [m for m in batch if m]
        done = server.kubectl("apply", "--server-side", *DRY_RUN, stdin=to_json(wanted))
        assert done.stderr == ""
        assert done.stdout.count("serverside-applied (server dry run)") == len(wanted), done.stdout


@pytest.mark.slow(seconds=50)
def test_flags_and_paths_agree_in_every_combination() -> None:
    """The order of the patches, which insert arguments by their positions, never matters."""
    checks = (
        check_commands_parse,
        check_flink,
        check_indexed_shards,
        check_mixed_precision,
        check_models_agree,
        check_paths_agree,
        check_scaling,
        check_tensorflow_serving_flags,
    )
    findings = {
        names: found
        for names, manifests in all_combinations().items()
        if (found := [finding for check in checks for finding in check(manifests)])
    }
    assert findings == {}


@pytest.mark.slow(seconds=20)
def test_pod_security_admits_every_pod(server: ControlPlane) -> None:
    """Pods of Deployments, jobs and, with their templates merged as the operator does, of Flink."""
    pods = distinct([pod for variant in VARIANTS for pod in pods_of(load_manifests(variant))])
    assert {"jobmanager-pod", "taskmanager-pod", "hubhead-loader-pod"} <= {
        pod["metadata"]["name"] for pod in pods
    }
    for pod in pods:
        done = server.kubectl("create", *DRY_RUN, stdin=json.dumps(pod))
        assert done.stderr == ""
        assert "created (server dry run)" in done.stdout


def test_pod_security_refuses_flinks_container_where_templates_are_merged_by_position(
    server: ControlPlane,
) -> None:
    """The fault that the setting of the operator and the order of the containers prevent."""
    manifests = load_manifests("flink")
    flink = next(m for m in manifests if m["kind"] == "FlinkDeployment")
    del flink["spec"]["flinkConfiguration"]["kubernetes.operator.pod-template.merge-arrays-by-name"]
    del flink["spec"]["taskManager"]["podTemplate"]["spec"]["containers"][0]
    (pod,) = (pod for pod in pods_of(manifests) if pod["metadata"]["name"] == "taskmanager-pod")
    done = server.kubectl("create", *DRY_RUN, stdin=json.dumps(pod), check=False)
    assert done.returncode != 0
    assert 'violates PodSecurity "restricted' in done.stderr
    assert "flink-main-container" in done.stderr


def test_mistakes_are_refused(server: ControlPlane) -> None:
    """The tests above can fail: an unknown field, an insecure template, and an impossible policy."""

    def findings(kind: str, name: str, change: object, variant: str = "cpu") -> str:
        (m,) = (
            copy.deepcopy(m)
            for m in load_manifests(variant)
            if (m["kind"], m["metadata"]["name"]) == (kind, name)
        )
        assert callable(change)
        change(m["spec"])
        done = server.kubectl("apply", "--server-side", *DRY_RUN, stdin=json.dumps(m), check=False)
        return str(done.stderr)

    job = ("jobTemplate", "spec", "template", "spec")

    def template(spec: Manifest) -> Manifest:
        return functools.reduce(lambda at, key: at[key], job, spec)

    assert findings("CronJob", "hubhead-score", lambda spec: spec.update(timezone="Etc/UTC"))
    assert "would violate PodSecurity" in findings(
        "CronJob", "hubhead-score", lambda spec: template(spec).pop("securityContext")
    )
    assert "podFailurePolicy" in findings(
        "CronJob", "hubhead-score", lambda spec: template(spec).update(restartPolicy="OnFailure")
    )
    assert "spec.triggerz: field not declared in schema" in findings(
        "ScaledObject", "hubhead-serving", lambda spec: spec.update(triggerz=[]), "keda"
    )
    assert "spec.flinkVersion" in findings(
        "FlinkDeployment", "hubhead-flink", lambda spec: spec.update(flinkVersion="1.20"), "flink"
    )
    assert findings("Deployment", "hubhead-serving", lambda spec: spec["selector"].update(matchLabels={}))
    assert server.api.find("pods", NAMESPACE) is None

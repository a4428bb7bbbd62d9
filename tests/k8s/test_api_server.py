"""Every overlay with every combination of components is accepted by an API server, as strict dry runs."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.k8s.checks_jobs import check_commands_parse, check_flink, check_indexed_shards, check_paths_agree
from tests.k8s.checks_serving import (
    check_mixed_precision,
    check_models_agree,
    check_scaling,
    check_tensorflow_serving_flags,
)
from tests.k8s.reading import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    VARIANTS,
    Manifest,
    build_overlay,
    load_manifests,
    written_overlays,
)
from tests.support.kubernetes import binaries
from tests.support.kubernetes.api import NAMESPACE
from tests.support.kubernetes.control_plane import ControlPlane
from tests.support.kubernetes.definitions import read_definitions
from tests.support.kubernetes.deployment import to_json
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

THREADS = 4

SEPARATOR = "\n---\n"
"""Line between two documents of YAML."""


def combinations(overlay: str) -> Iterator[tuple[str, ...]]:
    """Yield all sets of components that go with an overlay, in the order of their names."""
    names = [name for name in sorted(COMPONENTS) if overlay in ONLY_WITH.get(name, {overlay})]
    for size in range(len(names) + 1):
        for chosen in itertools.combinations(names, size):
            if not any(set(chosen) >= both for both in EXCLUSIVE):
                yield chosen


Combinations = dict[tuple[str, ...], list[Manifest]]
"""Manifests by overlay and components."""


@pytest.fixture(scope="module")
def every_combination(programs: Path) -> Combinations:
    """The manifests of each overlay with each combination of components."""
    wanted = [(overlay, *chosen) for overlay in OVERLAYS for chosen in combinations(overlay)]
    built = render_overlays(programs, wanted)
    # The same documents come again and again, and are only read.
    parsed = {text: parse_yaml(text) for text in {text for one in built for text in one.split(SEPARATOR)}}
    return {
        names: [parsed[text] for text in one.split(SEPARATOR)]
        for names, one in zip(wanted, built, strict=True)
    }


def render_overlays(programs: Path, wanted: Sequence[tuple[str, ...]]) -> list[str]:
    """Build the YAML of each (overlay, component, ...) as `kubectl kustomize` does, in one process."""
    with written_overlays(wanted) as directories:
        done = subprocess.run(
            [programs / binaries.RENDER],
            input="\n".join(map(str, directories)),
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def parse_yaml(text: str) -> Manifest:
    manifest: Manifest = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return manifest


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


def dry_run_all(dry_run: Callable[[Manifest], str], manifests: list[Manifest]) -> dict[str, str]:
    """Return the warnings and errors of dry runs, in which no object depends on another."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(dry_run, manifests)
        return {json.dumps(m): finding for m, finding in zip(manifests, found, strict=True) if finding}


@pytest.mark.slow(seconds=60)
def test_the_api_server_accepts_every_combination_without_a_warning(
    server: ControlPlane, every_combination: Combinations
) -> None:
    """Distinct objects of all combinations; a Deployment is one object whatever came with it."""
    assert len(every_combination) == 72 + 3 * 144 + 48  # local; cpu, gpu and gpu-scarce; flink
    objects = distinct([m for manifests in every_combination.values() for m in manifests])
    assert len(objects) > 100
    assert dry_run_all(server.api.dry_run, objects) == {}


def test_the_overlays_are_rendered_as_kubectl_does(every_combination: Combinations) -> None:
    """The combinations are built by a program of the tests, from the library that kubectl contains."""
    some = [*((overlay,) for overlay in OVERLAYS), ("gpu", "../monitoring", "keda", "storage-gs")]
    for names in some:
        rendered = build_overlay(*names).split(SEPARATOR)
        assert every_combination[names] == [parse_yaml(text) for text in rendered]


def test_flags_and_paths_agree_in_every_combination(every_combination: Combinations) -> None:
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
        for names, manifests in every_combination.items()
        if (found := [finding for check in checks for finding in check(manifests)])
    }
    assert findings == {}


def test_pod_security_admits_every_pod(server: ControlPlane) -> None:
    """Pods of Deployments, jobs and, with their templates merged as the operator does, of Flink."""
    pods = distinct([pod for variant in VARIANTS for pod in pods_of(load_manifests(variant))])
    assert {"jobmanager-pod", "taskmanager-pod", "hubhead-loader-pod"} <= {
        pod["metadata"]["name"] for pod in pods
    }
    assert dry_run_all(server.api.dry_run_creation, pods) == {}


def test_pod_security_refuses_flinks_container_where_templates_are_merged_by_position(
    server: ControlPlane,
) -> None:
    """The fault that the setting of the operator and the order of the containers prevent."""
    manifests = load_manifests("flink")
    flink = next(m for m in manifests if m["kind"] == "FlinkDeployment")
    del flink["spec"]["flinkConfiguration"]["kubernetes.operator.pod-template.merge-arrays-by-name"]
    del flink["spec"]["taskManager"]["podTemplate"]["spec"]["containers"][0]
    (pod,) = (pod for pod in pods_of(manifests) if pod["metadata"]["name"] == "taskmanager-pod")
    refused = server.api.dry_run_creation(pod)
    assert 'violates PodSecurity "restricted' in refused
    assert "flink-main-container" in refused


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
        return server.api.dry_run(m)

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

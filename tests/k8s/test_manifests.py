"""Every overlay and component of k8s/ builds, is valid by Kubernetes' schemas, and passes the checks."""

from __future__ import annotations

import json

import kubernetes_validate
import pytest
from google.protobuf import text_format

from tests.k8s import checks_jobs, checks_pods, checks_serving
from tests.k8s.reading import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    VARIANTS,
    Check,
    Manifest,
    beam_arguments,
    container,
    find,
    manifests_of,
    needs_builder,
    of_kind,
    settings_of,
)

CHECKS: list[Check] = [*checks_pods.CHECKS, *checks_serving.CHECKS, *checks_jobs.CHECKS]

CUSTOM = {
    "FlinkDeployment": "flink.apache.org/v1beta1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
}
"""Kinds that operators bring, whose schemas no package ships."""

STUMBLES = (LookupError, TypeError, ValueError, StopIteration, AttributeError, text_format.ParseError)
"""What a check may raise at manifests that are far from what it reads."""

VERSIONS = [f"1.{minor}" for minor in range(29, int(kubernetes_validate.latest_version().split(".")[1]) + 1)]


def schema_findings(manifests: list[Manifest], version: str) -> list[str]:
    """What Kubernetes' own schemas say, unknown fields included."""
    findings = []
    for m in manifests:
        if m["kind"] in CUSTOM:
            if m["apiVersion"] != CUSTOM[m["kind"]]:
                findings.append(f"{m['kind']} {m['apiVersion']}")
            continue
        try:
            kubernetes_validate.validate(m, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            findings.append(f"{m['kind']} {m['metadata']['name']}: {error}")
    return findings


def findings_of(manifests: list[Manifest]) -> list[str]:
    """What all checks find, or else the newest schema; a check that stumbles has found something."""
    findings = []
    for check in CHECKS:
        try:
            findings += check(manifests)
        except STUMBLES as error:
            findings.append(f"{check.__name__}: {type(error).__name__} {error}")
    return findings or schema_findings(manifests, VERSIONS[-1])


@needs_builder
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_manifests_pass(check: Check, variant: str) -> None:
    assert check(manifests_of(variant)) == []


@needs_builder
@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_by_the_strict_schemas(version: str) -> None:
    distinct = {json.dumps(m, sort_keys=True): m for variant in VARIANTS for m in manifests_of(variant)}
    assert schema_findings(list(distinct.values()), version) == []


def test_every_overlay_and_component_is_tried() -> None:
    assert {path.name for path in (K8S / "overlays").iterdir()} == set(OVERLAYS)
    assert {path.name for path in (K8S / "components").iterdir()} == COMPONENTS.keys() - {"../monitoring"}


@needs_builder
def test_an_overlay_has_all_that_a_classifier_needs() -> None:
    made = {(m["kind"], m["metadata"]["name"]) for m in manifests_of("cpu") if m["kind"] != "ConfigMap"}
    assert made == {
        ("Namespace", "hubhead"),
        ("PriorityClass", "hubhead-serving"),
        ("PriorityClass", "hubhead-batch"),
        ("NetworkPolicy", "hubhead-closed"),
        ("NetworkPolicy", "hubhead-serving"),
        ("Deployment", "hubhead-serving"),
        ("PodDisruptionBudget", "hubhead-serving"),
        ("Service", "hubhead-serving-grpc"),
        ("Service", "hubhead-serving-control"),
        ("Service", "hubhead-serving-rest"),
        ("CronJob", "hubhead-train"),
        ("CronJob", "hubhead-promote"),
        ("CronJob", "hubhead-canary"),
        ("CronJob", "hubhead-rollback"),
        ("CronJob", "hubhead-score"),
        ("PersistentVolumeClaim", "hubhead-models"),
        ("PersistentVolumeClaim", "hubhead-photos"),
        ("PersistentVolumeClaim", "hubhead-embeddings"),
        ("PersistentVolumeClaim", "hubhead-scores"),
        ("Pod", "hubhead-loader"),
        ("Pod", "hubhead-toolbox"),
    }


@needs_builder
def test_overlays_differ_in_what_they_are_named_for() -> None:
    def rolling(variant: str) -> tuple[int, int]:
        strategy = find(manifests_of(variant), "Deployment", "hubhead-serving")["spec"]["strategy"]
        return strategy["rollingUpdate"]["maxSurge"], strategy["rollingUpdate"]["maxUnavailable"]

    def image(variant: str) -> str:
        return str(container(manifests_of(variant), "hubhead-serving", "serve")["image"])

    assert (rolling("gpu"), rolling("gpu-scarce")) == ((1, 0), (0, 1))
    assert image("gpu") == image("gpu-scarce") == f"{image('cpu')}-gpu"
    assert image("local").startswith("hubhead:")
    assert [len(of_kind(manifests_of(name), "FlinkDeployment")) for name in OVERLAYS] == [0, 1, 0, 0, 0]
    claims = of_kind(manifests_of("local"), "PersistentVolumeClaim")
    assert all(claim["spec"]["accessModes"] == ["ReadWriteOnce"] for claim in claims)


@needs_builder
def test_the_nightly_scoring_goes_on_after_a_retraining() -> None:
    args = container(manifests_of("cpu"), "hubhead-score", "score")["args"]
    assert "--overwrite" in args
    assert any(arg.startswith("--max_rejected=") for arg in args)  # without it there is no exit code 3


@needs_builder
@pytest.mark.tf
def test_the_session_config_is_one() -> None:
    from tensorflow.core.protobuf import config_pb2

    session = text_format.Parse(settings_of(manifests_of("gpu"))["session.config"], config_pb2.ConfigProto())
    assert session.gpu_options.allow_growth is True


@needs_builder
@pytest.mark.beam
def test_beam_knows_its_options() -> None:
    from apache_beam.options.pipeline_options import PipelineOptions

    from batch.beam.runner import check_beam_args

    given = beam_arguments(container(manifests_of("flink"), "hubhead-score", "score"))
    args = check_beam_args(tuple(given))
    parsed = PipelineOptions(list(args)).get_all_options(drop_default=True)
    assert parsed["flink_master"] == "hubhead-flink-rest:8081"
    assert parsed["job_endpoint"] == "localhost:8099"
    assert parsed["parallelism"] == 4
    assert len(parsed) >= len(given)

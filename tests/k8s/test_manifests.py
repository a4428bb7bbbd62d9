"""Every overlay and component of k8s/ builds, is valid by Kubernetes' schemas, and passes the checks."""

from __future__ import annotations

import functools
import json

import kubernetes_validate
import pytest
from google.protobuf import text_format

from tests.k8s import checks_jobs, checks_pods, checks_serving
from tests.k8s.reading import (
    COMPONENTS,
    CUSTOM,
    K8S,
    OVERLAYS,
    VARIANTS,
    Check,
    Manifest,
    beam_arguments,
    build_overlay,
    container,
    find,
    load_manifests,
    needs_builder,
    read_config_files,
    select_kind,
)

# It reads megabytes of definitions again for every manifest.
kubernetes_validate.utils.schema_contents = functools.lru_cache(32)(kubernetes_validate.utils.schema_contents)

CHECKS: list[Check] = [*checks_pods.CHECKS, *checks_serving.CHECKS, *checks_jobs.CHECKS]

CHECK_ERRORS = (LookupError, TypeError, ValueError, StopIteration, AttributeError, text_format.ParseError)
"""Exceptions that a check may raise on unexpected manifests; they count as findings."""

VERSIONS = [f"1.{minor}" for minor in range(29, int(kubernetes_validate.latest_version().split(".")[1]) + 1)]


def schema_findings(manifests: list[Manifest], version: str) -> list[str]:
    """Validate against the schemas of Kubernetes, strictly: unknown fields are findings."""
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


def run_all_checks(manifests: list[Manifest]) -> list[str]:
    """Return the findings of all checks, or else those of the newest schema; an exception is a finding."""
    findings = []
    for check in CHECKS:
        try:
            findings += check(manifests)
        except CHECK_ERRORS as error:
            findings.append(f"{check.__name__}: {type(error).__name__} {error}")
    return findings or schema_findings(manifests, VERSIONS[-1])


@needs_builder
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_manifests_pass_the_check(check: Check, variant: str) -> None:
    assert check(load_manifests(variant)) == []


@needs_builder
@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_by_the_strict_schemas_of_kubernetes(version: str) -> None:
    distinct = {json.dumps(m, sort_keys=True): m for variant in VARIANTS for m in load_manifests(variant)}
    assert schema_findings(list(distinct.values()), version) == []


def test_every_overlay_and_component_is_covered() -> None:
    assert {path.name for path in (K8S / "overlays").iterdir()} == set(OVERLAYS)
    assert {path.name for path in (K8S / "components").iterdir()} == COMPONENTS.keys() - {"../monitoring"}


@needs_builder
def test_the_cpu_overlay_contains_all_resources() -> None:
    made = {(m["kind"], m["metadata"]["name"]) for m in load_manifests("cpu") if m["kind"] != "ConfigMap"}
    assert made == {
        ("Namespace", "hubhead"),
        ("PriorityClass", "hubhead-serving"),
        ("PriorityClass", "hubhead-batch"),
        ("PriorityClass", "hubhead-tools"),
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
def test_overlays_differ_in_strategy_image_and_volumes() -> None:
    def rolling_update(variant: str) -> tuple[int, int]:
        strategy = find(load_manifests(variant), "Deployment", "hubhead-serving")["spec"]["strategy"]
        return strategy["rollingUpdate"]["maxSurge"], strategy["rollingUpdate"]["maxUnavailable"]

    def image(variant: str) -> str:
        return str(container(load_manifests(variant), "hubhead-serving", "serve")["image"])

    assert (rolling_update("gpu"), rolling_update("gpu-scarce")) == ((1, 0), (0, 1))
    assert image("gpu") == image("gpu-scarce") == f"{image('cpu')}-gpu"
    assert image("local").startswith("hubhead:")
    assert [len(select_kind(load_manifests(name), "FlinkDeployment")) for name in OVERLAYS] == [0, 1, 0, 0, 0]
    claims = select_kind(load_manifests("local"), "PersistentVolumeClaim")
    assert all(claim["spec"]["accessModes"] == ["ReadWriteOnce"] for claim in claims)


@needs_builder
def test_the_nightly_scoring_overwrites_scores_after_a_retraining() -> None:
    args = container(load_manifests("cpu"), "hubhead-score", "score")["args"]
    assert "--overwrite" in args
    assert any(arg.startswith("--max_rejected=") for arg in args)  # without it there is no exit code 3


@needs_builder
@pytest.mark.tf
def test_the_session_config_parses() -> None:
    from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2

    for variant in ("gpu", "mixed-precision"):
        session = text_format.Parse(
            read_config_files(load_manifests(variant))["session.config"], config_pb2.ConfigProto()
        )
        assert session.gpu_options.allow_growth is True
        rewritten = session.graph_options.rewrite_options.auto_mixed_precision
        assert rewritten == (rewriter_config_pb2.RewriterConfig.ON if variant == "mixed-precision" else 0)


@needs_builder
@pytest.mark.parametrize(
    ("component", "overlay"),
    [("mixed-precision", "cpu"), ("mixed-precision", "local"), ("mixed-precision-cpu", "gpu")],
)
def test_mixed_precision_does_not_build_with_servers_that_ignore_it(component: str, overlay: str) -> None:
    with pytest.raises(AssertionError, match=r"test failed|error in test"):
        build_overlay(overlay, component)


@needs_builder
@pytest.mark.beam
def test_the_options_of_beam_parse() -> None:
    from apache_beam.options.pipeline_options import PipelineOptions

    from batch.beam.runner import check_beam_args

    given = beam_arguments(container(load_manifests("flink"), "hubhead-score", "score"))
    args = check_beam_args(tuple(given))
    parsed = PipelineOptions(list(args)).get_all_options(drop_default=True)
    assert parsed["flink_master"] == "hubhead-flink-rest:8081"
    assert parsed["job_endpoint"] == "localhost:8099"
    assert parsed["parallelism"] == 4
    assert len(parsed) >= len(given)

"""Alerts and dashboard use metrics and labels that exist.

Metrics are read from a real server and from real runs of the scoring job. Those of Kubernetes and of GPUs are
listed here, with their source.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import yaml
from click.testing import CliRunner
from promql_parser import parse

from hubhead import hubhead
from serving.client import Client
from serving.errors import HubheadError
from tests.k8s.checks_jobs import usage_error
from tests.k8s.reading import kustomize, needs_builder
from tests.support import processes
from tests.support.promql import Checker, selectors
from tests.support.trained import copy_store

if TYPE_CHECKING:
    from tests.support.trained import Trained
    from trainer.dataset.samples import SampleSummary

MONITORING = processes.REPO / "k8s" / "monitoring"
RULES: dict[str, Any] = yaml.safe_load((MONITORING / "alerts.yaml").read_text("utf-8"))
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in RULES["spec"]["groups"] for rule in group["rules"]
}
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))

TARGET = frozenset({"namespace", "pod", "container", "service", "job", "instance", "endpoint"})
"""Labels that the service discovery of the Prometheus Operator adds to every series."""

_KUBE = "https://github.com/kubernetes/kube-state-metrics/tree/main/docs/metrics/workload"
_CADVISOR = "https://github.com/google/cadvisor/blob/master/docs/storage/prometheus.md"
_KUBELET = "https://kubernetes.io/docs/reference/instrumentation/metrics/"
_DCGM = "https://github.com/NVIDIA/dcgm-exporter/blob/main/etc/default-counters.csv"

_VOLUME = ("persistentvolumeclaim",)
_GPU = ("gpu", "UUID", "Hostname", "modelName", "exported_namespace", "exported_pod", "exported_container")

EXTERNAL_METRICS: dict[str, tuple[tuple[str, ...], str]] = {
    "kube_cronjob_status_last_successful_time": (("cronjob",), _KUBE),
    "kube_deployment_spec_replicas": (("deployment",), _KUBE),
    "kube_deployment_status_condition": (("deployment", "condition", "status", "reason"), _KUBE),
    "kube_deployment_status_replicas_available": (("deployment",), _KUBE),
    "kube_job_failed": (("job_name", "condition", "reason"), _KUBE),
    "kube_job_status_active": (("job_name",), _KUBE),
    "kube_job_status_start_time": (("job_name",), _KUBE),
    "kube_pod_container_status_last_terminated_reason": (("uid", "reason"), _KUBE),
    "kube_pod_container_status_restarts_total": (("uid",), _KUBE),
    "kubelet_volume_stats_available_bytes": (_VOLUME, _KUBELET),
    "kubelet_volume_stats_capacity_bytes": (_VOLUME, _KUBELET),
    "kubelet_volume_stats_inodes": (_VOLUME, _KUBELET),
    "kubelet_volume_stats_inodes_free": (_VOLUME, _KUBELET),
    "container_cpu_usage_seconds_total": (("cpu", "id", "image", "name"), _CADVISOR),
    "container_memory_working_set_bytes": (("id", "image", "name"), _CADVISOR),
    "DCGM_FI_DEV_FB_FREE": (_GPU, _DCGM),
    "DCGM_FI_DEV_FB_USED": (_GPU, _DCGM),
    "DCGM_FI_DEV_GPU_UTIL": (_GPU, _DCGM),
}
"""Metrics of other exporters: labels in addition to TARGET, and the documentation."""


@dataclass
class Exported:
    """Exported metrics: the labels of each metric, and the values of each label."""

    labels: dict[str, set[str]] = field(default_factory=dict)
    values: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """Add the samples of a page in the text format of Prometheus."""
        for line in text.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            found = re.fullmatch(r"([\w:]+)(?:\{(.*)\})? \S+", line)
            assert found, line
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[2] or ""))
            known = self.labels.setdefault(found[1], set(labels))
            known |= labels.keys()
            for label, value in labels.items():
                self.values.setdefault((found[1], label), set()).add(value)

    def all(self) -> dict[str, frozenset[str]]:
        """Return all metrics with their labels, including external metrics and target labels."""
        ours = {name: TARGET | labels for name, labels in self.labels.items()}
        return ours | {name: TARGET | set(labels) for name, (labels, _) in EXTERNAL_METRICS.items()}


@pytest.fixture(scope="module")
def exported(trained: Trained, sample: SampleSummary, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Metrics of a server that loaded one version and failed on another, and of the latest scoring run."""
    top = tmp_path_factory.mktemp("monitoring")
    photos = sorted(path for path in sample.directory.rglob("*") if path.is_file())
    assert len(photos) > 40
    found = Exported()
    found.add(_server_metrics(trained, photos[:4], top))
    found.add(_job_metrics(trained, photos[:40], top))
    return found


def _server_metrics(trained: Trained, photos: list[Path], top: Path) -> str:
    base = top / "models" / "food"
    shutil.copytree(trained.result.bundle.path, base / "1")
    shutil.copytree(base / "1", base / "2")
    (base / "2" / "saved_model.pb").write_bytes(b"torn")
    config = top / "monitoring.config"
    config.write_text("prometheus_config { enable: true }")
    arguments = [
        f"--model_base_path={base}",
        "--port=0",
        "--rest_api_port=-1",
        f"--monitoring_config_file={config}",
    ]
    with processes.serving(arguments, top / "serve.log") as ports:
        with Client(f"localhost:{ports.grpc}", model="food", timeout=60) as client:
            assert [prediction.status for prediction in client.classify(photos)] == ["ok"] * len(photos)
        with (
            Client(f"localhost:{ports.grpc}", model="food", version=9, timeout=60) as client,
            pytest.raises(HubheadError),
        ):
            client.classify(photos[:1])
        with urllib.request.urlopen(
            f"http://localhost:{ports.rest}/monitoring/prometheus/metrics", timeout=60
        ) as page:
            return str(page.read().decode())


def _job_metrics(trained: Trained, photos: list[Path], top: Path) -> str:
    incoming, textfile = top / "incoming", top / "score.prom"
    for copied in (photos[::2], photos[1::2]):  # the second run reports the drift since the first
        incoming.mkdir(exist_ok=True)
        for photo in copied:
            shutil.copy(photo, incoming / f"{photo.parent.name}-{photo.name}")
        done = CliRunner().invoke(
            hubhead,
            [
                "score",
                f"--photos={incoming}",
                f"--model={trained.result.bundle.path}",
                f"--output={top / 'scores'}",
                f"--embedding_store={copy_store(trained, top)}",
                f"--metrics_textfile={textfile}",
                f"--run_id={len(copied)}-{copied[0].name}",
                "--no_report",
            ],
        )
        assert done.exit_code == 0, done.output
    return textfile.read_text("utf-8")


# --- Metrics and labels --------------------------------------------------------------------------------


def dashboard_expressions() -> dict[str, str]:
    """Return every expression of the dashboard, with the variables of Grafana replaced."""
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    }
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            values = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert values, variable["query"]
            found[f"${variable['name']}"] = f"count by ({values[2]}) ({values[1]})"
    return {name: _replace_variables(expression) for name, expression in found.items()}


def _replace_variables(expression: str) -> str:
    for variable, value in {"__rate_interval": "5m", "namespace": "hubhead", "model": "food"}.items():
        expression = expression.replace(f"${variable}", value)
    return expression


def autoscaler_expressions() -> dict[str, str]:
    """Return the queries of KEDA."""
    path = processes.REPO / "k8s" / "components" / "keda" / "scaledobject.yaml"
    triggers = yaml.safe_load(path.read_text("utf-8"))["spec"]["triggers"]
    return {f"keda {number}": one["metadata"]["query"] for number, one in enumerate(triggers)}


EXPRESSIONS = (
    {name: rule["expr"] for name, rule in ALERTS.items()} | dashboard_expressions() | autoscaler_expressions()
)


@pytest.mark.tf
@pytest.mark.beam
@pytest.mark.slow(seconds=1)  # times the number of expressions: the fixture takes that long
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_metric_and_label_is_exported(name: str, exported: Exported) -> None:
    tree = parse(EXPRESSIONS[name])
    checker = Checker(exported.all())
    labels = checker.labels(tree)
    assert checker.findings == []
    for selector in selectors(tree):
        for matcher in selector.matchers.matchers:
            if selector.name in exported.labels and matcher.name not in TARGET:
                possible = _possible_values(exported, selector.name, matcher.name)
                assert set(matcher.value.split("|")) <= possible, str(selector)
    if name in ALERTS:
        text = " ".join(ALERTS[name]["annotations"].values())
        named = set(re.findall(r"\{\{ *\$labels\.(\w+)", text))
        assert named <= labels, f"{name} uses labels {named - labels} that its expression does not have"


def _possible_values(exported: Exported, metric: str, label: str) -> set[str]:
    """Return the possible values of a label: those seen, and all gRPC codes for the status of requests."""
    seen = exported.values[metric, label]
    if metric == ":tensorflow:serving:request_count":
        return seen | {code.name for code in grpc.StatusCode}
    return seen


@pytest.mark.tf
@pytest.mark.beam
@pytest.mark.slow
def test_external_metrics_are_all_used_and_not_our_own(exported: Exported) -> None:
    used = {selector.name for text in EXPRESSIONS.values() for selector in selectors(parse(text))}
    assert used & EXTERNAL_METRICS.keys() == EXTERNAL_METRICS.keys()
    assert not exported.labels.keys() & EXTERNAL_METRICS.keys()


@pytest.mark.tf
@pytest.mark.beam
@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "finding"),
    [
        (("request_count", "requests_count"), "nothing exports"),
        (("model_name", "model"), "no label model"),
        (("status", "code"), "no label code"),
        (("rate(", "rate(sum("), None),
    ],
)
def test_a_mistake_in_an_alert_is_found(
    broken: tuple[str, str], finding: str | None, exported: Exported
) -> None:
    text = ALERTS["HubheadErrors"]["expr"].replace(*broken)
    assert text != ALERTS["HubheadErrors"]["expr"]
    if finding is None:
        with pytest.raises(ValueError, match="parenthesis"):
            parse(text)
        return
    checker = Checker(exported.all())
    checker.labels(parse(text))
    assert any(finding in line for line in checker.findings)


# --- The files ------------------------------------------------------------------------------------------


def test_alerts_are_complete() -> None:
    assert len(ALERTS) == sum(len(group["rules"]) for group in RULES["spec"]["groups"]) >= 15
    for name, rule in ALERTS.items():
        assert name.startswith("Hubhead")
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}, name
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}, name
        assert re.fullmatch(r"\d+m", rule.get("for", "0m")), name


def test_the_dashboard_is_valid() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        position = panel["gridPos"]
        assert 0 <= position["x"] <= 24 - position["w"], panel["title"]
        own = {
            (position["x"] + column, position["y"] + line)
            for column in range(position["w"])
            for line in range(position["h"])
        }
        assert not own & cells, f"{panel['title']} overlaps another panel"
        cells |= own
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
            assert panel["description"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references), panel["title"]
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    text = json.dumps(panels)
    assert set(re.findall(r"\$\{?(\w+)", text)) <= names | {"__rate_interval"}


@needs_builder
def test_the_component_adds_rules_dashboard_and_push(tmp_path: Path) -> None:
    relative = {
        name: os.path.relpath(processes.REPO / "k8s" / name, tmp_path) for name in ("base", "monitoring")
    }
    kustomization = {"resources": [relative["base"]], "components": [relative["monitoring"]]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = kustomize(tmp_path)
    assert done.returncode == 0, done.stderr
    built = {(found["kind"], found["metadata"]["name"]): found for found in yaml.safe_load_all(done.stdout)}
    rules = [
        rule for group in built["PrometheusRule", "hubhead"]["spec"]["groups"] for rule in group["rules"]
    ]
    assert rules == list(ALERTS.values())
    dashboard = built["ConfigMap", "hubhead-dashboard"]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["dashboard.json"]) == DASHBOARD
    assert {found["metadata"].get("namespace", "hubhead") for found in built.values()} == {"hubhead"}
    job = built["CronJob", "hubhead-score"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = job["containers"]
    assert any(argument.startswith("--metrics_push=http://") for argument in container["args"])
    group, *words = container["command"]
    assert group == "hubhead"
    assert usage_error(words[0], container["args"]) == ""

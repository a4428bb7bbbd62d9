"""Alerts, dashboard and runbook speak of what is there: metrics, labels, commands and resources.

The metrics are read from a real server and from real runs of the scoring job. What Kubernetes and the
GPUs export is listed here, with its source.
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

from hubhead import hubhead
from serving.client import Client
from serving.errors import HubheadError
from tests.k8s.checks_jobs import refused
from tests.k8s.reading import kustomize, needs_builder
from tests.support import processes
from tests.support.promql import Checker, SyntaxFault, parse, selectors
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
"""What the Prometheus operator's service discovery adds to every series that it scrapes."""

_KUBE = "https://github.com/kubernetes/kube-state-metrics/tree/main/docs/metrics/workload"
_CADVISOR = "https://github.com/google/cadvisor/blob/master/docs/storage/prometheus.md"
_KUBELET = "https://kubernetes.io/docs/reference/instrumentation/metrics/"
_DCGM = "https://github.com/NVIDIA/dcgm-exporter/blob/main/etc/default-counters.csv"

_VOLUME = ("persistentvolumeclaim",)
_GPU = ("gpu", "UUID", "Hostname", "modelName", "exported_namespace", "exported_pod", "exported_container")

ELSEWHERE: dict[str, tuple[tuple[str, ...], str]] = {
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
"""Metrics that neither our server nor our job exports: their labels beside TARGET's, and who says so."""


@dataclass
class Exported:
    """What was really exported: the labels of each metric, and the values of each label."""

    labels: dict[str, set[str]] = field(default_factory=dict)
    values: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """The samples of a page in Prometheus' text format."""
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
        """All metrics with their labels, those of elsewhere and of scraping too."""
        ours = {name: TARGET | labels for name, labels in self.labels.items()}
        return ours | {name: TARGET | set(labels) for name, (labels, _) in ELSEWHERE.items()}


@pytest.fixture(scope="module")
def exported(trained: Trained, sample: SampleSummary, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """What a server exports that loaded one version and not another, and the job's newest run."""
    top = tmp_path_factory.mktemp("monitoring")
    photos = sorted(path for path in sample.directory.rglob("*") if path.is_file())
    assert len(photos) > 40
    found = Exported()
    found.add(_of_server(trained, photos[:4], top))
    found.add(_of_job(trained, photos[:40], top))
    return found


def _of_server(trained: Trained, photos: list[Path], top: Path) -> str:
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


def _of_job(trained: Trained, photos: list[Path], top: Path) -> str:
    incoming, textfile = top / "incoming", top / "score.prom"
    for copied in (photos[::2], photos[1::2]):  # the second run tells what changed since the first
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
    """Every expression of the dashboard, with Grafana's variables filled in."""
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
    return {name: _filled(expression) for name, expression in found.items()}


def _filled(expression: str) -> str:
    for variable, value in {"__rate_interval": "5m", "namespace": "hubhead", "model": "food"}.items():
        expression = expression.replace(f"${variable}", value)
    return expression


def autoscaler_expressions() -> dict[str, str]:
    """What KEDA asks Prometheus."""
    path = processes.REPO / "k8s" / "components" / "keda" / "scaledobject.yaml"
    triggers = yaml.safe_load(path.read_text("utf-8"))["spec"]["triggers"]
    return {f"keda {number}": one["metadata"]["query"] for number, one in enumerate(triggers)}


EXPRESSIONS = (
    {name: rule["expr"] for name, rule in ALERTS.items()} | dashboard_expressions() | autoscaler_expressions()
)


@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_metric_and_label_is_exported(name: str, exported: Exported) -> None:
    tree = parse(EXPRESSIONS[name])
    checker = Checker(exported.all())
    labels = checker.labels(tree)
    assert checker.findings == []
    for selector in selectors(tree):
        for matcher in selector.matchers:
            if selector.name in exported.labels and matcher.label not in TARGET:
                for value in matcher.value.split("|"):
                    assert value in _possible(exported, selector.name, matcher.label), (selector, value)
    if name in ALERTS:
        text = " ".join(ALERTS[name]["annotations"].values())
        told = set(re.findall(r"\{\{ *\$labels\.(\w+)", text))
        assert told <= labels, f"{name} tells of {told - labels}, which its expression does not have"


def _possible(exported: Exported, metric: str, label: str) -> set[str]:
    """The values that a label may have: those seen, and all codes where it says how a request ended."""
    seen = exported.values[metric, label]
    if metric == ":tensorflow:serving:request_count":
        return seen | {code.name for code in grpc.StatusCode}
    return seen


@pytest.mark.tf
@pytest.mark.slow
def test_the_list_of_other_metrics_has_none_of_ours_and_none_too_many(exported: Exported) -> None:
    used = {selector.name for text in EXPRESSIONS.values() for selector in selectors(parse(text))}
    assert used & ELSEWHERE.keys() == ELSEWHERE.keys()
    assert not exported.labels.keys() & ELSEWHERE.keys()


@pytest.mark.tf
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
def test_a_slip_in_an_alert_is_found(
    broken: tuple[str, str], finding: str | None, exported: Exported
) -> None:
    text = ALERTS["HubheadErrors"]["expr"].replace(*broken)
    assert text != ALERTS["HubheadErrors"]["expr"]
    if finding is None:
        with pytest.raises(SyntaxFault):
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


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"], panel["title"]
        own = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert not own & cells, f"{panel['title']} lies on another panel"
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
    assert container["args"][-1].startswith("--metrics_push=http://")
    group, *words = container["command"]
    assert group == "hubhead"
    assert refused(words[0], container["args"]) == ""

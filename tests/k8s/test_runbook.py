"""The runbook: its alerts, commands, resources, files and panels exist."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from hubhead import hubhead
from tests.k8s.test_monitoring import ALERTS, DASHBOARD
from tests.support.cluster import Manifest, render
from tests.support.processes import REPO

K8S = REPO / "k8s"
TEXT = (K8S / "RUNBOOK.md").read_text("utf-8")
PROSE = re.sub(r"^ *```.*?^ *```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)
LINES = [
    line.strip()
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", TEXT, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
KUBECTL = [line for line in LINES if line.startswith("kubectl ")]
HUBHEAD = [line for line in LINES if line.startswith("hubhead ")]
KINDS = {
    "cronjob": "CronJob",
    "deployment": "Deployment",
    "job": "Job",
    "persistentvolumeclaim": "PersistentVolumeClaim",
    "pod": "Pod",
}


def sections() -> dict[str, str]:
    """Return the text of each section by its anchor on GitHub."""
    parts = re.split(r"^## (.+)$", PROSE, flags=re.MULTILINE)[1:]
    return {
        heading.lower().replace(" ", "-"): text for heading, text in zip(parts[::2], parts[1::2], strict=True)
    }


SECTIONS = sections()


def alerts_of(text: str) -> set[str]:
    """Return the alerts named at the beginning of a section."""
    begun = re.search(r"^Alerts: (.*?)$\n\n", text, re.DOTALL | re.MULTILINE)
    return set(re.findall(r"`(Hubhead\w+)`", begun[1])) if begun else set()


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    """Manifests of the base, and the pods that the runbook applies separately."""
    loose = [yaml.safe_load((K8S / name).read_text("utf-8")) for name in ("loader.yaml", "toolbox.yaml")]
    return render(K8S / "base") + loose


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    for manifest in manifests:
        match manifest["kind"]:
            case "Deployment":
                yield manifest["spec"]["template"]
            case "CronJob":
                yield manifest["spec"]["jobTemplate"]["spec"]["template"]
            case "Pod":
                yield manifest


def names(manifests: list[Manifest], kind: str) -> set[str]:
    return {manifest["metadata"]["name"] for manifest in manifests if manifest["kind"] == kind}


def toolbox() -> Manifest:
    loaded: Manifest = yaml.safe_load((K8S / "toolbox.yaml").read_text("utf-8"))
    return loaded


# --- Alerts --------------------------------------------------------------------------------------------


def test_every_alert_links_to_a_section_that_names_it() -> None:
    for name, rule in ALERTS.items():
        document, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (REPO / document).is_file(), name
        assert name in alerts_of(SECTIONS[anchor]), f"{name} is not in the section {anchor}"


def test_every_named_alert_exists() -> None:
    assert set(re.findall(r"Hubhead\w+", TEXT)) == ALERTS.keys()


def test_every_section_names_alerts_and_a_way_to_verify_the_result() -> None:
    wanted = {"rollout", "rollback", "bad-model", "out-of-memory", "stuck-batch", "disk-full"}
    assert wanted <= SECTIONS.keys()
    for name, text in SECTIONS.items():
        assert "\nAlerts: " in text, name
        assert "\nAfterwards: " in text, name


def test_links_point_to_sections() -> None:
    for anchor in re.findall(r"\]\(#([\w-]+)\)", TEXT):
        assert anchor in SECTIONS, anchor


def test_named_panels_exist_in_the_dashboard() -> None:
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    named = set(re.findall(r'"([A-Z][^"]+)"', PROSE))
    assert len(named) >= 4
    assert named <= titles


# --- Commands ------------------------------------------------------------------------------------------


def test_there_are_commands() -> None:
    assert len(HUBHEAD) >= 15
    assert len(KUBECTL) >= 15
    assert {line.split()[0] for line in LINES} == {
        "kubectl",
        "k8s/job.sh",
        "hubhead",
        "tail",
        "df",
        "mv",
        "rm",
    }


@pytest.mark.parametrize("line", HUBHEAD)
def test_every_hubhead_command_is_accepted_by_its_parser(line: str) -> None:
    arguments = shlex.split(line)[1:]
    command: click.Command = hubhead
    while isinstance(command, click.Group):
        name, found, arguments = command.resolve_command(click.Context(command), arguments)
        assert found is not None, name
        command = found
    with contextlib.suppress(click.exceptions.Exit):
        command.make_context(command.name, arguments)


@pytest.mark.needs("kubectl|kustomize")
@pytest.mark.parametrize("line", KUBECTL)
def test_every_resource_named_is_in_the_manifests(line: str, manifests: list[Manifest]) -> None:
    words = shlex.split(line)
    for word in words:
        if found := re.fullmatch(r"(?:--from=)?([a-z]+)/([a-z0-9-]+)", word):
            kind, name = KINDS[found[1]], found[2]
            if kind == "Job":  # one that was made of a CronJob
                assert any(name.startswith(f"{made}-") for made in names(manifests, "CronJob")), word
            else:
                assert name in names(manifests, kind), word
        if word.endswith(".yaml"):
            assert (REPO / word).is_file(), word
        if word.startswith("--container="):
            containers = {one["name"] for pod in pods(manifests) for one in pod["spec"]["containers"]}
            assert word.partition("=")[2] in containers
        if word.startswith("--selector="):
            label, _, value = word.removeprefix("--selector=").partition("=")
            assert any(pod["metadata"]["labels"].get(label) == value for pod in pods(manifests)), word
        if word.startswith("--patch="):
            raise AssertionError("write --patch and its text as two words")
    if "--patch" in words:
        assert isinstance(yaml.safe_load(words[words.index("--patch") + 1]), dict)
    if words[1] not in ("apply", "delete") or "-f" not in words:
        assert words[1:3] == ["-n", "hubhead"], "in another namespace"


@pytest.mark.needs("kubectl|kustomize")
def test_jobs_are_made_of_templates_that_exist(manifests: list[Manifest]) -> None:
    made = [shlex.split(line) for line in LINES if line.startswith("k8s/job.sh")]
    assert {words[1] for words in made} == {"train", "canary", "promote", "rollback", "score"}
    for _, template, *job in made:
        assert f"hubhead-{template}" in names(manifests, "CronJob")
        assert all(name.startswith(f"hubhead-{template}-") for name in job)


@pytest.mark.needs("kubectl|kustomize")
def test_addresses_claims_and_paths_exist(manifests: list[Manifest]) -> None:
    for service, port in re.findall(r"dns:///([\w-]+):(\d+)", TEXT):
        (found,) = (m for m in manifests if (m["kind"], m["metadata"]["name"]) == ("Service", service))
        assert int(port) in {one["port"] for one in found["spec"]["ports"]}
    claims = names(manifests, "PersistentVolumeClaim")
    assert set(re.findall(r"^\| `(hubhead-\w+)` \|", TEXT, re.MULTILINE)) == claims
    mounted = {mount["mountPath"] for mount in toolbox()["spec"]["containers"][0]["volumeMounts"]}
    for line in HUBHEAD:
        for path in re.findall(r"(?<=\s)/\w+", line):
            assert path in mounted, line


@pytest.mark.needs("kubectl|kustomize")
def test_the_toolbox_has_the_image_and_every_volume(manifests: list[Manifest]) -> None:
    spec: dict[str, Any] = toolbox()["spec"]
    (score,) = (m for m in manifests if (m["kind"], m["metadata"]["name"]) == ("CronJob", "hubhead-score"))
    job = score["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert spec["containers"][0]["image"] == job["containers"][0]["image"]
    claimed = {
        one["persistentVolumeClaim"]["claimName"] for one in spec["volumes"] if "persistentVolumeClaim" in one
    }
    assert claimed == names(manifests, "PersistentVolumeClaim")
    for mount in job["containers"][0]["volumeMounts"]:  # read-only in the job
        assert {**mount, "readOnly": None} in [
            {**own, "readOnly": None} for own in spec["containers"][0]["volumeMounts"]
        ]


def test_the_readme_links_to_the_runbook() -> None:
    assert "](k8s/RUNBOOK.md)" in (REPO / "README.md").read_text("utf-8")
    assert Path(K8S / "RUNBOOK.md").is_file()

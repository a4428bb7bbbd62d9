"""k8s/README.md: its commands are few and parse, and the resources and files it names exist."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from tests.k8s.checks_jobs import usage_error
from tests.k8s.reading import K8S, Manifest, find, load_manifests, needs_builder

README = (K8S / "README.md").read_text()


def commands(section: str) -> list[list[str]]:
    """Return the command lines of a section, each as words."""
    text = README.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


GUIDE = commands("From an empty cluster to the first prediction")
ALL_COMMANDS = [
    words for section in re.findall(r"^## (.*)$", README, flags=re.MULTILINE) for words in commands(section)
]


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return load_manifests("local")


def test_the_guide_has_ten_commands_at_most() -> None:
    assert 5 < len(GUIDE) <= 10
    assert GUIDE[-1] == ["k8s/job.sh", "promote"]


@needs_builder
def test_the_guide_ends_with_a_prediction(manifests: list[Manifest]) -> None:
    pod = find(manifests, "CronJob", "hubhead-promote")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert [c["command"] for c in pod["containers"]] == [
        ["hubhead", "predict"]
    ]  # the container whose log comes last


@needs_builder
def test_the_guide_names_resources_of_the_manifests(manifests: list[Manifest]) -> None:
    made = {f"{m['kind'].lower()}/{m['metadata']['name']}" for m in manifests}
    for words in ALL_COMMANDS:
        if words[0] == "k8s/job.sh":
            assert f"cronjob/hubhead-{words[1]}" in made
        elif words[0] == "kubectl":
            named = [word for word in words if re.match(r"(job|cronjob|deployment|pod)/", word)]
            assert set(named) <= made, words
            assert "-n" in words or words[1] == "apply"
    hosts = re.findall(r"([a-z-]+)\.hubhead:(\d+)", README)
    assert len(hosts) == 2
    for name, port in hosts:
        assert find(manifests, "Service", name)["spec"]["ports"][0]["port"] == int(port)


def test_the_guide_names_files_that_exist() -> None:
    files = re.findall(r"`((?:base|overlays|components)/[\w./-]+)`", README)
    files += re.findall(r"(?:-k|-f|--file) k8s/(\S+)", README)
    assert len(files) > 15
    for file in files:
        assert (K8S / file).exists(), file


def test_the_job_script_states_its_usage() -> None:
    for arguments in ([], ["--help"], ["train", "one", "two"]):
        done = subprocess.run([K8S / "job.sh", *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Usage: k8s/job.sh NAME [JOB]" in done.stderr
        assert "set -euo" not in done.stderr


def test_hubhead_commands_parse() -> None:
    own = [words for words in ALL_COMMANDS if words[0] == "hubhead"]
    assert own
    for _, name, *args in own:
        assert usage_error(name, args) == ""
    assert "no_such" in usage_error("predict", ["--no_such"])
    assert usage_error("promote", ["--wait=soon", "--model_base_path=/x"])
    assert "missing" in usage_error("score", [])

"""Static checks of the Dockerfile, which is not built here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.k8s.checks_jobs import command_of
from tests.k8s.reading import K8S, ROOT

DOCKERFILE = (K8S / "Dockerfile").read_text()

TARGETS = {"batch", "server", "trainer"}


def instructions(dockerfile: str) -> list[list[str]]:
    """Return the instructions of a Dockerfile as words, without comments and with continued lines joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [line.split() for line in joined if line.strip()]


def list_copied_files(dockerfile: str) -> list[str]:
    return [
        source
        for words in instructions(dockerfile)
        if words[0] == "COPY" and not words[1].startswith("--from=")
        for source in words[1:-1]
    ]


def check_dockerfile(dockerfile: str) -> list[str]:
    """Return what would fail in a build, and what a build must not do."""
    findings: list[str] = []
    stages: dict[str, str] = {}  # user at the end of each stage
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for words in instructions(dockerfile):
        last = next(reversed(stages), "")
        match words:
            case ["ARG", argument]:
                if argument != "PYTHON=python:3.11-slim":
                    findings.append(f"ARG {argument}")
            case ["FROM", image, "AS", stage]:
                if image not in (*stages, "${PYTHON}"):
                    findings.append(f"FROM {image}")
                stages[stage] = stages.get(image, "")
            case ["FROM" | "ADD", *_]:
                findings.append(f"{' '.join(words)}: name the stage, and use COPY")
            case ["USER", user]:
                stages[last] = user
            case ["COPY", source, *_] if source.startswith("--from="):
                if source.removeprefix("--from=") not in list(stages)[:-1]:
                    findings.append(f"no stage before {last} is {source}")
            case ["RUN", *command] if "install" in command and "-r" in command:
                if not {"--require-hashes", "--no-deps"} <= set(command):
                    findings.append(f"not locked: {' '.join(command)}")
            case ["RUN", *command] if "install" in command:
                if not {"--no-deps", "--no-build-isolation"} <= set(command):
                    findings.append(f"installs unlocked packages: {' '.join(command)}")
    for source in list_copied_files(dockerfile):
        if not (ROOT / source).exists():
            findings.append(f"{source} is not in the repository")
        if f"!{source}" not in ignored:
            findings.append(f"{source} is excluded by .dockerignore")
    findings += [
        f"{stage} runs as {stages.get(stage)!r}" for stage in TARGETS if stages.get(stage) != "1000:1000"
    ]
    if not stages or next(reversed(stages)) != "trainer":
        findings.append("the default target is not trainer")
    return findings


def test_the_dockerfile_passes_the_checks() -> None:
    assert check_dockerfile(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("USER 1000:1000\n", ""),
        ("--from=build", "--from=trainer"),
        ("COPY batch batch", "COPY batches batch"),
        ("COPY batch batch", "COPY tests tests"),
        ("COPY batch batch", "ADD batch batch"),
        ("--require-hashes ", ""),
        ("--no-build-isolation ", ""),
        ("FROM hubhead AS server", "FROM python:3 AS server"),
        ("hubhead AS trainer", "hubhead"),
    ],
)
def test_a_mistake_in_the_dockerfile_is_found(right: str, wrong: str) -> None:
    assert right in DOCKERFILE
    assert set(check_dockerfile(DOCKERFILE.replace(right, wrong))) > set(check_dockerfile(DOCKERFILE))


def test_entrypoints_exist() -> None:
    started = [
        json.loads(" ".join(words[1:])) for words in instructions(DOCKERFILE) if words[0] == "ENTRYPOINT"
    ]
    assert [command for command in started if command[0] == "hubhead"] == [["hubhead", "serve"], ["hubhead"]]
    assert command_of("serve")
    (pool,) = (command for command in started if command[0] == "python")
    done = subprocess.run([sys.executable, *pool[1:], "--help"], capture_output=True, text=True, check=True)
    assert "--service_port" in done.stdout


def test_the_copied_files_suffice_to_build_the_wheel(tmp_path: Path) -> None:
    for source in list_copied_files(DOCKERFILE):
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, tmp_path)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path, check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packages = [
        ROOT / "hubhead.py",
        *(p for name in ("serving", "batch", "trainer") for p in (ROOT / name).rglob("*")),
    ]
    assert packed == {
        path.relative_to(ROOT).as_posix()
        for path in packages
        if path.is_file() and "__pycache__" not in path.parts
    }

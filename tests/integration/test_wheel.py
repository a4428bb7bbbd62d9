"""The client installed from the wheel with the core dependencies only. Needs the package registry."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import grpc
import pytest
from packaging.requirements import Requirement

from serving import protos
from tests.support.fake_grpc_server import answer_for, fake_grpc_server
from tests.support.repository import REPO


def core_packages() -> set[str]:
    """Return the transitive core dependencies, by the metadata of the installed packages."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: set[str] = set()
    pending = list(project["dependencies"])
    while pending:
        requirement = Requirement(pending.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        pending += metadata.requires(name) or []
    return found


def locked_entries(names: set[str]) -> str:
    """Return the lock file's entries of these packages, with their hashes."""
    text = (REPO / "requirements.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^[a-z0-9][^\n]*==.*?(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    chosen = {entry.partition("==")[0]: entry for entry in entries}
    assert names <= chosen.keys()
    return "".join(chosen[name] for name in sorted(names))


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answer(request: Any, _: grpc.ServicerContext) -> Any:
    return answer_for(list(request.inputs["image_bytes"].string_val))


@pytest.mark.slow
@pytest.mark.server
def test_the_wheel_predicts_in_an_environment_without_tensorflow(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=REPO)
    [wheel] = tmp_path.glob("*.whl")
    templates = {
        path.relative_to(REPO).as_posix()
        for package in ("serving", "batch", "trainer")
        for path in (REPO / package).rglob("templates/*")
    }
    with ZipFile(wheel) as archive:
        assert len(templates) >= 6
        assert templates <= set(archive.namelist())
        typed = {"serving/py.typed", "batch/py.typed", "trainer/py.typed"}
        assert typed <= set(archive.namelist()), (
            "type checkers ignore the annotations of an installed package"
        )
    (tmp_path / "core.txt").write_text(locked_entries(core_packages()))
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    install = (*pip, "install", "--quiet", "--no-deps", "--no-compile")
    run(*install, "--require-hashes", "-r", tmp_path / "core.txt", cwd=tmp_path)
    run(*install, wheel, cwd=tmp_path)
    run(*pip, "check", cwd=tmp_path)

    (tmp_path / "photo.jpg").write_bytes(b"good")
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    hubhead = python.with_name("hubhead")
    with fake_grpc_server({protos.PREDICT: answer}) as address:
        options = ("--server", address, "--model_name", "food", "--json")
        output = run(hubhead, "predict", "*.jpg", *options, cwd=tmp_path)
    found = [json.loads(line) for line in output.splitlines()]
    assert [(record["photo"], record["status"], record["label"]) for record in found] == [
        ("bad.jpg", "corrupt", None),
        ("photo.jpg", "ok", "apple"),
    ]
    code = "from serving.loadtest import *; print(render_page([Result(1, 1, 1, [])], 'food', ''))"
    assert "Load test of food" in run(python, "-c", code, cwd=tmp_path)
    assert "Retrain a head" in run(hubhead, "--help", cwd=tmp_path)
    assert "[predict]" in run(hubhead, "predict", "--print_config", cwd=tmp_path)
    findings = {
        one["check"]: one for one in json.loads(run(hubhead, "doctor", "--json", cwd=tmp_path))["findings"]
    }
    assert findings["hubhead"]["level"] == "ok"
    assert findings["extra serve"]["remedy"] == "pip install 'hubhead[serve]'"
    assert findings["engine auto"]["found"].startswith("none")
    spec = run(python, "-c", "import importlib.util as u; print(u.find_spec('tensorflow'))", cwd=tmp_path)
    assert spec.strip() == "None"

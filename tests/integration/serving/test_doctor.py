"""hubhead doctor on this machine: libraries that crash, ports in use, programs that fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.diagnostics import engines, machine, programs
from serving.diagnostics.finding import Level
from serving.diagnostics.processes import run_program, run_python
from tests.support.repository import REPO


def run_doctor(*arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "hubhead", "doctor", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        cwd=REPO,
        check=False,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def run_doctor_json(code: int = 0, **variables: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(run_doctor("--json", code=code, **variables).stdout)
    return {"ok": record["ok"], **{one["check"]: one for one in record["findings"]}}


@pytest.mark.slow(seconds=15)
def test_this_machine_can_work_and_auto_chooses_onnx_runtime_by_its_cpu() -> None:
    found = run_doctor_json()
    assert found["ok"] is True
    assert found["TensorFlow"]["level"] == found["ONNX Runtime"]["level"] == "ok"
    assert found["engine auto"]["found"].startswith("onnx on ")
    assert found["extra train"]["found"] == "complete"


@pytest.mark.slow(seconds=15)
def test_cache_that_cannot_be_written_is_an_error_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = str(tmp_path / "file" / "cache")
    variables = {
        "HUBHEAD_CACHE_DIR": cache,
        "PYTHONIOENCODING": "ascii",
        "https_proxy": "http://a:hunter2@proxy:1",
    }
    done = run_doctor("--quiet", code=1, **variables)
    assert "cache directory" in done.stdout
    assert "HUBHEAD_CACHE_DIR" in done.stdout
    assert "no_proxy" in done.stdout
    assert "hunter2" not in done.stdout
    assert "extra train" not in done.stdout  # quiet: only what needs attention


def test_check_of_engines_reports_how_a_process_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_TENSORFLOW", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.setattr(engines, "_ONNX_RUNTIME", "raise ImportError('libonnx.so: no such file')")
    found = {one.check: one for one in engines.check_engines()}
    assert found["TensorFlow"].level is found["engine auto"].level is Level.ERROR
    assert "SIGILL" in found["TensorFlow"].found
    assert "libonnx.so: no such file" in found["ONNX Runtime"].found


def test_process_that_hangs_is_killed_and_output_of_libraries_is_skipped() -> None:
    assert run_python("import time; time.sleep(60)", seconds=0.5) == ({}, "it took longer than 0 s")
    noisy = """import sys; print("warning"); print('{"a": 1}'); print("bye", file=sys.stderr)"""
    assert run_python(noisy) == ({"a": 1}, "")
    assert run_python("pass") == ({}, "it had no result")
    assert run_program(["/nowhere/program"]).problem.startswith("it cannot be started")
    assert run_program([sys.executable, "-c", "raise SystemExit(3)"]).problem == "it ended with exit code 3"
    kill = f"import os; os.kill(os.getpid(), {signal.SIGKILL})"
    assert run_program([sys.executable, "-c", kill]).problem == "it was ended by SIGKILL"


def test_modules_of_the_working_directory_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    assert "a stranger" not in run_python(engines._ONNX_RUNTIME)[1]


@pytest.mark.server
def test_port_in_use_is_a_warning_with_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as busy:
        busy.bind(("", 0))
        busy.listen()
        port = busy.getsockname()[1]
        monkeypatch.setattr(machine, "PORTS", {port: "--port"})
        (found,) = machine.check_ports()
    assert (found.check, found.level) == (f"port {port}", Level.WARNING)
    assert "--port" in found.remedy
    assert machine.is_port_free(port)


@pytest.mark.parametrize("name", ["java", "kubectl"])
def test_program_that_fails_is_a_warning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / name
    program.write_text("#!/bin/sh\necho no such library >&2\nexit 127\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    check = programs.check_java if name == "java" else programs.check_kubectl
    found = next(iter(check()))
    assert (found.level, "no such library" in found.found) == (Level.WARNING, True)


def test_versions_of_programs_are_read_from_what_they_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "java": """echo 'openjdk version "21.0.2" 2024-01-16' >&2""",
        "kubectl": """echo '{"clientVersion": {"gitVersion": "v1.30.1"}}'""",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert next(programs.check_java()).found.startswith("21.0.2, ")
    assert [one.found for one in programs.check_kubectl()] == ["v1.30.1"]

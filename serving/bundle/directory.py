"""The model directory: `<models>/<name>/<version>/`, as TensorFlow Serving wants it. No TensorFlow here.

A version is any child directory whose name is a number (TensorFlow Serving ignores the
rest), and a server takes a half-copied one as soon as it appears; so a version is written
under a temporary name beside it, checked, and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from serving import contract
from serving.errors import BundleError, OutputError

SCHEMA = 1

WITHDRAWN = ".withdrawn"
"""Below a base path: versions that were taken out of service. Their numbers are not used again."""


@dataclass(frozen=True)
class BundleMetadata:
    """What hubhead.json says of a bundle.

    Attributes:
        labels: in the order of the head's outputs; empty for a headless bundle.
        backbone: handle (str), fingerprint (hex str, over weights, preprocessing and its
            version), image_size (int, pixels), dimension (int).
        preprocessing: the settings of the graph, limits included.
        calibration: temperature (float) and threshold (float; the model abstains below it).
        head: its kind ("linear", "hidden", "cosine") and the settings chosen; empty in bundles of
            earlier versions, which are all linear.
        top_k: length of `classes` and `scores`.
        metrics: figures on the held-out test photos, each with its N and interval.
        data: photos and labels that went in.
        provenance: when, by which command and package versions.
        schema: version of this file's layout.
    """

    labels: list[str]
    backbone: dict[str, Any]
    preprocessing: dict[str, Any]
    calibration: dict[str, float] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    top_k: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def fingerprint(self) -> str:
        """Key of the embedding store: equal fingerprints give equal embeddings."""
        return str(self.backbone["fingerprint"])

    @property
    def dimension(self) -> int:
        return int(self.backbone["dimension"])

    @staticmethod
    def parse(content: bytes, where: str | Path) -> BundleMetadata:
        """The metadata in hubhead.json's content; `where` it stands is told.

        Raises:
            BundleError: it is torn, or of a newer layout.
        """
        try:
            found = json.loads(content)
        except ValueError as error:
            raise BundleError(
                f"{where} cannot be read: {error}.", remedy="Export the bundle again."
            ) from error
        known = {f.name for f in fields(BundleMetadata)}
        if not isinstance(found, dict) or found.get("schema") != SCHEMA or not known >= found.keys():
            raise BundleError(
                f"{where} is not of layout {SCHEMA}, the one this hubhead reads.",
                remedy="Export the bundle again with this hubhead, or use the hubhead that wrote it.",
            )
        return BundleMetadata(**found)

    def write(self, directory: Path) -> None:
        """Write hubhead.json and labels.txt into a SavedModel directory."""
        for name, text in (
            (contract.METADATA_FILE, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"),
            (contract.LABELS_FILE, "".join(f"{label}\n" for label in self.labels)),
        ):
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Bundle:
    """A checked model directory.

    Attributes:
        path: the version's directory.
        name: the model's name (its parent directory).
        version: the number in its path; 0 where the directory is not numbered.
        metadata: what hubhead.json says.
    """

    path: Path
    name: str
    version: int
    metadata: BundleMetadata


def versions(base: Path) -> list[int]:
    """The version numbers below a model's base path, ascending."""
    if not base.is_dir():
        return []
    return sorted({int(child.name) for child in base.iterdir() if child.name.isdecimal() and child.is_dir()})


def version_directory(base: Path, version: int) -> Path:
    """The directory of a version, however many zeros its name begins with; the first by name of several.

    Raises:
        BundleError: there is none.
    """
    found = version_directories(base, version)
    if not found:
        raise BundleError(
            f"{base} holds no version {version}.",
            remedy=f"Versions there: {', '.join(map(str, versions(base))) or 'none'}.",
        )
    return found[0]


def version_directories(base: Path, version: int) -> list[Path]:
    """All directories whose names are one version's number, such as 1 and 001."""
    return sorted(
        child
        for child in base.iterdir()
        if child.name.isdecimal() and int(child.name) == version and child.is_dir()
    )


def resolve(path: Path) -> Path:
    """The SavedModel directory that `path` means: itself, or its newest version.

    Raises:
        BundleError: there is no SavedModel there.
    """
    if (path / contract.SAVED_MODEL_FILE).is_file():
        return path
    for version in reversed(versions(path)):
        candidate = version_directory(path, version)
        if (candidate / contract.SAVED_MODEL_FILE).is_file():
            return candidate
    if not path.exists():
        raise BundleError(
            f"{path} does not exist.", remedy="Make a bundle with: hubhead train --image_dir DIR"
        )
    raise BundleError(
        f"{path} is no bundle: no {contract.SAVED_MODEL_FILE} in it, nor in a numbered directory below it.",
        remedy="Give the directory that hubhead train printed, such as models/food or models/food/1.",
    )


def read(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle, given its version directory or the base path above it.

    Raises:
        BundleError: no SavedModel there, or hubhead.json missing, torn or of a newer layout.
    """
    directory = resolve(Path(path))
    metadata_path = directory / contract.METADATA_FILE
    try:
        content = metadata_path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(
            f"{directory} is a SavedModel without {contract.METADATA_FILE}, so not a hubhead bundle.",
            remedy="Make one with hubhead train or hubhead export.",
        ) from error
    except OSError as error:
        raise BundleError(
            f"{metadata_path} cannot be read: {error}.", remedy="Export the bundle again."
        ) from error
    numbered = directory.name.isdecimal()
    return Bundle(
        path=directory,
        name=directory.resolve().parent.name if numbered else directory.name,
        version=int(directory.name) if numbered else 0,
        metadata=BundleMetadata.parse(content, metadata_path),
    )


@contextmanager
def staging(base: Path) -> Iterator[Path]:
    """A temporary directory beside the versions, which no server takes for one; gone at the end.

    Raises:
        OutputError: `base` cannot be written.
    """
    missing = [directory for directory in (base, *base.parents) if not directory.exists()]
    try:
        base.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=".staging-", dir=base))
    except OSError as error:
        raise OutputError(
            f"Cannot write to {base}: {error.strerror}.", remedy="Choose a directory you may write to."
        ) from error
    directory.chmod(0o755)  # mkdtemp's 0700 would keep a server of another user out
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with suppress(OSError):  # something was published
            for made in missing:
                made.rmdir()


def publish(staged: Path, base: Path, *, at_least: int = 1) -> Path:
    """Rename a finished directory to the next free version number of `base`.

    A rename onto a directory with content fails on every system, so two publishers at
    once get two numbers.

    Args:
        staged: the directory, on the same filesystem.
        base: `<models>/<name>`.
        at_least: the number to take where it is above all that are or were there.

    Raises:
        OutputError: the rename failed for another reason than a taken number.
    """
    while True:
        newest = max([*versions(base), *versions(base / WITHDRAWN)], default=0)
        target = base / str(max(newest + 1, at_least))
        try:
            staged.rename(target)
        except OSError as error:
            if target.is_dir():
                continue
            raise OutputError(f"Cannot publish {target}: {error.strerror}.") from error
        return target

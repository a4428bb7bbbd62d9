"""The bundle: a versioned SavedModel directory, and its metadata.

A model directory is `<models>/<name>/<version>/`, as TensorFlow Serving expects it.

Every child directory whose name is a number is a version; TensorFlow Serving ignores the
others. A server loads a version as soon as it appears, even a half-copied one, so a version
is written under a temporary name beside the others, checked, and renamed. This module does
not import TensorFlow.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Required, TypedDict

from serving import contract
from serving.errors import BundleError, InputError, OutputError, StorageError
from serving.storage import files
from serving.storage.address import Address
from serving.storage.names import normalize
from serving.storage.records import RecordFormat
from serving.storage.text_lines import decode_text

SCHEMA = 1

_MAX_VERSION = 2**63 - 1
"""Largest version number that TensorFlow Serving reads; it ignores directories with larger ones."""

WITHDRAWN = ".withdrawn"
"""Directory below a base path for versions taken out of service. Their numbers are not reused."""


class BackboneRecord(TypedDict, total=False):
    """Backbone of a bundle.

    Attributes:
        handle: alias, directory or Hub handle.
        fingerprint: hex digest of weights, preprocessing and its version; key of the embedding store.
        image_size: height and width of the input in pixels.
        value_range: lowest and highest value of a pixel.
        dimension: length of an embedding.
        preprocessing: `caffe` or `torch` if the channels are normalised as those modes of keras.applications
            do, after the value range; absent otherwise.
        of_photos: fingerprint without augmentation, in the graph of one augmented view.
    """

    handle: str
    fingerprint: Required[str]
    image_size: list[int]
    value_range: list[float]
    dimension: Required[int]
    preprocessing: str
    of_photos: str


@dataclass(frozen=True)
class BundleMetadata:
    """Metadata of a bundle, stored in its hubhead.json.

    Attributes:
        labels: class labels in the order of the head's outputs; empty for a headless bundle.
        backbone: identity of the backbone.
        preprocessing: settings of the preprocessing graph, including its limits.
        calibration: temperature of the probabilities and threshold below which the model abstains.
        head: kind of the head and the selected settings; empty in bundles of earlier versions, which are
            all linear.
        top_k: length of `classes` and `scores`.
        metrics: metrics on the held-out test photos, each with its sample size and interval.
        data: counts of the training photos and their labels, and the settings of the split.
        provenance: time, package versions, CPU and engines of the training run.
        schema: version of the layout of hubhead.json.
    """

    labels: list[str]
    backbone: BackboneRecord
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
        """Key of the embeddings in the store: equal fingerprints give equal embeddings."""
        return self.backbone["fingerprint"]

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.backbone["dimension"]

    @property
    def threshold(self) -> float:
        """Best probability below which the model abstains; 0 if it always answers."""
        return self.calibration.get("threshold", 0.0)

    @property
    def label_text(self) -> str:
        """Content of labels.txt."""
        return "".join(f"{label}\n" for label in self.labels)

    def write(self, directory: Path) -> None:
        """Write hubhead.json and labels.txt to a SavedModel directory."""
        for name, text in (
            (contract.METADATA_FILE, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"),
            (contract.LABELS_FILE, self.label_text),
        ):
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")


def _details() -> type[Any]:
    from serving.bundle.details import Details

    return Details


METADATA_FORMAT = RecordFormat(BundleMetadata, SCHEMA, BundleError, details=_details)
"""Format of hubhead.json."""


@dataclass(frozen=True)
class Bundle:
    """A checked model directory.

    Attributes:
        path: directory of the version.
        name: name of the model, which is that of the parent directory.
        version: number of the version; 0 if the name of the directory is not a number.
        metadata: metadata of the bundle.
    """

    path: Path
    name: str
    version: int
    metadata: BundleMetadata

    def require_head(self, missing: str) -> None:
        """Check that the bundle has a head.

        Args:
            missing: what the caller needs of it, for the message, such as "predictions to evaluate".

        Raises:
            BundleError: it is a headless bundle.
        """
        if not self.metadata.labels:
            raise BundleError(
                f"{self.path} is a headless bundle: it has no {missing}.",
                remedy="Give a bundle that hubhead train made.",
            )


def versions(base: Path) -> list[int]:
    """Return the version numbers below a model's base path, ascending."""
    return sorted({int(child.name) for child in _list_numbered(base)})


def version_directory(base: Path, version: int) -> Path:
    """Return the directory of a version; leading zeros in its name do not matter.

    If there are several, such as 1 and 001, it is the first by name.

    Raises:
        BundleError: there is no such version.
    """
    found = version_directories(base, version)
    if not found:
        raise BundleError(
            f"{base} has no version {version}.",
            remedy=f"Available versions: {', '.join(map(str, versions(base))) or 'none'}.",
        )
    return found[0]


def version_directories(base: Path, version: int) -> list[Path]:
    """Return all directories of a version, such as 1 and 001, sorted by name."""
    return sorted(child for child in _list_numbered(base) if int(child.name) == version)


def _list_numbered(base: Path) -> list[Path]:
    children = base.iterdir() if base.is_dir() else ()
    return [
        child
        for child in children
        if child.name.isdecimal()
        and child.name.isascii()
        and int(child.name) <= _MAX_VERSION
        and child.is_dir()
    ]


def resolve(path: Path) -> Path:
    """Return the SavedModel directory for `path`: itself, or the newest version below it.

    Raises:
        BundleError: neither is a SavedModel, or they cannot be read.
    """
    try:
        if (path / contract.SAVED_MODEL_FILE).is_file():
            return path
        for version in reversed(versions(path)):
            candidate = version_directory(path, version)
            if (candidate / contract.SAVED_MODEL_FILE).is_file():
                return candidate
        exists = path.exists()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.") from error
    if not exists:
        raise BundleError(
            f"{path} does not exist.", remedy="Create a bundle with: hubhead train --image_dir DIR"
        )
    raise BundleError(
        f"{path} is not a bundle: no {contract.SAVED_MODEL_FILE} in it, nor in a numbered directory in it.",
        remedy="Give the directory that hubhead train printed, such as models/food or models/food/1.",
    )


def read(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle, given its version directory or the base path above it.

    Raises:
        BundleError: there is no SavedModel, or as `read_metadata`.
    """
    directory = resolve(Path(path))
    numbered = directory.name.isdecimal()
    return Bundle(
        path=directory,
        name=directory.resolve().parent.name if numbered else directory.name,
        version=int(directory.name) if numbered else 0,
        metadata=read_metadata(directory),
    )


def check_files(directory: Path) -> None:
    """Check that a bundle consists of its own files alone.

    A symbolic link could make a copy of the bundle contain any file of this machine, and reading a named
    pipe would block.

    Raises:
        BundleError: there is a symbolic link to a directory or to a file outside the bundle, or something
            that is neither file nor directory.
    """
    root = Path(os.path.realpath(directory))
    for path in root.rglob("*"):
        if path.is_symlink() and (path.is_dir() or not Path(os.path.realpath(path)).is_relative_to(root)):
            what = "a symbolic link that leads out of the bundle"
        elif not path.is_file() and not path.is_dir():
            what = "neither a file nor a directory"
        else:
            continue
        raise BundleError(
            f"{directory} is not a valid bundle: {path.relative_to(root)} is {what}.",
            remedy="Replace it by a regular file, or export the bundle again.",
        )


def read_metadata(directory: Address) -> BundleMetadata:
    """Read the metadata of a bundle, given the path or address of its version.

    Raises:
        BundleError: its hubhead.json is missing, damaged or of a newer layout, its labels.txt has other
            labels, or a local bundle has files that `check_files` rejects.
        StorageError: remote storage does not answer.
    """
    remedy = "Export the bundle again."
    labels = files.join(str(directory), contract.LABELS_FILE)
    if isinstance(directory, Path):
        check_files(directory)
    try:
        metadata = METADATA_FORMAT.read(files.join(str(directory), contract.METADATA_FILE), remedy=remedy)
        with suppress(FileNotFoundError):
            if not _has_labels(files.read(labels), metadata.labels):
                raise BundleError(f"{labels} has other labels than {contract.METADATA_FILE}.", remedy=remedy)
        return metadata
    except FileNotFoundError as error:
        raise BundleError(
            f"{directory} is a SavedModel without {contract.METADATA_FILE}, so it is not a hubhead bundle.",
            remedy="Create a bundle with hubhead train or hubhead export.",
        ) from error
    except StorageError:
        raise
    except OSError as error:
        raise BundleError(f"{labels} cannot be read: {error.strerror}.", remedy=remedy) from error


def _has_labels(content: bytes, labels: Sequence[str]) -> bool:
    """Return whether a labels.txt has these labels; an editor may have changed its encoding or line ends."""
    try:
        text = normalize(decode_text(content, "")).replace("\r\n", "\n")
    except InputError:
        return False
    return text == "".join(f"{normalize(label)}\n" for label in labels)


@contextmanager
def staging(base: Path) -> Iterator[Path]:
    """Provide a temporary directory beside the versions, and delete it at the end.

    Its name is not a number, so servers ignore it.

    Raises:
        OutputError: `base` cannot be written.
    """
    missing = [directory for directory in (base, *base.parents) if not directory.exists()]
    with files.output_errors(str(base), "write to"):
        base.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=".staging-", dir=base))
    directory.chmod(0o755)  # mkdtemp makes it 0700, which a server of another user could not read
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with suppress(OSError):  # not empty: something was published
            for created in missing:
                created.rmdir()


def next_version(base: Path, at_least: int) -> int:
    """Return the next free version number, which is at least the given one."""
    newest = max([*versions(base), *versions(base / WITHDRAWN)], default=0)
    return max(newest + 1, at_least)


def publish(staged: Path, base: Path, *, at_least: int = 1) -> Path:
    """Rename a finished directory to the next free version number of `base`.

    A rename onto a non-empty directory fails on every system, so two concurrent publishers
    get different numbers.

    Args:
        staged: finished directory, on the same file system as `base`.
        base: `<models>/<name>`.
        at_least: smallest version number to use.

    Returns:
        Directory of the new version.

    Raises:
        OutputError: the rename failed, and not because the number is in use.
    """
    while True:
        target = base / str(next_version(base, at_least))
        try:
            staged.rename(target)
        except OSError as error:
            if target.is_dir():
                continue  # another publisher took the number
            raise OutputError(f"Cannot publish {target}: {error.strerror}.") from error
        return target

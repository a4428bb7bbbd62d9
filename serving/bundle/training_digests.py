"""Digests of the photos a bundle was trained on, so that no later version is compared with it on them.

The first eight bytes of each photo's sha256 are stored. They distinguish a million photos from a million
others (the probability of one collision is 5e-8) and reveal neither a photo nor its origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving import contract
from serving.errors import BundleError

T = TypeVar("T")

DigestPrefixes = NDArray[np.uint64]
"""The first eight bytes of sha256 digests: uint64 [N]."""


def truncate_digests(digests: Iterable[str]) -> DigestPrefixes:
    """Return the prefixes of sha256 digests given in hexadecimal."""
    return np.array([int(digest[:16], 16) for digest in digests], np.uint64)


def write(directory: Path, digests: DigestPrefixes) -> None:
    """Write the digests of the training and validation photos to a SavedModel directory."""
    np.save(directory / contract.TRAINED_ON_FILE, np.unique(digests))


def read(directory: Path) -> DigestPrefixes | None:
    """Read the digests from a SavedModel directory; None if it has none.

    Raises:
        BundleError: the file is damaged.
    """
    return _load(directory / contract.TRAINED_ON_FILE, lambda digests: np.asarray(digests, np.uint64))


@dataclass(frozen=True)
class TestPhotos:
    """Photos that a version was tested on, by which a later gate compares it with the live version.

    Attributes:
        sha256: digests of the photos, in hexadecimal.
        labels: true label of each.
    """

    __test__ = False  # no test class, whatever pytest thinks of its name

    sha256: tuple[str, ...]
    labels: tuple[str, ...]


def write_test_photos(directory: Path, photos: TestPhotos) -> None:
    """Write the test photos to a SavedModel directory."""
    names = sorted(set(photos.labels))
    np.savez_compressed(
        directory / contract.TEST_PHOTOS_FILE,
        sha256=np.frombuffer(bytes.fromhex("".join(photos.sha256)), np.uint8).reshape(-1, 32),
        label=np.array([names.index(label) for label in photos.labels], np.int32),
        names=np.array([name.encode() for name in names], np.bytes_),
    )


def read_test_photos(directory: Path) -> TestPhotos | None:
    """Read the test photos from a SavedModel directory; None if it has none, as bundles before 0.2.

    Raises:
        BundleError: the file is damaged.
    """

    def parse(arrays: Mapping[str, NDArray[Any]]) -> TestPhotos:
        names = [name.decode() for name in arrays["names"].tolist()]
        digests = tuple(row.tobytes().hex() for row in arrays["sha256"])
        return TestPhotos(digests, tuple(names[index] for index in arrays["label"].tolist()))

    return _load(directory / contract.TEST_PHOTOS_FILE, parse)


def _load(path: Path, parse: Callable[[Any], T]) -> T | None:
    """Read a NumPy file and parse its content; None if there is no such file.

    Raises:
        BundleError: the file is damaged.
    """
    try:
        with path.open("rb") as file:
            return parse(np.load(file))
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy and zipfile raise many classes for damaged files
        raise BundleError(f"{path} cannot be read: {error}.", remedy="Export the bundle again.") from error

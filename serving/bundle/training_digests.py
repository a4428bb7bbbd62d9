"""Digests of the photos a bundle was trained on, so that no later version is compared with it on them.

The first eight bytes of each photo's sha256 are stored. They distinguish a million photos from a million
others (the probability of one collision is 5e-8) and reveal neither a photo nor its origin.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving import contract
from serving.errors import BundleError

DigestPrefixes = NDArray[np.uint64]
"""The first eight bytes of sha256 digests: uint64 [N]."""


def truncate_digests(digests: Iterable[str]) -> DigestPrefixes:
    """Return the prefixes of sha256 digests given in hexadecimal."""
    return np.array([int(digest[:16], 16) for digest in digests], np.uint64)


def write(directory: Path, digests: DigestPrefixes) -> None:
    """Write the digests of the training and validation photos to a SavedModel directory."""
    path = directory / contract.TRAINED_ON_FILE
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.unique(digests))


def read(directory: Path) -> DigestPrefixes | None:
    """Read the digests from a SavedModel directory; None if it has none.

    Raises:
        BundleError: the file is damaged.
    """
    path = directory / contract.TRAINED_ON_FILE
    try:
        with path.open("rb") as file:
            digests = np.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path} cannot be read: {error}.", remedy="Export the bundle again.") from error
    return np.asarray(digests, np.uint64)

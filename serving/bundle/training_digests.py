"""Which photos a bundle was trained on, so that a later version is never judged against it by these.

Kept are eight bytes of each photo's sha256: enough to tell a million photos from a million others
(the chance of one mistake is 5e-8), and nothing that shows a photo or where it came from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving import contract
from serving.errors import BundleError

DigestPrefixes = NDArray[np.uint64]


def truncate_digests(digests: Iterable[str]) -> DigestPrefixes:
    """uint64 [N] of the sha256 of N photos, hex."""
    return np.array([int(digest[:16], 16) for digest in digests], np.uint64)


def write(directory: Path, found: DigestPrefixes) -> None:
    """Put what `truncate_digests` made of the training and validation photos into a SavedModel directory."""
    path = directory / contract.TRAINED_ON_FILE
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.unique(found))


def read(directory: Path) -> DigestPrefixes | None:
    """What `write` wrote; None where it is not known.

    Raises:
        BundleError: the file is torn.
    """
    path = directory / contract.TRAINED_ON_FILE
    try:
        with path.open("rb") as opened:
            found = np.load(opened)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path} cannot be read: {error}.", remedy="Export the bundle again.") from error
    return np.asarray(found, np.uint64)

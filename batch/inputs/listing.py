"""Where photos come from: a file, a directory or a glob, local or on any storage Beam knows."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from serving.errors import InputError
from serving.storage import files

_LOCAL_ATTEMPTS = 3
_LOCAL_PAUSE = 0.05  # seconds


@dataclass(frozen=True, slots=True, order=True)
class Photo:
    """One photo as the storage lists it, unread.

    Attributes:
        uri: absolute path, or the address on another storage.
        size: bytes.
        modified: nanoseconds since 1970; with uri and size it tells an unchanged file.
    """

    uri: str
    size: int
    modified: int


def find_photos(pattern: str, *, allow_empty: bool = False) -> list[Photo]:
    """The photos that `pattern` means, sorted by uri, each once.

    A path that exists is taken as it is, whatever characters its name has; anything else is
    a glob, in which `**` goes through directories. Of a directory every file below it is
    taken, hidden ones left out: what is no photo gets its status from the model.

    Raises:
        InputError: nothing is there (unless `allow_empty`), or a directory cannot be listed.
    """
    photos = sorted({photo.uri: photo for photo in iter_photos(pattern)}.values())
    if not photos and not allow_empty:
        raise no_photos_error(pattern)
    return photos


def no_photos_error(pattern: str) -> InputError:
    """The error that says that there is nothing to do."""
    return InputError(
        f"No photos in {pattern}.",
        remedy="Give a file, a directory, a quoted glob such as 'photos/**/*.jpg', or a manifest with lines.",
    )


def iter_photos(pattern: str) -> Iterator[Photo]:
    """The photos of `find` as the storage lists them: in any order, and maybe one more than once.

    Raises:
        InputError: nothing has that name, or a directory cannot be listed.
    """
    return _find_remote(pattern) if files.is_remote(pattern) else _find_local(pattern)


def stat_photo(uri: str) -> Photo:
    """A local photo that somebody named; one that is not there becomes a row that says so."""
    try:
        about = os.stat(files.local_path(uri))  # noqa: PTH116 # a Path takes longer to make than this call
    except (OSError, ValueError):
        return Photo(uri, 0, 0)
    return Photo(uri, about.st_size, about.st_mtime_ns) if stat.S_ISREG(about.st_mode) else Photo(uri, 0, 0)


def list_directory(directory: str, wanted: Container[str]) -> dict[str, Photo]:
    """Of a remote directory the photos that are wanted, by uri: one call for all of them.

    Raises:
        InputError: the storage does not answer.
    """
    # Beam's patterns have no way to quote, so what is special in the name stands for any character.
    pattern = files.join(re.sub(r"[*?\[]", "?", directory), "*")
    return {
        entry.path: photo_from_metadata(entry) for entry in files.match_files(pattern) if entry.path in wanted
    }


def read_photo(photo: Photo) -> bytes:
    """The bytes of a photo; a storage that refuses them is asked again before it counts.

    A file may be missing for a moment on a network file system, and an object store may be
    busy; a local disk answers at once, so its pauses are short.

    Raises:
        OSError: the storage does not give them.
    """
    if files.is_remote(photo.uri):
        return files.retry_with_backoff(
            lambda: files.read(photo.uri), initial_pause=files.INITIAL_PAUSE, attempts=files.ATTEMPTS
        )
    return files.retry_with_backoff(
        lambda: files.read(photo.uri), initial_pause=_LOCAL_PAUSE, attempts=_LOCAL_ATTEMPTS
    )


def _find_local(pattern: str) -> Iterator[Photo]:
    # Not through Beam's FileSystems: importing Beam takes seconds, and its listing is slower as well.
    path = str(Path(files.local_path(pattern)).expanduser())
    if Path(path).is_dir():
        return _photos(_below(path))
    if os.path.lexists(path):
        return _photos([path])
    if not glob.has_magic(path):
        raise InputError(f"{path} does not exist.", remedy="Check the spelling; a glob needs quotes.")
    return _photos(glob.iglob(path, recursive=True))  # noqa: PTH207 # Path.glob takes hidden files too


def _below(top: str) -> Iterator[str]:
    """Every file below a directory but hidden ones; links are followed, each directory entered once."""
    entered = set()
    for directory, children, names in os.walk(top, followlinks=True, onerror=_cannot_list):
        about = Path(directory).stat()
        if (about.st_dev, about.st_ino) in entered:
            children.clear()
            continue
        entered.add((about.st_dev, about.st_ino))
        children[:] = sorted(child for child in children if not child.startswith("."))
        yield from (f"{directory}/{name}" for name in names if not name.startswith("."))


def _cannot_list(error: OSError) -> None:
    raise InputError(
        f"Cannot list {error.filename}: {error.strerror}.",
        remedy="Make it readable, or leave it out with a glob.",
    ) from error


def _photos(paths: Iterable[str]) -> Iterator[Photo]:
    for path in paths:
        try:
            about = Path(path).stat()
        except OSError:
            # A dangling link, or gone since it was listed: it becomes a row that says so.
            yield Photo(files.local_uri(path), 0, 0)
            continue
        if stat.S_ISREG(about.st_mode):
            yield Photo(files.local_uri(path), about.st_size, about.st_mtime_ns)


def _find_remote(pattern: str) -> Iterator[Photo]:
    entries = files.match_files(pattern)
    first = next(entries, None)
    entries = files.match_files(files.join(pattern, "**")) if first is None else chain([first], entries)
    for entry in entries:
        # Consoles create empty objects that end in a slash to show a directory.
        if not entry.path.endswith("/") and not _hidden(entry.path, pattern):
            yield photo_from_metadata(entry)


def photo_from_metadata(entry: Any) -> Photo:
    """A photo as Beam's FileMetadata describes it."""
    return Photo(entry.path, entry.size_in_bytes, round((entry.last_updated_in_seconds or 0) * 1e9))


def _hidden(uri: str, pattern: str) -> bool:
    """Whether a name below the part that `pattern` spells out begins with a dot."""
    spelled = glob.escape(pattern).partition("[")[0]
    below = uri[spelled.rfind("/") + 1 :] if uri.startswith(spelled) else uri
    return any(name.startswith(".") for name in below.split("/"))

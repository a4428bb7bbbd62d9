"""Photos from a file, a directory or a glob, on the local disk or on remote storage."""

from __future__ import annotations

import glob
import logging
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from serving.errors import InputError
from serving.storage import files, names, remote
from serving.storage.regular import is_made_by_kernel, read_regular

_log = logging.getLogger(__name__)

_LOCAL_ATTEMPTS = 3
_LOCAL_PAUSE = 0.05
"""Seconds before the first retry of a local read."""

_MOST = (1 << 63) - 1
"""Largest number that the columns of the plan and of the store hold: nanoseconds until the year 2262."""


@dataclass(frozen=True, slots=True, order=True)
class Photo:
    """A photo as its storage lists it; its content has not been read.

    The three attributes together identify an unchanged file.

    Attributes:
        uri: absolute path, or address on a remote storage.
        size: size in bytes; 0 if there is no such file.
        modified: modification time in nanoseconds since 1970; 0 if there is no such file.
    """

    uri: str
    size: int
    modified: int

    @classmethod
    def listed(cls, uri: str, size: int, modified: int) -> Photo:
        """Return a photo with the numbers that a storage states, which may be beyond 64 bits."""
        return cls(uri, min(size, _MOST), max(-_MOST, min(modified, _MOST)))


def find_photos(pattern: str, *, allow_empty: bool = False, left_out: set[str] | None = None) -> list[Photo]:
    """Return the photos that a path or glob matches, sorted by uri, without duplicates.

    A path that exists is taken literally, even if its name contains glob characters. Everything else
    is a glob, in which `**` matches directories at any depth. A directory stands for all files below
    it except hidden ones and those in directories of the system (serving.storage.names), which no
    wildcard matches either. File types are not checked here: a file that is not a photo gets its status
    from the model.

    Args:
        pattern: path, address or glob.
        allow_empty: return an empty list instead of raising if nothing matches.
        left_out: receives the directories of the system; None to log them once.

    Raises:
        InputError: nothing matches, or a directory cannot be listed.
    """
    photos = sorted({photo.uri: photo for photo in iter_photos(pattern, left_out)}.values())
    if not photos and not allow_empty:
        raise no_photos_error(pattern)
    return photos


def no_photos_error(pattern: str) -> InputError:
    """Return the error for an input without photos."""
    return InputError(
        f"No photos in {pattern}.",
        remedy="Give a file, a directory, a quoted glob such as 'photos/**/*.jpg', or a manifest with lines.",
    )


def iter_photos(pattern: str, left_out: set[str] | None = None) -> Iterator[Photo]:
    """Yield the photos of `find_photos` as the storage lists them: unsorted, possibly with duplicates.

    Raises:
        InputError: the path does not exist, or a directory cannot be listed.
    """
    found: set[str] = set() if left_out is None else left_out
    yield from _iter_remote(pattern, found) if files.is_remote(pattern) else _iter_local(pattern, found)
    if left_out is None and found:
        _log.warning("%s: %s", pattern, names.describe_system_directories(found))


def exclude(photos: Iterable[Photo], own: Iterable[str], top: str) -> Iterator[Photo]:
    """Yield the photos that are not among the files that a run writes itself.

    Args:
        photos: photos of a listing.
        own: absolute paths or addresses of files and directories that the run writes; a directory that
            contains `top` does not count.
        top: absolute path or address that is listed.
    """
    written = {spelling for uri in own for spelling in _list_spellings(uri, top)}
    written = {uri for uri in written if not f"{top}/".startswith(f"{uri}/")}
    inside = tuple(f"{directory}/" for directory in written)
    return (photo for photo in photos if not photo.uri.startswith(inside) and photo.uri not in written)


def _list_spellings(uri: str, top: str) -> Iterator[str]:
    """Yield the addresses under which a listing of `top` may list `uri`: links may lead there."""
    yield uri
    if not files.is_remote(uri) and not files.is_remote(top):
        real, listed = Path(uri).resolve(), Path(top)
        yield str(real)
        if real.is_relative_to(listed.resolve()):
            yield str(listed / real.relative_to(listed.resolve()))


def stat_photo(uri: str) -> Photo:
    """Return a local photo with its size and time; both are 0 if there is no such regular file.

    A missing file is not an error here: it becomes a row of the scores with a status. A file whose name is
    in another Unicode form is that photo.
    """
    uri = names.find_spelling(uri)
    return _stat_file(uri) or Photo(uri, 0, 0)


def list_directory(directory: str, wanted: Collection[str]) -> dict[str, Photo]:
    """Return the wanted photos of a remote directory by uri, with a single listing if it has listings.

    A file whose name or directory is in another Unicode form is that photo, which takes more listings.

    Args:
        directory: address of the directory.
        wanted: uris to return; all other files are ignored.

    Raises:
        InputError: the storage cannot be listed.
    """
    found = {info.uri: info for info in remote.find_files(directory, wanted)}
    if missing := {uri for uri in wanted if uri not in found and not uri.isascii()}:
        found.update(remote.find_respelled(directory, missing))
    return {uri: Photo.listed(info.uri, info.size, info.modified) for uri, info in found.items()}


def read_photo(photo: Photo) -> bytes:
    """Return the content of a photo. Failed reads are retried with exponential backoff.

    Network file systems may miss a file for a moment, and object stores may be busy. Local reads
    have fewer attempts (3 instead of 5) and shorter pauses.

    Raises:
        OSError: the last attempt failed, or a manifest names a pipe, a device or a file of the kernel.
    """
    pause, attempts = _LOCAL_PAUSE, _LOCAL_ATTEMPTS
    if files.is_remote(photo.uri):
        pause, attempts = files.INITIAL_PAUSE, files.ATTEMPTS
    return files.retry_with_backoff(lambda: read_regular(photo.uri), initial_pause=pause, attempts=attempts)


def _iter_local(pattern: str, left_out: set[str]) -> Iterator[Photo]:
    path = os.path.expanduser(files.local_path(pattern))  # noqa: PTH111 - pathlib fails for unknown users
    paths: Iterable[str] = [path]
    try:
        is_directory = Path(path).is_dir()
    except OSError as error:  # in a directory that cannot be entered, or a name that is too long
        raise InputError(
            f"Cannot list {path}: {error.strerror}.", remedy="Check the path and its permissions."
        ) from error
    if is_directory:
        paths = _walk(path, left_out)
    elif not os.path.lexists(path):
        if not glob.has_magic(path):
            raise InputError(f"{path} does not exist.", remedy="Check the spelling; a glob needs quotes.")
        found = glob.iglob(path, recursive=True)  # noqa: PTH207 # Path.glob matches hidden files too
        paths = (name for name in found if not _is_systems(name, path, left_out))
    return filter(None, map(_stat_file, map(files.local_uri, paths)))


def _walk(top: str, left_out: set[str]) -> Iterator[str]:
    """Yield every file below a directory except hidden ones and those of the system, following links.

    A link may point to a directory above itself. So each directory is entered once, as identified
    by its device and inode. Links to directories of the kernel, such as /proc, are not followed, and a
    directory that disappears meanwhile is left out.
    """
    entered = set()
    for directory, children, found in os.walk(top, followlinks=True, onerror=partial(_check_left, top)):
        try:
            info = Path(directory).stat()
        except FileNotFoundError:
            children.clear()
            continue
        if (info.st_dev, info.st_ino) in entered or is_made_by_kernel(info):
            children.clear()
            continue
        entered.add((info.st_dev, info.st_ino))
        left_out.update(f"{directory}/{child}" for child in children if names.is_system_directory(child))
        children[:] = sorted(
            child for child in children if not (child.startswith(".") or names.is_system_directory(child))
        )
        yield from (f"{directory}/{name}" for name in found if not name.startswith("."))


def _check_left(top: str, error: OSError) -> None:
    """Check that a directory below `top` that cannot be listed is not there any more.

    Raises:
        InputError: it cannot be listed for another reason.
    """
    if isinstance(error, FileNotFoundError) and error.filename != top:
        return
    raise InputError(
        f"Cannot list {error.filename}: {error.strerror}.",
        remedy="Make it readable, or exclude it with a glob.",
    ) from error


def _stat_file(uri: str) -> Photo | None:
    """Return a local file with its size and time; None if it is something else than a regular file."""
    try:
        info = os.stat(files.local_path(uri))  # noqa: PTH116 # creating a Path takes longer than this call
    except (OSError, ValueError):
        # A dangling link, or a file deleted since the listing: it becomes a row with a status.
        return Photo(uri, 0, 0)
    return Photo.listed(uri, info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else None


def _iter_remote(pattern: str, left_out: set[str]) -> Iterator[Photo]:
    # Object stores have no directories: a pattern that matches nothing is tried as a prefix.
    found = remote.match_files(pattern)
    first = next(found, None)
    for info in remote.walk_files(pattern.rstrip("/")) if first is None else chain([first], found):
        if not _is_systems(info.uri, pattern, left_out) and not _is_hidden(info.uri, pattern):
            yield Photo.listed(info.uri, info.size, info.modified)


def _is_systems(path: str, pattern: str, left_out: set[str]) -> bool:
    """Return whether the part of a path that the glob matched is in a directory of the system; note it."""
    if directory := names.find_system_directory(path, pattern):
        left_out.add(directory)
    return bool(directory)


def _is_hidden(uri: str, pattern: str) -> bool:
    """Return whether a name in the part of `uri` that the glob matched starts with a dot."""
    return any(name.startswith(".") for name in uri[names.matched_start(uri, pattern) :].split("/"))

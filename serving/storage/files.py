"""File operations of the batch job, on the local disk and on every storage that Beam supports.

Local paths do not import Beam, which takes seconds; `gs://`, `s3://` and the like go through
Beam's FileSystems and its extras (`pip install apache-beam[gcp]`).
"""

from __future__ import annotations

import os
import random
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

from serving.errors import InputError, OutputError

CACHE_VARIABLE = "HUBHEAD_CACHE_DIR"

TEMPORARY_PREFIX = ".tmp-"
"""Prefix of temporary files. Parquet readers ignore names with a leading dot."""

ATTEMPTS = 5
"""Attempts at an operation on remote storage before its error is raised."""

INITIAL_PAUSE = 0.5
"""Upper limit of the first pause between attempts, in seconds."""

_MAX_PAUSE = 8.0  # seconds
_SPOOL_BYTES = 32 << 20  # content of a remote file that is kept in memory; more goes to the disk

_T = TypeVar("_T")

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def cache_directory() -> Path:
    """Return the directory for downloads: $HUBHEAD_CACHE_DIR, or hubhead in the XDG cache directory."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification says that relative paths are to be ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "hubhead"


def is_remote(uri: str) -> bool:
    """Return whether `uri` is on remote storage and not on the local disk."""
    return bool(_SCHEME.match(uri)) and not uri.startswith("file://")


def local_path(uri: str) -> str:
    """Return the path of a local URI, which is a plain path or `file://` with percent-encoded bytes."""
    return os.fsdecode(unquote_to_bytes(urlsplit(uri).path)) if uri.startswith("file://") else uri


def local_uri(path: str) -> str:
    """Return the absolute path; as a `file://` URI if it is not UTF-8, which Parquet strings require."""
    path = _absolute(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(path).as_uri()
    return path


def absolute(uri: str) -> str:
    """Return `uri` in a form that does not depend on the working directory."""
    return uri.rstrip("/") if is_remote(uri) else _absolute(local_path(uri))


def join(directory: str, *names: str) -> str:
    """Return the path or address of something below `directory`."""
    return "/".join((directory.rstrip("/"), *names))


@contextmanager
def open_file(uri: str) -> Iterator[BinaryIO]:
    """Open a seekable binary file for reading.

    Raises:
        OSError: the file cannot be read, for whatever reason.
    """
    if not is_remote(uri):
        with Path(local_path(uri)).open("rb") as file:
            yield file
        return
    with _remote_errors(uri):
        from apache_beam.io.filesystem import CompressionTypes

        # By default Beam would decompress a .gz file; return its bytes as they are.
        with _filesystems().open(uri, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            yield file


def read(uri: str) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: the file cannot be read, for whatever reason.
    """
    with open_file(uri) as file:
        return file.read()


def write(uri: str, content: bytes, *, attempts: int = ATTEMPTS) -> None:
    """Write a file atomically, replacing an existing one; `attempts` as in `create_file`.

    Raises:
        OutputError: the file cannot be written.
    """
    with create_file(uri, attempts=attempts) as file:
        file.write(content)


@contextmanager
def create_file(uri: str, *, attempts: int = ATTEMPTS) -> Iterator[IO[bytes]]:
    """Open a file for writing; it appears, complete, when the block ends without an error.

    Args:
        uri: path or address of the file.
        attempts: attempts at writing to remote storage.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with _create_remote(uri, attempts) if is_remote(uri) else _create_local(Path(uri)) as file:
            yield file
    except OSError as error:
        raise OutputError(
            f"Cannot write {uri}: {error.strerror or error}.",
            remedy="Choose a location that you can write to, with enough space; finished work is kept.",
        ) from error


def retry_with_backoff(attempt: Callable[[], _T], *, initial_pause: float, attempts: int) -> _T:
    """Call a function that may fail transiently, and retry it with exponential backoff.

    Each pause is random between zero and a limit that doubles every time ("full jitter"), so
    that many workers do not retry at the same moment (M. Brooker, Exponential Backoff And
    Jitter, AWS Architecture Blog, 2015).

    Args:
        attempt: function to call.
        initial_pause: limit of the first pause, in seconds.
        attempts: number of calls in all.

    Returns:
        Result of the first call that succeeds.

    Raises:
        OSError: the error of the last attempt.
    """
    for number in range(attempts - 1):
        try:
            return attempt()
        except OSError:
            time.sleep(random.uniform(0, min(initial_pause * 2**number, _MAX_PAUSE)))
    return attempt()


def list_names(directory: str) -> list[str]:
    """Return the names in a directory, sorted; none if there is no such directory."""
    if is_remote(directory):
        return sorted(entry.path.rsplit("/", 1)[-1] for entry in match_files(join(directory, "*")))
    try:
        return sorted(path.name for path in Path(directory).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def walk_files(directory: str) -> Iterator[tuple[str, int]]:
    """Yield the relative path and the size in bytes of every file below a directory."""
    if is_remote(directory):
        start = len(directory) + 1
        for entry in match_files(join(directory, "**")):
            yield entry.path[start:], entry.size_in_bytes
        return
    for top, _, found in os.walk(directory):
        for name in found:
            path = f"{top}/{name}"
            with suppress(FileNotFoundError):  # deleted since it was listed
                yield path[len(directory) + 1 :], Path(path).lstat().st_size


def match_files(pattern: str) -> Iterator[Any]:
    """Yield the remote files that match a pattern, in the order of the storage's listing.

    Each is a FileMetadata of Beam: path, size_in_bytes, last_updated_in_seconds.

    Raises:
        InputError: the storage does not answer, or needs an extra that is not installed.
    """
    try:
        with _remote_errors(pattern):
            yield from _iterate_matches(pattern)
    except OSError as error:
        raise InputError(
            f"Cannot list {pattern}: {error}.",
            remedy="Check the address and credentials; gs:// needs apache-beam[gcp], s3:// apache-beam[aws].",
        ) from error


def _iterate_matches(pattern: str) -> Iterator[Any]:
    """Iterate over what Beam's FileSystem.match returns, without collecting it in a list as Beam does."""
    storage = _filesystems().get_filesystem(pattern)
    prefix = re.split(r"[*?\[]", pattern)[0]
    if prefix == pattern or storage.has_dirs():
        return iter(storage.match([pattern])[0].metadata_list)
    return iter(storage.match_files(storage._list(prefix), pattern))


def remove(uri: str) -> None:
    """Delete a file, if it exists.

    Raises:
        OutputError: the file cannot be deleted.
    """
    try:
        if not is_remote(uri):
            Path(uri).unlink(missing_ok=True)
            return
        with _remote_errors(uri):
            if _filesystems().exists(uri):
                _filesystems().delete([uri])
    except OSError as error:
        raise OutputError(f"Cannot delete {uri}: {error.strerror or error}.") from error


def remove_directory(directory: str) -> None:
    """Delete a directory and the files in it, if it exists."""
    for name in list_names(directory):
        remove(join(directory, name))
    if not is_remote(directory) and Path(directory).is_dir():
        Path(directory).rmdir()


def check_writable(directory: str) -> None:
    """Create the directory and check that it can be written, by writing a file to it.

    On remote storage there is one attempt: its client retries for minutes by itself, and no work
    can be lost yet.

    Raises:
        OutputError: it cannot be written.
    """
    probe = join(directory, f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    write(probe, b"", attempts=1)
    remove(probe)


def _absolute(path: str) -> str:
    # Not Path.resolve, which would replace symbolic links by their targets. Not Path.absolute either:
    # constructing a Path takes as long as everything else that planning does for a row of a dataset manifest.
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


@contextmanager
def _create_local(path: Path) -> Iterator[IO[bytes]]:
    """Write to a temporary file in the same directory, and rename it at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # after a power failure, the name must not refer to an incomplete file
        temporary.replace(path)
        _sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_directory(directory: Path) -> None:
    """Flush a rename to the disk, so that it survives a power failure and is ordered before the next."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not support it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _create_remote(uri: str, attempts: int) -> Iterator[IO[bytes]]:
    """Write to an object store, which publishes a file atomically at close and has no cheap rename."""
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as content:
        yield content  # nothing is published if the block raises
        retry_with_backoff(lambda: _publish(uri, content), initial_pause=INITIAL_PAUSE, attempts=attempts)


def _publish(uri: str, content: IO[bytes]) -> None:
    """Upload content to remote storage."""
    content.seek(0)
    with _remote_errors(uri):
        from apache_beam.io.filesystem import CompressionTypes

        file = _filesystems().create(uri, compression_type=CompressionTypes.UNCOMPRESSED)
        try:
            shutil.copyfileobj(content, file, 1 << 20)
            file.close()
        except BaseException:
            # When it is garbage-collected, Google's writer would otherwise upload its content again and
            # replace a newer object.
            if terminate := getattr(file, "terminate", None):
                with suppress(Exception):
                    terminate()
            raise


def _filesystems() -> Any:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


@contextmanager
def _remote_errors(uri: str) -> Iterator[None]:
    """Raise the errors of all storage clients as OSError; each has classes of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{uri}: {type(error).__name__}: {error}") from error

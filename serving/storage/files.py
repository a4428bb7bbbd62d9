"""Files on the local disk and on remote storage, by path or address.

Local paths never import fsspec. Files appear complete: under their name is either nothing, or what was there
before, or the whole new content.
"""

from __future__ import annotations

import errno
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
from typing import IO, BinaryIO, TypeVar, cast
from urllib.parse import unquote_to_bytes

from serving.errors import InputError, OutputError, StorageError
from serving.process import Variable
from serving.storage import remote
from serving.storage.address import Address
from serving.storage.text_lines import decode_text
from serving.text import redact

CACHE_VARIABLE = Variable.CACHE_DIR

TEMPORARY_PREFIX = ".tmp-"
"""Prefix of temporary files. Parquet readers ignore names with a leading dot."""

ATTEMPTS = 5
"""Attempts at an operation on remote storage before its error is raised."""

INITIAL_PAUSE = 0.5
"""Upper limit of the first pause between attempts, in seconds."""

_MAX_PAUSE = 8.0  # seconds

_T = TypeVar("_T")

_FILE_URI_PATH = re.compile(r"file://[^/?#]*([^?#]*)")
"""Path of a URI behind the host (RFC 3986, appendix B). urllib rejects some URIs, and drops line ends."""

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def cache_directory() -> Path:
    """Return the directory for downloads: $HUBHEAD_CACHE_DIR, or hubhead in the XDG cache directory.

    Raises:
        OutputError: neither is set, and the user has no home directory; or it is not a local directory.
    """
    try:
        if chosen := os.environ.get(CACHE_VARIABLE):
            if is_remote(chosen):
                raise OutputError(
                    f"{CACHE_VARIABLE} is {redact(chosen)}, and the cache has to be on a local disk.",
                    remedy="Set it to a local directory that can be written.",
                )
            return Path(chosen).expanduser()
        base = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG base directory specification says that relative paths are to be ignored.
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "hubhead"
    except RuntimeError as error:  # a container may run under a user id without a name
        raise OutputError(
            "There is no directory for the cache: this user has no home directory.",
            remedy=f"Set {CACHE_VARIABLE} to a directory that can be written.",
        ) from error


def is_remote(uri: str) -> bool:
    """Return whether `uri` is on remote storage and not on the local disk."""
    return bool(_SCHEME.match(uri)) and not uri.startswith("file://")


def local_path(uri: str) -> str:
    """Return the path of a local URI, which is a plain path or `file://` with percent-encoded bytes."""
    if not uri.startswith("file://"):
        return uri
    path = _FILE_URI_PATH.match(uri)
    return os.fsdecode(unquote_to_bytes(path[1] if path else ""))


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
    with remote.open_file(uri) if is_remote(uri) else Path(local_path(uri)).open("rb") as file:
        yield cast(BinaryIO, file)


def read(uri: str) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: the file cannot be read, for whatever reason.
    """
    return remote.read(uri) if is_remote(uri) else Path(local_path(uri)).read_bytes()


def read_text(address: Address) -> str:
    """Return the content of a text file in UTF-8, or in UTF-16 as told by its first bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return decode_text(read(str(address)), str(address))
    except OSError as error:
        raise InputError(f"{address} cannot be read: {error}.") from error


def exists(uri: str) -> bool:
    """Return whether there is a file.

    Raises:
        StorageError: the storage does not answer.
    """
    return any(True for _ in remote.find_files("", [uri])) if is_remote(uri) else Path(uri).is_file()


def write(uri: str, content: bytes, *, attempts: int = ATTEMPTS) -> None:
    """Create or replace a file; `attempts` as in `create_file`.

    Raises:
        OutputError: the file cannot be written.
    """
    if is_remote(uri):
        retry_with_backoff(lambda: remote.write(uri, content), initial_pause=INITIAL_PAUSE, attempts=attempts)
        return
    with create_file(uri) as file:
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
    with output_errors(uri):
        if not is_remote(uri):
            with _create_local(Path(uri)) as file:
                yield file
            return
        with tempfile.NamedTemporaryFile(prefix="hubhead-upload-") as file:
            yield file
            file.flush()
            retry_with_backoff(
                lambda: remote.upload(file.name, uri), initial_pause=INITIAL_PAUSE, attempts=attempts
            )


def create_if_absent(uri: str, content: bytes) -> bool:
    """Create a file unless it exists; return whether it now has this content.

    Of several processes exactly one succeeds. The content is to be unique to the process: if the response to
    its request is lost and the request repeated, it finds its own file.

    Raises:
        OutputError: the file cannot be written.
    """
    if is_remote(uri):
        return remote.create_if_absent(uri, content)
    path = Path(uri)
    with output_errors(uri), _write_temporary(path) as temporary:
        with temporary.open("xb") as file:
            _write_through(file, content)
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return path.read_bytes() == content
        except OSError:  # a file system without links: the file is then empty for a moment
            try:
                with path.open("xb") as file:
                    _write_through(file, content)
            except FileExistsError:
                return False
        _sync_directory(path.parent)
        return True


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
        return [uri.rpartition("/")[2] for uri, _ in remote.list_directory(directory)]
    try:
        return sorted(path.name for path in Path(directory).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def walk_files(directory: str) -> Iterator[tuple[str, int]]:
    """Yield the relative path and the size in bytes of every file below a directory; none if there is none.

    Raises:
        OSError: a directory cannot be listed, so that its files would be missing.
    """
    if is_remote(directory):
        for found in remote.walk_files(directory):
            yield found.uri[len(directory) + 1 :], found.size
        return
    for top, _, names in os.walk(directory, onerror=_raise_unless_missing):
        for name in names:
            path = f"{top}/{name}"
            with suppress(FileNotFoundError):  # deleted since it was listed
                yield path[len(directory) + 1 :], Path(path).stat().st_size


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def rename(path: str, other: str) -> bool:
    """Give a local file or directory another name, in place of a file of that name, whose permissions stay.

    Returns:
        False if there is nothing to rename, or if the other name is that of a directory with files.

    Raises:
        OutputError: it cannot be renamed.
    """
    source, target = Path(path), Path(other)
    with output_errors(other):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if target.is_file():
                source.chmod(target.stat().st_mode & 0o777)
            source.replace(target)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        _sync_directory(target.parent)
    return True


def remove(uri: str) -> None:
    """Delete a file, if it exists.

    Raises:
        OutputError: the file cannot be deleted.
    """
    if is_remote(uri):
        remote.remove(uri)
        return
    with output_errors(uri, "delete"):
        Path(uri).unlink(missing_ok=True)


def remove_directory(directory: str) -> None:
    """Delete a directory and everything in it, if it exists.

    Raises:
        OutputError: it cannot be deleted.
    """
    if is_remote(directory):
        for path, _ in walk_files(directory):
            remote.remove(join(directory, path))
        return
    with output_errors(directory, "delete"), suppress(FileNotFoundError):
        shutil.rmtree(directory)


def check_writable(directory: str) -> None:
    """Create the directory and check that it can be written, by writing a file to it.

    On remote storage there is one attempt: its client retries by itself, and no work can be lost yet.

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
def output_errors(uri: str, action: str = "write") -> Iterator[None]:
    """Raise the errors of the local file system as OutputError."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise OutputError(
            f"Cannot {action} {uri}: {error.strerror or error}.",
            remedy="Choose a location that you can write to, with enough space; finished work is kept.",
        ) from error


@contextmanager
def _write_temporary(path: Path) -> Iterator[Path]:
    """Provide the name of a temporary file beside a file; it is deleted unless the block renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _create_local(path: Path) -> Iterator[IO[bytes]]:
    """Write to a temporary file beside it, which is renamed at the end; modes and symbolic links stay."""
    path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():  # a device, which a rename would replace
        with path.open("wb") as file:
            yield file
        return
    with _write_temporary(path) as temporary:
        with temporary.open("xb") as file:
            yield file
            _write_through(file)
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
        _sync_directory(path.parent)


def _write_through(file: IO[bytes], content: bytes = b"") -> None:
    """Write content to the disk: after a power failure, a name must not refer to an incomplete file."""
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    """Flush a rename to the disk, so that it survives a power failure and is ordered before the next."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not support it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

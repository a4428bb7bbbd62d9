"""The few things the batch job does with files, on the local disk and on any storage Beam knows.

Local paths never import Beam, which takes seconds; `gs://`, `s3://` and the like go through
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
"""Parquet readers leave names with a leading dot out."""

ATTEMPTS = 5
"""How often another storage is asked before its refusal counts."""

INITIAL_PAUSE = 0.5
"""Seconds of the first pause in between, at most."""

_LONGEST_PAUSE = 8.0  # seconds
_HELD_BYTES = 32 << 20

_T = TypeVar("_T")

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def cache_directory() -> Path:
    """Where downloads and what is made of them stay: $HUBHEAD_CACHE_DIR, else hubhead in the XDG cache."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "hubhead"


def is_remote(uri: str) -> bool:
    """Whether `uri` names another storage than the local disk."""
    return bool(_SCHEME.match(uri)) and not uri.startswith("file://")


def local_path(uri: str) -> str:
    """The path behind a local URI: a plain path, or `file://` with percent-encoded bytes."""
    return os.fsdecode(unquote_to_bytes(urlsplit(uri).path)) if uri.startswith("file://") else uri


def local_uri(path: str) -> str:
    """An absolute path; as a `file://` URI where the name is not UTF-8, which no Parquet string holds."""
    path = _absolute(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(path).as_uri()
    return path


def absolute(uri: str) -> str:
    """`uri` as every process understands it, whatever its working directory."""
    return uri.rstrip("/") if is_remote(uri) else _absolute(local_path(uri))


def join(directory: str, *names: str) -> str:
    """A path or address below `directory`."""
    return "/".join((directory.rstrip("/"), *names))


@contextmanager
def open_file(uri: str) -> Iterator[BinaryIO]:
    """A seekable binary file to read.

    Raises:
        OSError: whatever the reason that the storage does not give it.
    """
    if not is_remote(uri):
        with Path(local_path(uri)).open("rb") as file:
            yield file
        return
    with _remote_errors(uri):
        from apache_beam.io.filesystem import CompressionTypes

        # Beam would unpack a .gz on the way; the bytes are wanted as they are.
        with _filesystems().open(uri, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            yield file


def read(uri: str) -> bytes:
    """The whole content.

    Raises:
        OSError: whatever the reason that the storage does not give it.
    """
    with open_file(uri) as file:
        return file.read()


def write(uri: str, content: bytes, *, attempts: int = ATTEMPTS) -> None:
    """Write a file whole or not at all, replacing the one that is there; `attempts` as in `created`.

    Raises:
        OutputError: the storage does not take it.
    """
    with create_file(uri, attempts=attempts) as file:
        file.write(content)


@contextmanager
def create_file(uri: str, *, attempts: int = ATTEMPTS) -> Iterator[IO[bytes]]:
    """A file to write, which is there as soon as the block is left without an error, and whole.

    Args:
        uri: of it.
        attempts: how often another storage is asked to take it.

    Raises:
        OutputError: the storage does not take it.
    """
    try:
        with _created_remote(uri, attempts) if is_remote(uri) else _created_local(Path(uri)) as file:
            yield file
    except OSError as error:
        raise OutputError(
            f"Cannot write {uri}: {error.strerror or error}.",
            remedy="Choose a place you may write to, with room left; what was finished is kept.",
        ) from error


def retry_with_backoff(attempt: Callable[[], _T], *, initial_pause: float, attempts: int) -> _T:
    """Try something that a storage may refuse for a moment, with growing pauses in between.

    The pauses are random between none and `first` seconds, doubled each time, so that many
    workers do not come back at once ("full jitter", M. Brooker, Exponential Backoff And
    Jitter, AWS Architecture Blog, 2015).

    Raises:
        OSError: the last one, when all attempts are used up.
    """
    for number in range(attempts - 1):
        try:
            return attempt()
        except OSError:
            time.sleep(random.uniform(0, min(initial_pause * 2**number, _LONGEST_PAUSE)))
    return attempt()


def list_names(directory: str) -> list[str]:
    """The names of the files in a directory, sorted; none where there is no directory."""
    if is_remote(directory):
        return sorted(entry.path.rsplit("/", 1)[-1] for entry in match_files(join(directory, "*")))
    try:
        return sorted(path.name for path in Path(directory).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def walk_files(directory: str) -> Iterator[tuple[str, int]]:
    """Every file below a directory: its path from there, and its size in bytes."""
    if is_remote(directory):
        start = len(directory) + 1
        for entry in match_files(join(directory, "**")):
            yield entry.path[start:], entry.size_in_bytes
        return
    for top, _, found in os.walk(directory):
        for name in found:
            path = f"{top}/{name}"
            with suppress(FileNotFoundError):
                yield path[len(directory) + 1 :], Path(path).lstat().st_size


def match_files(pattern: str) -> Iterator[Any]:
    """Beam's FileMetadata (path, size_in_bytes, last_updated_in_seconds) of a remote pattern, as they come.

    Raises:
        InputError: the storage does not answer, or needs an extra that is not installed.
    """
    try:
        with _remote_errors(pattern):
            yield from _matches(pattern)
    except OSError as error:
        raise InputError(
            f"Cannot list {pattern}: {error}.",
            remedy="Check the address and credentials; gs:// needs apache-beam[gcp], s3:// apache-beam[aws].",
        ) from error


def _matches(pattern: str) -> Iterator[Any]:
    """What Beam's FileSystem.match finds, but one after the other: it would first hold all in a list."""
    storage = _filesystems().get_filesystem(pattern)
    prefix = re.split(r"[*?\[]", pattern)[0]
    if prefix == pattern or storage.has_dirs():
        return iter(storage.match([pattern])[0].metadata_list)
    return iter(storage.match_files(storage._list(prefix), pattern))


def remove(uri: str) -> None:
    """Remove a file; fine where it is gone already.

    Raises:
        OutputError: the storage does not let go of it.
    """
    try:
        if not is_remote(uri):
            Path(uri).unlink(missing_ok=True)
            return
        with _remote_errors(uri):
            if _filesystems().exists(uri):
                _filesystems().delete([uri])
    except OSError as error:
        raise OutputError(f"Cannot remove {uri}: {error.strerror or error}.") from error


def remove_directory(directory: str) -> None:
    """Remove a directory of files; fine where there is none."""
    for name in list_names(directory):
        remove(join(directory, name))
    if not is_remote(directory) and Path(directory).is_dir():
        Path(directory).rmdir()


def check_writable(directory: str) -> None:
    """Make the directory and prove by a file that it can be written, before any work is done.

    Another storage is asked once: its client tries for minutes by itself, and nothing is lost yet.

    Raises:
        OutputError: it cannot.
    """
    probe = join(directory, f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    write(probe, b"", attempts=1)
    remove(probe)


def _absolute(path: str) -> str:
    # Not Path.resolve, which would replace links by what they point to; and a Path takes as long to
    # make as all the rest that planning does with a line of a manifest.
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


@contextmanager
def _created_local(path: Path) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # so that after a power cut the name never stands for a torn file
        temporary.replace(path)
        _keep_names(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _keep_names(directory: Path) -> None:
    """Have the storage keep a rename before the next one, also through a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not know it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _created_remote(uri: str, attempts: int) -> Iterator[IO[bytes]]:
    """Object stores publish at close, at once; a rename there would be a copy and a delete."""
    with tempfile.SpooledTemporaryFile(_HELD_BYTES) as content:
        yield content  # nothing is published where the block fails
        retry_with_backoff(lambda: _publish(uri, content), initial_pause=INITIAL_PAUSE, attempts=attempts)


def _publish(uri: str, content: IO[bytes]) -> None:
    content.seek(0)
    with _remote_errors(uri):
        from apache_beam.io.filesystem import CompressionTypes

        file = _filesystems().create(uri, compression_type=CompressionTypes.UNCOMPRESSED)
        try:
            shutil.copyfileobj(content, file, 1 << 20)
            file.close()
        except BaseException:
            # Google's writer would send its content once more when it is garbage, over what is newer by then.
            if terminate := getattr(file, "terminate", None):
                with suppress(Exception):
                    terminate()
            raise


def _filesystems() -> Any:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


@contextmanager
def _remote_errors(uri: str) -> Iterator[None]:
    """One class of error for all storages: each client library raises its own, most no OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{uri}: {type(error).__name__}: {error}") from error

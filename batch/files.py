"""The few things the batch job does with files, on the local disk and on any storage Beam knows.

Local paths never import Beam, which takes seconds; `gs://`, `s3://` and the like go through
Beam's FileSystems and its extras (`pip install apache-beam[gcp]`).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from serving.errors import InputError, OutputError

CACHE_VARIABLE = "HUBHEAD_CACHE_DIR"

TEMPORARY_PREFIX = ".tmp-"
"""Parquet readers leave names with a leading dot out."""

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
def opened(uri: str) -> Iterator[BinaryIO]:
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
    with opened(uri) as file:
        return file.read()


def write(uri: str, content: bytes) -> None:
    """Write a file whole or not at all, replacing the one that is there.

    Raises:
        OutputError: the storage does not take it.
    """
    try:
        _write_remote(uri, content) if is_remote(uri) else _write_local(Path(uri), content)
    except OSError as error:
        raise OutputError(
            f"Cannot write {uri}: {error.strerror or error}.",
            remedy="Choose a place you may write to, with room left; what was finished is kept.",
        ) from error


def names(directory: str) -> list[str]:
    """The names of the files in a directory, sorted; none where there is no directory."""
    if is_remote(directory):
        return sorted(entry.path.rsplit("/", 1)[-1] for entry in listing(join(directory, "*")))
    try:
        return sorted(path.name for path in Path(directory).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def listing(pattern: str) -> list[Any]:
    """Beam's FileMetadata (path, size_in_bytes, last_updated_in_seconds) of a remote pattern.

    Raises:
        InputError: the storage does not answer, or needs an extra that is not installed.
    """
    try:
        with _remote_errors(pattern):
            return list(_filesystems().match([pattern])[0].metadata_list)
    except OSError as error:
        raise InputError(
            f"Cannot list {pattern}: {error}.",
            remedy="Check the address and credentials; gs:// needs apache-beam[gcp], s3:// apache-beam[aws].",
        ) from error


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
    for name in names(directory):
        remove(join(directory, name))
    if not is_remote(directory) and Path(directory).is_dir():
        Path(directory).rmdir()


def check_writable(directory: str) -> None:
    """Make the directory and prove by a file that it can be written, before any work is done.

    Raises:
        OutputError: it cannot.
    """
    probe = join(directory, f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    write(probe, b"")
    remove(probe)


def _absolute(path: str) -> str:
    # Not Path.resolve, which would replace links by what they point to.
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100


def _write_local(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # so that after a power cut the name never stands for a torn file
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _write_remote(uri: str, content: bytes) -> None:
    """Object stores publish at close, at once; a rename there would be a copy and a delete."""
    with _remote_errors(uri):
        from apache_beam.io.filesystem import CompressionTypes

        with _filesystems().create(uri, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            file.write(content)


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

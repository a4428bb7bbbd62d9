"""Files on remote storage, through fsspec: s3://, gs://, az://, http:// and whatever else it supports.

Objects appear atomically, and there is no rename. The errors of all clients, each of which has classes of its
own, are raised as StorageError; only FileNotFoundError stays as it is when something is read. Nothing but
connections is cached, since other processes write too.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from glob import has_magic
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from serving.errors import HubheadError, InputError, OutputError, StorageError
from serving.storage.address import EXTRAS, base_name
from serving.storage.names import normalize

READ_BYTES = 4 << 20
"""Bytes that a file opened for reading requests at a time, unless the reader wants more."""

_STAT_THREADS = 32

_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "created")
"""Names under which the file systems of fsspec state the time of the last modification."""

_SERVERS = ("ftp", "sftp", "ssh", "smb", "webhdfs")
"""Schemes whose addresses begin with the name of a server."""

_CREDENTIALS = {
    "s3": "s3:// uses those of the AWS command line (AWS_PROFILE, AWS_ENDPOINT_URL).",
    "gs": "gs:// uses Google's application default credentials.",
    "az": "az:// uses AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and _KEY.",
}


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A remote file as its storage lists it.

    Attributes:
        uri: address.
        size: size in bytes.
        modified: modification time in nanoseconds since 1970; 0 if the storage does not state it.
    """

    uri: str
    size: int
    modified: int


@contextmanager
def connect(uri: str, action: str = "read") -> Iterator[tuple[Any, str]]:
    """Provide fsspec's file system of an address and the path there, and translate its errors in the block.

    Args:
        uri: address on remote storage.
        action: what the block does, for messages: read, list, write or delete.

    Raises:
        FileNotFoundError: there is nothing to read at the address.
        FileExistsError: what was to be created exists.
        InputError: the package for this kind of storage is not installed.
        StorageError: the storage does not answer or rejects the operation.
    """
    scheme = uri.partition("://")[0]
    extra, changes = EXTRAS.get(scheme, ""), action in ("write", "delete")
    if changes and extra == "http":
        raise OutputError(
            f"Cannot {action} {uri}: {scheme}:// is read-only.", remedy="Give another location."
        )
    try:
        import fsspec

        if scheme in _SERVERS and not urlsplit(uri).hostname:
            # fsspec's constructors fail without it, and that of ftp:// again in its destructor, which Python
            # prints.
            raise ValueError("the address has no host")
        yield fsspec.url_to_fs(uri, use_listings_cache=False)
    except ImportError as error:
        raise InputError(
            f"{scheme}:// addresses need a package that is not installed: {error}.",
            remedy=f"Install it with: pip install 'hubhead[{extra}]'" if extra else "Install it with pip.",
        ) from error
    except (FileExistsError, HubheadError):
        raise
    except Exception as error:  # each store raises classes of its own, most of them no OSError
        remedy = f"Check the address, the credentials and their permissions. {_CREDENTIALS.get(extra, '')}"
        if isinstance(error, FileNotFoundError):
            if not changes:
                raise
            remedy = "Check that the bucket exists."
        words = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")  # on one line
        raise StorageError(f"Cannot {action} {uri}: {words}.", remedy=remedy.strip()) from error


class RangeReader(io.RawIOBase):
    """Seekable file that requests ranges of bytes.

    Args:
        uri: address of the file.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._position = 0
        with connect(uri) as (storage, path):
            self._size = int(storage.size(path))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        if self._position >= end:
            return 0
        with connect(self._uri) as (storage, path):
            content = storage.cat_file(path, start=self._position, end=end)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def open_file(uri: str) -> io.BufferedIOBase:
    """Open a seekable file for reading.

    Raises:
        OSError: the file cannot be read.
    """
    if EXTRAS.get(uri.partition("://")[0]) == "http":  # not all servers support requests for ranges
        return io.BytesIO(read(uri))
    return io.BufferedReader(RangeReader(uri), READ_BYTES)


def read(uri: str) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: the file cannot be read.
    """
    with connect(uri) as (storage, path):
        return bytes(storage.cat_file(path))


def read_all(uris: Sequence[str]) -> list[bytes]:
    """Return the contents of several files of one storage, read concurrently.

    Raises:
        OSError: one of them cannot be read.
    """
    if not uris:
        return []
    with connect(uris[0]) as (storage, _):
        paths = [storage._strip_protocol(uri) for uri in uris]
        found = storage.cat(paths)
        return [bytes(found[path]) for path in paths]


def write(uri: str, content: bytes) -> None:
    """Create or replace a file.

    Raises:
        OutputError: it cannot be written.
    """
    with connect(uri, "write") as (storage, path):
        storage.pipe_file(path, content)


def create_if_absent(uri: str, content: bytes) -> bool:
    """Create a file unless it exists: If-None-Match on S3 and Azure, ifGenerationMatch on Google's storage.

    Raises:
        OutputError: it cannot be written.
    """
    with connect(uri, "write") as (storage, path):
        try:
            storage.pipe_file(path, content, mode="create")
        except FileExistsError:
            return bool(storage.cat_file(path) == content)
        return True


def upload(path: str, uri: str) -> None:
    """Create or replace a file with the content of a local one.

    Raises:
        OutputError: it cannot be written.
    """
    with connect(uri, "write") as (storage, target):
        storage.put_file(path, target)


def download(uri: str, path: str) -> None:
    """Write the content of a file to a local one.

    Raises:
        OSError: it cannot be read.
    """
    with connect(uri) as (storage, source):
        storage.get_file(source, path)


def copy(uri: str, other: str) -> bool:
    """Copy a file within its storage, which does it in one request; return False if there is no such file.

    Raises:
        OutputError: it cannot be written.
    """
    with connect(other, "write") as (storage, target):
        source = storage._strip_protocol(uri)
        try:
            storage.cp_file(source, target)
        except FileNotFoundError:
            if storage.exists(source):
                raise
            return False
        return True


def remove(uri: str) -> None:
    """Delete a file, if it exists.

    Raises:
        OutputError: it cannot be deleted.
    """
    with connect(uri, "delete") as (storage, path), suppress(FileNotFoundError):
        storage.rm_file(path)


def list_directory(uri: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the address of everything directly in a directory, sorted, and what fsspec says about it.

    Raises:
        StorageError: the storage does not answer.
    """
    with connect(uri, "list") as (storage, path):
        try:
            found = storage.ls(path, detail=True)
        except FileNotFoundError:
            return
    # Stores differ in slashes at both ends, and some list the directory itself as well.
    top = f"{path.strip('/')}/"
    entries = {str(info["name"]).strip("/"): info for info in found}
    for name in sorted(entries):
        # The links of a web server's index may have queries that sort it.
        if name.startswith(top) and not (path == uri and "?" in name):
            yield f"{uri.rstrip('/')}/{name.removeprefix(top)}", entries[name]


def match_files(pattern: str) -> Iterator[FileInfo]:
    """Yield the files that a pattern matches; directories are listed one by one, as files are consumed.

    Args:
        pattern: address in which `*`, `?` and `[...]` match within a name, and `**` any number of
            directories; at the end, `**` matches all files at any depth. In http:// only `*` is special.

    Raises:
        StorageError: the storage does not answer.
        InputError: the package for this kind of storage is not installed.
    """
    scheme, _, path = pattern.partition("://")
    parts = path.rstrip("/").split("/")
    is_pattern = has_magic if EXTRAS.get(scheme) != "http" else (lambda part: "*" in part)
    if not is_pattern(path):
        return find_files("", [pattern])
    literal = next(number for number, part in enumerate(parts) if is_pattern(part))
    return _walk(f"{scheme}://{'/'.join(parts[:literal])}", {tuple(parts[literal:])})


def walk_files(directory: str) -> Iterator[FileInfo]:
    """Yield every file below a directory, as `match_files` does.

    Raises:
        StorageError: the storage does not answer.
    """
    return _walk(directory, {("**",)})


def _walk(directory: str, patterns: set[tuple[str, ...]]) -> Iterator[FileInfo]:
    """Yield the files below a directory that one of the patterns matches, each given by its parts."""
    patterns |= {parts[1:] for parts in patterns if parts[0] == "**" and len(parts) > 1}  # no directory
    for uri, info in list_directory(directory):
        name = base_name(uri)
        rest = {
            parts if parts[0] == "**" else parts[1:]
            for parts in patterns
            if parts[0] == "**" or fnmatchcase(name, parts[0])
        }
        if info["type"] != "directory":
            if () in rest or ("**",) in rest:
                yield from [_to_file_info(uri, info)] if info["size"] is not None else find_files("", [uri])
        elif rest := rest - {()}:
            yield from _walk(uri, rest)


def find_files(directory: str, wanted: Collection[str]) -> Iterator[FileInfo]:
    """Yield those of the wanted files that exist.

    Args:
        directory: directory of all of them, which is listed by one request; "" for a request for each.
        wanted: addresses.

    Raises:
        StorageError: the storage does not answer.
    """
    if directory and EXTRAS.get(directory.partition("://")[0]) != "http":
        for uri, info in list_directory(directory):
            if uri in wanted and info["type"] != "directory":
                yield _to_file_info(uri, info)
        return
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        yield from filter(None, pool.map(_find_file, wanted))


def find_respelled(directory: str, wanted: Collection[str]) -> Iterator[tuple[str, FileInfo]]:
    """Yield wanted addresses with the files that are stored under another Unicode form of them.

    Uploads from macOS keep its decomposed names, and lists of them are often composed.

    Args:
        directory: directory of all of them, in the form that is wanted.
        wanted: addresses that do not exist as they are.

    Raises:
        StorageError: the storage does not answer.
    """
    scheme, _, path = directory.partition("://")
    bucket, *parts = path.split("/")
    if EXTRAS.get(scheme) == "http":
        return  # which has no listings
    directories = [f"{scheme}://{bucket}"]
    for part in parts:
        directories = [
            uri
            for top in directories
            for uri in ([f"{top}/{part}"] if part.isascii() else (uri for uri, _ in list_directory(top)))
            if normalize(base_name(uri)) == normalize(part)
        ]
    spelled = {normalize(uri): uri for uri in wanted}
    for uri, info in chain.from_iterable(map(list_directory, directories)):
        if info["type"] != "directory" and (asked := spelled.get(normalize(uri))):
            yield asked, _to_file_info(uri, info)


def _find_file(uri: str) -> FileInfo | None:
    with suppress(FileNotFoundError), connect(uri, "list") as (storage, path):
        info = storage.info(path)
        # A web server answers for a directory with a page of links.
        is_directory = info["type"] == "directory" or info.get("mimetype") == "text/html"
        return None if is_directory else _to_file_info(uri, info)
    return None


def _to_file_info(uri: str, info: dict[str, Any]) -> FileInfo:
    modified = next((info[name] for name in _TIMES if info.get(name)), 0)
    try:
        if isinstance(modified, str):
            modified = parsedate_to_datetime(modified)
        if isinstance(modified, datetime):
            modified = modified.timestamp()
        modified = round(modified * 1e9)
    except (ValueError, TypeError, ArithmeticError):  # a header such as "Last-Modified: yesterday"
        modified = 0
    return FileInfo(uri, int(info["size"] or 0), modified)

"""Operations on the objects of an object store, through fsspec.

Objects appear atomically, and there is no rename. Everything else builds on `create`: of several
concurrent writers of one name exactly one succeeds (If-None-Match on S3, ifGenerationMatch on Google
Cloud Storage).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import InputError, OutputError
from serving.storage.address import EXTRAS


@dataclass(frozen=True)
class Objects:
    """The objects below an address. Their names are relative to it, with parts joined by "/".

    Every method raises OutputError with the message of the store if it does not answer or rejects
    the operation.

    Attributes:
        address: address in the store, such as s3://bucket/models/food.
        storage: file system of fsspec.
        root: address without its scheme.
    """

    address: str
    storage: Any
    root: str

    @staticmethod
    def from_address(address: str) -> Objects:
        """Return the objects below an address.

        Raises:
            InputError: the package for this kind of store is not installed.
        """
        scheme = address.partition("://")[0]
        try:
            import fsspec

            with _translate_errors(address):
                # Listings are not cached, because other processes write too.
                storage, root = fsspec.url_to_fs(address, use_listings_cache=False)
        except ImportError as error:
            raise InputError(
                f"{scheme}:// addresses need a package that is not installed: {error}.",
                remedy=f"Install it with: pip install 'hubhead[{EXTRAS.get(scheme) or scheme}]'",
            ) from error
        return Objects(address, storage, root.rstrip("/"))

    def address_of(self, name: str) -> str:
        """Return the address of an object."""
        return f"{self.address}/{name}"

    def read(self, name: str) -> bytes:
        """Return the content of an object.

        Raises:
            FileNotFoundError: there is no such object.
        """
        with _translate_errors(self.address_of(name)):
            return bytes(self.storage.cat_file(self._path(name)))

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of several objects, read concurrently, in the order of the names.

        Raises:
            FileNotFoundError: one of them does not exist.
        """
        if not names:
            return []
        paths = [self._path(name) for name in names]
        with _translate_errors(self.address):
            found = self.storage.cat(paths)
            return [bytes(found[path]) for path in paths]

    def write(self, name: str, content: bytes) -> None:
        """Create or replace an object."""
        with _translate_errors(self.address_of(name), writing=True):
            self.storage.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Create an object unless it exists; return whether it now has this content.

        The content should be unique to the writer. If a response is lost and the client retries, it
        finds its own object, which counts as created.
        """
        with _translate_errors(self.address_of(name), writing=True):
            try:
                self.storage.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return self.read(name) == content
            return True

    def upload(self, path: Path, name: str) -> None:
        """Upload a file."""
        with _translate_errors(self.address_of(name), writing=True):
            self.storage.put_file(str(path), self._path(name))

    def download(self, name: str, path: Path) -> None:
        """Download an object to a file."""
        with _translate_errors(self.address_of(name)):
            self.storage.get_file(self._path(name), str(path))

    def copy(self, name: str, other: str) -> None:
        """Copy an object within the store, without transferring it to this machine."""
        with _translate_errors(self.address_of(other), writing=True):
            self.storage.cp_file(self._path(name), self._path(other))

    def remove(self, name: str) -> None:
        """Delete an object, if it exists."""
        with _translate_errors(self.address_of(name), writing=True):
            try:
                self.storage.rm_file(self._path(name))
            except FileNotFoundError:
                return

    def list_children(self, prefix: str = "") -> list[str]:
        """Return the names directly below a prefix, including "directories"; [] if there are none."""
        path = self._path(prefix)
        with _translate_errors(self.address):
            try:
                found = self.storage.ls(path, detail=False)
            except FileNotFoundError:
                return []
        # Stores differ in slashes at the ends, and some list the prefix itself as a child.
        children = (str(child).rstrip("/").removeprefix("/") for child in found)
        return [child.rpartition("/")[2] for child in children if child != path.removeprefix("/")]

    def list_sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes in bytes of all objects below a prefix, by name relative to it."""
        path = self._path(prefix)
        with _translate_errors(self.address):
            found = self.storage.find(path, detail=True)
        start = f"{path.removeprefix('/')}/"
        relative = {str(key).removeprefix("/").removeprefix(start): info for key, info in found.items()}
        return {name: int(info["size"]) for name, info in sorted(relative.items()) if name}

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root


@contextmanager
def _translate_errors(address: str, *, writing: bool = False) -> Iterator[None]:
    """Raise the errors of all store clients as OutputError; each has classes of its own."""
    try:
        yield
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        if not writing:
            raise
        raise OutputError(
            f"{address} cannot be written: {error}.", remedy="Check that the bucket exists."
        ) from error
    except (ImportError, OutputError):
        raise
    except Exception as error:
        words = str(error) or type(error).__name__
        action = "written" if writing else "read"
        raise OutputError(
            f"{address} cannot be {action}: {words.rstrip('.')}.",
            remedy="Check the address, the credentials and their permissions. s3:// uses those of the AWS "
            "command line (AWS_PROFILE, AWS_ENDPOINT_URL), gs:// Google's application default credentials.",
        ) from error

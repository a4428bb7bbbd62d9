"""The few things that are done with objects, through fsspec.

An object is there as a whole or not at all, and there is no rename. `create` is what all else is built
on: of several writers of one name exactly one succeeds (If-None-Match on S3, ifGenerationMatch on Google
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
    """The objects below an address; names are relative to it, parts joined by "/".

    Every call raises OutputError where the store does not answer, or refuses; with its words.

    Attributes:
        address: such as s3://bucket/models/food.
        storage: fsspec's file system.
        root: the address without its scheme.
    """

    address: str
    storage: Any
    root: str

    @staticmethod
    def from_address(address: str) -> Objects:
        """The objects below an address.

        Raises:
            InputError: the package for it is not installed.
        """
        scheme = address.partition("://")[0]
        try:
            import fsspec

            with _told(address):  # no listing is kept: others write too
                storage, root = fsspec.url_to_fs(address, use_listings_cache=False)
        except ImportError as error:
            raise InputError(
                f"{scheme}:// needs a package that is not installed: {error}.",
                remedy=f"pip install 'hubhead[{EXTRAS.get(scheme) or scheme}]'",
            ) from error
        return Objects(address, storage, root.rstrip("/"))

    def address_of(self, name: str) -> str:
        """The address of an object."""
        return f"{self.address}/{name}"

    def read(self, name: str) -> bytes:
        """The content.

        Raises:
            FileNotFoundError: there is no such object.
        """
        with _told(self.address_of(name)):
            return bytes(self.storage.cat_file(self._path(name)))

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """The contents of several at once, in their order.

        Raises:
            FileNotFoundError: one is missing.
        """
        if not names:
            return []
        paths = [self._path(name) for name in names]
        with _told(self.address):
            found = self.storage.cat(paths)
            return [bytes(found[path]) for path in paths]

    def write(self, name: str, content: bytes) -> None:
        """Create or replace an object."""
        with _told(self.address_of(name), writing=True):
            self.storage.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Create an object; whether it was there no more than a moment ago, with this content or none.

        The content should be the writer's alone: where an answer is lost and the client asks again, the
        object that it finds is its own.
        """
        with _told(self.address_of(name), writing=True):
            try:
                self.storage.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return self.read(name) == content
            return True

    def upload(self, path: Path, name: str) -> None:
        """Write a file's content."""
        with _told(self.address_of(name), writing=True):
            self.storage.put_file(str(path), self._path(name))

    def download(self, name: str, path: Path) -> None:
        """Write an object's content to a file."""
        with _told(self.address_of(name)):
            self.storage.get_file(self._path(name), str(path))

    def copy(self, name: str, other: str) -> None:
        """Copy within the store, where nothing crosses the network."""
        with _told(self.address_of(other), writing=True):
            self.storage.cp_file(self._path(name), self._path(other))

    def remove(self, name: str) -> None:
        """Delete an object; fine where it is gone."""
        with _told(self.address_of(name), writing=True):
            try:
                self.storage.rm_file(self._path(name))
            except FileNotFoundError:
                return

    def list_children(self, prefix: str = "") -> list[str]:
        """The names right below a prefix, those of "directories" too; [] where there are none."""
        path = self._path(prefix)
        with _told(self.address):
            try:
                found = self.storage.ls(path, detail=False)
            except FileNotFoundError:
                return []
        names = (str(one).rstrip("/").removeprefix("/") for one in found)
        return [one.rpartition("/")[2] for one in names if one != path.removeprefix("/")]

    def list_sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of all objects below a prefix, by their names from there."""
        path = self._path(prefix)
        with _told(self.address):
            found = self.storage.find(path, detail=True)
        start = f"{path.removeprefix('/')}/"
        listed = {str(one).removeprefix("/").removeprefix(start): info for one, info in found.items()}
        return {name: int(info["size"]) for name, info in sorted(listed.items()) if name}

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root


@contextmanager
def _told(address: str, *, writing: bool = False) -> Iterator[None]:
    """One class of error for all stores: their clients raise their own, most of them no OSError."""
    try:
        yield
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        if not writing:
            raise
        raise OutputError(
            f"{address} cannot be written: {error}.", remedy="Is there such a bucket?"
        ) from error
    except (ImportError, OutputError):
        raise
    except Exception as error:
        words = str(error) or type(error).__name__
        what = "written" if writing else "read"
        raise OutputError(
            f"{address} cannot be {what}: {words.rstrip('.')}.",
            remedy="Check the address, the credentials and what they allow. s3:// takes those of the AWS "
            "command (AWS_PROFILE, AWS_ENDPOINT_URL), gs:// Google's application default credentials.",
        ) from error

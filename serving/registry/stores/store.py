"""Interface of the stores that keep the versions of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from serving import contract
from serving.bundle import BundleMetadata
from serving.errors import BundleError
from serving.registry import verdict
from serving.registry.verdict import Verdict
from serving.storage.address import Address

Say = Callable[[str], None]
"""Callback for one line of progress."""


def silent(line: str) -> None:
    """Discard a line of progress."""
    del line


class Store(ABC):
    """Versions of a model and the audit log of changes to them.

    All methods raise OutputError if the storage cannot be read or written, and BundleError if a version is
    missing or cannot be read. Methods that change the store must be called while `lock` is held.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Last part of the location: the default name of the model."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether the location exists."""

    @abstractmethod
    def create(self) -> None:
        """Create what must exist before the first version is published."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Hold the exclusive right to change the versions.

        Raises:
            OutputBusy: another process holds it.
        """

    @abstractmethod
    def versions(self) -> list[int]:
        """List the complete versions, ascending."""

    @abstractmethod
    def path(self, version: int) -> Address:
        """Return the path or address of a version."""

    @abstractmethod
    def read_file(self, version: int, name: str) -> bytes:
        """Read a small file of a version.

        Raises:
            FileNotFoundError: the version has no file of that name.
        """

    @abstractmethod
    def sizes(self, version: int) -> Mapping[str, int]:
        """Return the size in bytes of each file of a version, by relative name."""

    @abstractmethod
    def digest(self, version: int) -> str:
        """Return the digest of a version, see `verdict.digest`; "" if it changed after it was published."""

    @abstractmethod
    def find(self, source: Path, digest: str) -> int | None:
        """Return the version with this digest, or at this very path; None if there is none."""

    @abstractmethod
    def publish(self, source: Path, digest: str, *, at_least: int, say: Say) -> int:
        """Copy a bundle into the store and return its version number.

        The version is invisible here, and no server loads it, before it is complete.

        Args:
            source: local directory of the bundle.
            digest: digest of the bundle.
            at_least: number to use if it is above all numbers ever used; else the next free number is taken.
            say: called with one line of progress per step.
        """

    @abstractmethod
    def withdraw(self, version: int) -> str:
        """Hide a version from servers, keep its files, and return where they are."""

    @abstractmethod
    def remove(self, version: int) -> None:
        """Delete a version; servers never load a part of it."""

    @abstractmethod
    def append_to_log(self, line: str) -> None:
        """Append a line to the audit log."""

    @abstractmethod
    def read_log(self) -> Iterator[tuple[str, str]]:
        """Yield (location, line) of the audit log, oldest first."""

    def finish_interrupted(self, say: Say) -> list[int]:
        """Complete interrupted withdrawals and removals; return the versions withdrawn."""
        del say
        return []

    def list_unfinished(self) -> Mapping[int, str]:
        """Return the numbers that are not complete versions, each with the reason."""
        return {}

    def require(self, version: int) -> None:
        """Check that a version exists.

        Raises:
            BundleError: there is no such version.
        """
        existing = self.versions()
        if version not in existing:
            raise BundleError(
                f"{self} has no version {version}.",
                remedy=f"Existing versions: {', '.join(map(str, existing)) or 'none'}.",
            )

    def read_metadata(self, version: int) -> BundleMetadata:
        """Read the bundle metadata (hubhead.json) of a version."""
        location = f"{self.path(version)}/{contract.METADATA_FILE}"
        try:
            return BundleMetadata.parse(self.read_file(version, contract.METADATA_FILE), location)
        except FileNotFoundError as error:
            raise BundleError(
                f"{self.path(version)} has no {contract.METADATA_FILE}, so it is not a hubhead bundle.",
                remedy="Make one with hubhead train or hubhead export.",
            ) from error

    def read_verdict(self, version: int) -> Verdict | None:
        """Read the verdict of a version; None if there is none."""
        try:
            return verdict.parse(self.read_file(version, contract.VERDICT_FILE), self.path(version))
        except FileNotFoundError:
            return None

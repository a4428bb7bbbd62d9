"""Interface of the stores that keep the versions of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from serving import contract
from serving.bundle import BundleMetadata
from serving.errors import BundleError
from serving.registry import verdict
from serving.registry.verdict import Verdict
from serving.storage.address import Address
from serving.storage.lease import Lease

LEASE_DIRECTORY = ".hubhead/lease"
"""Directory of the lease below the base path. No server takes it for a version."""

Say = Callable[[str], None]
"""Callback for one line of progress."""


def silent(line: str) -> None:
    """Discard a line of progress."""
    del line


class Store(ABC):
    """Versions of a model and the audit log of changes to them.

    All methods raise OutputError if the storage cannot be read or written, and BundleError if a version is
    missing or cannot be read. Methods that change the store raise LeaseLost if another process took over.

    Attributes:
        lease: lease of the base path, through which everything is changed.
    """

    lease: Lease

    @property
    @abstractmethod
    def name(self) -> str:
        """Last part of the location: the default name of the model."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether the location exists."""

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
    def publish(
        self, source: Path, digest: str, *, at_least: int, log: Callable[[int], str], say: Say
    ) -> int:
        """Copy a bundle into the store and return its version number.

        The version is invisible here, and no server loads it, before it is complete. A publication that is
        interrupted is completed by the next process that changes the store.

        Args:
            source: local directory of the bundle.
            digest: digest of the bundle.
            at_least: number to use if it is above all numbers ever used; else the next free number is taken.
            log: returns the line of the audit log for a version number.
            say: called with one line of progress per step.
        """

    @abstractmethod
    def withdraw(self, version: int, log: str) -> str:
        """Hide a version from servers, keep its files, append to the audit log; return where the files are.

        If it is interrupted, `lease.recovered` of the process that completes it is the version.
        """

    @abstractmethod
    def remove(self, version: int, log: str) -> None:
        """Delete a version and append to the audit log; servers never load a part of it."""

    @abstractmethod
    def log_content(self, line: str) -> Mapping[str, bytes]:
        """Return the file to write to append a line to the audit log, by name."""

    def append_to_log(self, line: str) -> None:
        """Append a line to the audit log."""
        self.lease.publish(self.log_content(line))

    @abstractmethod
    def read_log(self) -> Iterator[tuple[str, str]]:
        """Yield (location, line) of the audit log, oldest first."""

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

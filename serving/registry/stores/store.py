"""Interface of the stores that keep the versions of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from serving import contract
from serving.errors import BundleError
from serving.storage import files
from serving.storage.address import Address
from serving.storage.lease import Lease

LEASE_DIRECTORY = ".hubhead/lease"
"""Directory of the lease below the base path. No server takes it for a version."""

Say = Callable[[str], None]
"""Callback for one line of progress."""

LogLine = Callable[[int], str]
"""Function from a version number to the line of the audit log about it."""


def silent(line: str) -> None:
    """Discard a line of progress."""
    del line


class Store(ABC):
    """Versions of a model and the audit log of changes to them.

    All methods raise OutputError if the storage cannot be read or written, and BundleError if a version is
    missing or cannot be read. Methods that change the store raise LeaseLost if another process took over.

    Args:
        base: path or address whose numbered children are the versions.
        lease: lease of the base path, through which everything is changed; None changes it without a lease.
    """

    base: Address
    lease: Lease

    def __init__(self, base: Address, lease: Lease | None = None) -> None:
        self.base = base
        self.lease = lease or Lease(str(base))

    @abstractmethod
    def versions(self) -> list[int]:
        """List the complete versions, ascending."""

    @abstractmethod
    def path(self, version: int) -> Address:
        """Return the path or address of a version."""

    def sizes(self, version: int) -> dict[str, int]:
        """Return the size in bytes of each file of a version, by relative name."""
        return dict(files.walk_files(str(self.path(version))))

    @abstractmethod
    def digest(self, version: int) -> str:
        """Return the digest of a version, see `verdict.digest`; "" if it changed after it was published."""

    @abstractmethod
    def find(self, source: Path, digest: str) -> int | None:
        """Return the version with this digest, or at this very path; None if there is none."""

    @abstractmethod
    def publish(self, source: Path, digest: str, *, at_least: int, log: LogLine, say: Say) -> int:
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
        """Hide a version from servers, keep its files, append to the audit log; return where they are."""

    @abstractmethod
    def remove(self, version: int, log: str) -> None:
        """Delete a version and append to the audit log; servers never load a part of it."""

    @abstractmethod
    def log_content(self, *lines: str) -> Mapping[str, bytes]:
        """Return the files to write to append lines to the audit log, by name."""

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
                f"{self.base} has no version {version}.",
                remedy=f"Existing versions: {', '.join(map(str, existing)) or 'none'}.",
            )


def content_sizes(directory: Address) -> dict[str, int]:
    """Return the size in bytes of each file that a digest covers: all but the verdict, by relative name."""
    return {name: size for name, size in files.walk_files(str(directory)) if name != contract.VERDICT_FILE}

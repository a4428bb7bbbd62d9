"""What a model's versions are kept in, whatever it is."""

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
"""Takes one line of progress."""


def silent(line: str) -> None:
    """Say nothing."""
    del line


class Store(ABC):
    """The versions of a model and the log of their changes.

    All methods raise OutputError where the storage cannot be read or written, and BundleError where a
    version is missing or cannot be read. Those that change something are called within `changing`.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of where it is: the model's name, unless another is given."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether anything is there."""

    @abstractmethod
    def create(self) -> None:
        """Make what has to be there before the first version."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Keep others from changing the versions meanwhile.

        Raises:
            OutputBusy: somebody else is at it.
        """

    @abstractmethod
    def versions(self) -> list[int]:
        """The versions that are there as a whole, ascending."""

    @abstractmethod
    def path(self, version: int) -> Address:
        """Where a version is."""

    @abstractmethod
    def read(self, version: int, name: str) -> bytes:
        """A small file of a version.

        Raises:
            FileNotFoundError: it has none of that name.
        """

    @abstractmethod
    def sizes(self, version: int) -> Mapping[str, int]:
        """Bytes of each file of a version, by its name."""

    @abstractmethod
    def digest(self, version: int) -> str:
        """Its digest, as `verdict.digest`; "" where it is known to have changed since it was published."""

    @abstractmethod
    def find(self, source: Path, content: str) -> int | None:
        """The version with this content, or at this very path; None where there is none."""

    @abstractmethod
    def publish(self, source: Path, content: str, *, at_least: int, say: Say) -> int:
        """Make a bundle the next version; before it is whole nobody here sees it and no server loads it.

        Args:
            source: its directory on this machine.
            content: its digest.
            at_least: the number to take where it is above all that are or were there.
            say: told of each step.
        """

    @abstractmethod
    def withdraw(self, version: int) -> str:
        """Take a version out of the server's sight and keep its files; returns where."""

    @abstractmethod
    def remove(self, version: int) -> None:
        """Delete a version; no server ever loads half of one."""

    @abstractmethod
    def append_to_log(self, line: str) -> None:
        """Add a line to the log of changes."""

    @abstractmethod
    def read_log(self) -> Iterator[tuple[str, str]]:
        """The lines of the log, oldest first, each with where it stands."""

    def finish_interrupted(self, say: Say) -> list[int]:
        """Go on with withdrawals and removals that were cut off; returns the versions withdrawn."""
        del say
        return []

    def list_unfinished(self) -> Mapping[int, str]:
        """Numbers that are there and are not versions, and why not."""
        return {}

    def require(self, version: int) -> None:
        """Make sure that a version is there.

        Raises:
            BundleError: it is not.
        """
        there = self.versions()
        if version not in there:
            raise BundleError(
                f"{self} holds no version {version}.",
                remedy=f"Versions there: {', '.join(map(str, there)) or 'none'}.",
            )

    def read_metadata(self, version: int) -> BundleMetadata:
        """What its hubhead.json says."""
        where = f"{self.path(version)}/{contract.METADATA_FILE}"
        try:
            return BundleMetadata.parse(self.read(version, contract.METADATA_FILE), where)
        except FileNotFoundError as error:
            raise BundleError(
                f"{self.path(version)} has no {contract.METADATA_FILE}, so it is not a hubhead bundle.",
                remedy="Make one with hubhead train or hubhead export.",
            ) from error

    def verdict(self, version: int) -> Verdict | None:
        """The verdict in it; None where there is none."""
        try:
            return verdict.parse(self.read(version, contract.VERDICT_FILE), self.path(version))
        except FileNotFoundError:
            return None

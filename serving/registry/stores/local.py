"""Store on a file system: a version is written to a staging directory, checked, and renamed to its number."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from serving import bundle, contract
from serving.errors import BundleError, InputError
from serving.registry import verdict
from serving.registry.stores.store import Say, Store
from serving.storage.lease import Lease

AUDIT_LOG = "audit.jsonl"


class LocalStore(Store):
    """Store below a base path on a file system.

    Args:
        base: directory whose numbered children are the versions.
        lease: lease of the base path; None changes it without a lease.
    """

    def __init__(self, base: Path, lease: Lease | None = None) -> None:
        self.base = base
        self.lease = lease or Lease(str(base))

    def __str__(self) -> str:
        return str(self.base)

    @property
    def name(self) -> str:
        return self.base.resolve().name

    def exists(self) -> bool:
        return self.base.is_dir()

    def versions(self) -> list[int]:
        return bundle.versions(self.base)

    def path(self, version: int) -> Path:
        return bundle.version_directory(self.base, version)

    def read_file(self, version: int, name: str) -> bytes:
        path = self.path(version) / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}.") from error

    def sizes(self, version: int) -> dict[str, int]:
        return file_sizes(self.path(version))

    def digest(self, version: int) -> str:
        return verdict.digest(self.path(version))

    def find(self, source: Path, digest: str) -> int | None:
        size = content_size(source)  # a digest reads all files, so compare sizes first
        for version in reversed(self.versions()):
            other = self.path(version)
            if other.resolve() == source.resolve():
                return version
            if content_size(other) == size and verdict.digest(other) == digest:
                return version
        return None

    def publish(
        self, source: Path, digest: str, *, at_least: int, log: Callable[[int], str], say: Say
    ) -> int:
        say(f"copying {source}")
        with bundle.staging(self.base) as staged:
            try:
                shutil.copytree(source, staged, dirs_exist_ok=True)
            except (OSError, shutil.Error) as error:
                raise BundleError(f"{source} cannot be copied to {self.base}: {error}.") from error
            if verdict.digest(staged) != digest:
                raise BundleError(f"{source} changed while it was copied.", remedy="Promote it again.")
            while staged.exists():  # again if hubhead train, which needs no lease, takes the number
                number = bundle.next_version(self.base, at_least)
                self.lease.publish(self.log_content(log(number)), moves=[(staged.name, str(number))])
            return number

    def withdraw(self, version: int, log: str) -> str:
        name = self.path(version).name
        move = (name, f"{bundle.WITHDRAWN}/{name}")
        self.lease.publish(self.log_content(log), moves=[move], note=version)
        return str(self.base / bundle.WITHDRAWN)

    def remove(self, version: int, log: str) -> None:
        name = self.path(version).name
        # Renamed first, so that no server sees a version of which some files are deleted.
        self.lease.publish(self.log_content(log), moves=[(name, f".removing-{name}")])
        shutil.rmtree(self.base / f".removing-{name}", ignore_errors=True)

    def log_content(self, line: str) -> Mapping[str, bytes]:
        path = self.base / AUDIT_LOG
        before = path.read_bytes() if path.exists() else b""
        # A last line without its end was interrupted before its change was reported as done.
        return {AUDIT_LOG: before[: before.rfind(b"\n") + 1] + f"{line}\n".encode()}

    def read_log(self) -> Iterator[tuple[str, str]]:
        path = self.base / AUDIT_LOG
        try:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}.") from error
        # A last line without its end was interrupted before its change was reported as done.
        complete = [line for line in lines if line.endswith("\n")]
        for number, line in enumerate(complete, 1):
            if line.strip():
                yield f"{path}, line {number}", line


def file_sizes(directory: Path) -> dict[str, int]:
    """Return the size in bytes of each file below a directory, by relative name."""
    return {
        path.relative_to(directory).as_posix(): path.stat().st_size
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def content_size(directory: Path) -> int:
    """Return the total size in bytes of the files that a digest covers: all but the verdict."""
    return sum(size for name, size in file_sizes(directory).items() if name != contract.VERDICT_FILE)

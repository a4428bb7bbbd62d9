"""Store on a file system: a version is written to a staging directory, checked, and renamed to its number."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from serving import bundle
from serving.errors import BundleError
from serving.registry import verdict
from serving.registry.stores.store import LogLine, Say, Store, content_sizes
from serving.storage import files

AUDIT_LOG = "audit.jsonl"


class LocalStore(Store):
    """Store below a base path on a file system."""

    base: Path

    def versions(self) -> list[int]:
        return bundle.versions(self.base)

    def path(self, version: int) -> Path:
        return bundle.version_directory(self.base, version)

    def digest(self, version: int) -> str:
        return verdict.digest(self.path(version))

    def find(self, source: Path, digest: str) -> int | None:
        sizes = content_sizes(source)  # a digest reads all files, so compare sizes first
        for version in reversed(self.versions()):
            other = self.path(version)
            if other.resolve() == source.resolve():
                return version
            if content_sizes(other) == sizes and verdict.digest(other) == digest:
                return version
        return None

    def publish(self, source: Path, digest: str, *, at_least: int, log: LogLine, say: Say) -> int:
        say(f"copying {source}")
        with bundle.staging(self.base) as staged:
            try:
                shutil.copytree(source, staged, dirs_exist_ok=True)
            except OSError as error:
                # shutil.Error has a tuple for each file, of which the first says enough.
                reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error
                raise BundleError(
                    f"{source} cannot be copied to {self.base}: {reason}.",
                    remedy="Check the free space and the permissions there.",
                ) from error
            if verdict.digest(staged) != digest:
                raise BundleError(f"{source} changed while it was copied.", remedy="Promote it again.")
            while staged.exists():  # again if hubhead train, which needs no lease, takes the number
                number = bundle.next_version(self.base, at_least)
                self.lease.publish(self.log_content(log(number)), moves=[(staged.name, str(number))])
            return number

    def withdraw(self, version: int, log: str) -> str:
        name = self.path(version).name
        move = (name, f"{bundle.WITHDRAWN}/{name}")
        self.lease.publish(self.log_content(log), moves=[move])
        return str(self.base / bundle.WITHDRAWN)

    def remove(self, version: int, log: str) -> None:
        name = self.path(version).name
        # Renamed first, so that no server sees a version of which some files are deleted.
        self.lease.publish(self.log_content(log), moves=[(name, f".removing-{name}")])
        shutil.rmtree(self.base / f".removing-{name}", ignore_errors=True)

    def log_content(self, *lines: str) -> Mapping[str, bytes]:
        added = "".join(f"{line}\n" for line in lines)
        return {AUDIT_LOG: self._read_complete_lines() + added.encode()}

    def read_log(self) -> Iterator[tuple[str, str]]:
        for number, line in enumerate(self._read_complete_lines().splitlines(), 1):
            if line.strip():
                yield f"{self.base / AUDIT_LOG}, line {number}", line.decode(errors="replace")

    def _read_complete_lines(self) -> bytes:
        """Return the audit log without a last line that has no end.

        Its writer was interrupted before it reported its change as done.
        """
        path = self.base / AUDIT_LOG
        with files.output_errors(str(path), "read"):
            content = path.read_bytes() if path.exists() else b""
        return content[: content.rfind(b"\n") + 1]

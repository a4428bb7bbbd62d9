"""Store on an object store, which has no atomic rename of directories.

TensorFlow Serving takes every numeric "directory" below the base path for a version as soon as it contains
an object, and loads it at once (file_system_storage_path_source.cc lists children and inspects nothing else).
If saved_model.pb is there before the variables, the server loads a model without weights, since its loader
takes a missing checkpoint for a model that has none. If saved_model.pb is not there yet, the load fails; it
is retried --max_num_load_retries times (5), --load_retry_interval_micros (a minute) apart, and then never. A
version is therefore published in four steps:

1. It is uploaded below another prefix, `.hubhead/arriving/<digest>/`, which takes minutes. An interrupted
   upload is resumed, since the prefix names the content.
2. It gets a number by a record that only one writer can create: `.hubhead/versions/<number>`, in state
   "arriving".
3. It is copied to its number within the store, which takes moments; saved_model.pb comes last.
4. Its record is set to "whole". From now on hubhead treats it as a version.

A version is removed in the opposite order: its record is set to "withdrawing" or "removing", then
saved_model.pb is deleted first, so that a server that starts meanwhile fails to load it instead of loading a
part of it. The next change completes whatever was interrupted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from serving import bundle, contract
from serving.errors import BundleError, InputError, OutputError
from serving.registry import verdict
from serving.registry.stores.local import file_sizes
from serving.registry.stores.store import Say, Store
from serving.storage import files, remote
from serving.storage.address import base_name
from serving.storage.lease import hold_lease

STATE_PREFIX = ".hubhead"
"""Prefix below the base path for staging, records, lease and audit log. No server takes it for a version."""

STAGING_PREFIX = f"{STATE_PREFIX}/arriving"
AUDIT_PREFIX = f"{STATE_PREFIX}/audit"
LEASE_PREFIX = f"{STATE_PREFIX}/lease"
RECORDS_PREFIX = f"{STATE_PREFIX}/versions"


class State(StrEnum):
    """Stage of a version's life cycle."""

    ARRIVING = "arriving"
    WHOLE = "whole"
    WITHDRAWING = "withdrawing"
    REMOVING = "removing"
    GONE = "gone"


_INTERRUPTED = {
    State.ARRIVING: "hubhead was interrupted while publishing it",
    State.WITHDRAWING: "hubhead was interrupted while withdrawing it",
    State.REMOVING: "hubhead was interrupted while removing it",
    State.GONE: "hubhead removed it, and objects are there again",
}
"""Why a number with objects is not a version, by the state of its record."""


@dataclass(frozen=True)
class Record:
    """Record of a version number; it outlives the version, so that numbers are not used again.

    Attributes:
        state: stage of the version.
        content: digest of the version.
        files: size in bytes of each file, by name, without the verdict, which may be replaced.
        token: random token that tells two writers apart.
    """

    state: State
    content: str
    files: Mapping[str, int]
    token: str = ""

    def to_bytes(self) -> bytes:
        """Return the record as it is stored: JSON."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @staticmethod
    def from_bytes(content: bytes, location: str) -> Record:
        """Parse a stored record.

        Raises:
            InputError: the content is not a record.
        """
        try:
            found = json.loads(content)
            return Record(**{**found, "state": State(found["state"])})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{location} is not a version record of hubhead: {error}.", remedy="Remove it."
            ) from error


class ObjectStore(Store):
    """Store below a base path on an object store.

    Args:
        base: address whose numbered children are the versions.
    """

    def __init__(self, base: str) -> None:
        self.base = base

    def __str__(self) -> str:
        return self.base

    @property
    def name(self) -> str:
        return base_name(self.base)

    def exists(self) -> bool:
        return bool(files.list_names(self.base))

    def create(self) -> None:
        """Do nothing: an object store has no directories."""

    def lock(self) -> AbstractContextManager[None]:
        return hold_lease(self.base, LEASE_PREFIX)

    def versions(self) -> list[int]:
        return [number for number, record in self._read_records().items() if record.state is State.WHOLE]

    def path(self, version: int) -> str:
        return self._at(str(version))

    def read_file(self, version: int, name: str) -> bytes:
        return files.read(self._at(f"{version}/{name}"))

    def sizes(self, version: int) -> dict[str, int]:
        return dict(files.walk_files(self._at(str(version))))

    def digest(self, version: int) -> str:
        record = self._read_record(version)
        # Objects may have been lost or replaced; sizes show that without a download.
        return record.content if _without_verdict(self.sizes(version)) == record.files else ""

    def find(self, source: Path, digest: str) -> int | None:
        del source
        matching = (v for v in reversed(self.versions()) if self._read_record(v).content == digest)
        return next(matching, None)

    def publish(self, source: Path, digest: str, *, at_least: int, say: Say) -> int:
        self._remove_interrupted(digest, say)
        sizes = file_sizes(source)
        names = sorted(sizes, key=lambda name: (name == contract.SAVED_MODEL_FILE, name))
        staging = f"{STAGING_PREFIX}/{digest}"
        self._upload(source, staging, sizes, say)
        if verdict.digest(source) != digest:
            files.remove_directory(self._at(staging))
            raise BundleError(f"{source} changed while it was uploaded.", remedy="Promote it again.")
        number, record = self._claim_number(digest, _without_verdict(sizes), at_least)
        say(f"copying to {self.path(number)}")
        for name in names:
            remote.copy(self._at(f"{staging}/{name}"), self._at(f"{number}/{name}"))
        if self.sizes(number) != sizes:
            raise OutputError(
                f"{self.path(number)} differs from what was uploaded: another writer is at work there.",
                remedy="Stop the other writer and promote the bundle again.",
            )
        self._write_record(number, replace(record, state=State.WHOLE))
        files.remove_directory(self._at(staging))
        return number

    def withdraw(self, version: int) -> str:
        self._take_down(version, State.WITHDRAWING)
        return self._at(bundle.WITHDRAWN)

    def remove(self, version: int) -> None:
        self._take_down(version, State.REMOVING)

    def append_to_log(self, line: str) -> None:
        """Write the line as an object of its own: nothing is rewritten, so no earlier line can be lost.

        Objects are numbered. Only one of two concurrent writers can create a number; the other one tries the
        next.
        """
        number = max(
            (int(name) for name in files.list_names(self._at(AUDIT_PREFIX)) if name.isdecimal()), default=0
        )
        while not files.create_if_absent(
            self._at(f"{AUDIT_PREFIX}/{(number := number + 1):08d}"), line.encode()
        ):
            pass

    def read_log(self) -> Iterator[tuple[str, str]]:
        numbers = [name for name in files.list_names(self._at(AUDIT_PREFIX)) if name.isdecimal()]
        addresses = [self._at(f"{AUDIT_PREFIX}/{number}") for number in numbers]
        for address, line in zip(addresses, remote.read_all(addresses), strict=True):
            yield address, line.decode(errors="replace")

    def finish_interrupted(self, say: Say) -> list[int]:
        leaving = {
            number: record
            for number, record in self._read_records().items()
            if record.state in (State.WITHDRAWING, State.REMOVING)
        }
        for number, record in leaving.items():
            say(f"{record.state} version {number}, which was interrupted")
            self._take_down(number, record.state)
        uploads = files.list_names(self._at(STAGING_PREFIX))
        complete = {record.content for record in self._read_records().values() if record.state is State.WHOLE}
        for content in complete.intersection(uploads):
            files.remove_directory(self._at(f"{STAGING_PREFIX}/{content}"))
        return [number for number, record in leaving.items() if record.state is State.WITHDRAWING]

    def list_unfinished(self) -> dict[int, str]:
        records = self._read_records()
        return {
            number: _INTERRUPTED[records[number].state] if number in records else "foreign"
            for number in self._list_numbers()
            if number not in records or records[number].state is not State.WHOLE
        }

    def _list_numbers(self) -> list[int]:
        """List the numbers that a server takes for versions, ascending."""
        return sorted({int(name) for name in files.list_names(self.base) if name.isdecimal()})

    def _read_records(self) -> dict[int, Record]:
        """Read the records of the numbers that have objects, ascending."""
        known = {name for name in files.list_names(self._at(RECORDS_PREFIX)) if name.isdecimal()}
        numbers = [number for number in self._list_numbers() if str(number) in known]
        addresses = [self._at(f"{RECORDS_PREFIX}/{number}") for number in numbers]
        records = map(Record.from_bytes, remote.read_all(addresses), addresses)
        return dict(zip(numbers, records, strict=True))

    def _read_record(self, version: int) -> Record:
        name = f"{RECORDS_PREFIX}/{version}"
        try:
            return Record.from_bytes(files.read(self._at(name)), self._at(name))
        except FileNotFoundError as error:
            raise BundleError(f"{self} has no version {version}.") from error

    def _write_record(self, version: int, record: Record) -> None:
        files.write(self._at(f"{RECORDS_PREFIX}/{version}"), record.to_bytes())

    def _upload(self, source: Path, staging: str, sizes: Mapping[str, int], say: Say) -> None:
        """Upload the files that are missing; the verdict always, since the digest does not cover it."""
        uploaded = dict(files.walk_files(self._at(staging)))
        missing = [n for n in sizes if uploaded.get(n) != sizes[n] or n == contract.VERDICT_FILE]
        for position, name in enumerate(missing, 1):
            say(f"uploading {name} ({sizes[name] / 1e6:.1f} MB, {position} of {len(missing)})")
            remote.upload(str(source / name), self._at(f"{staging}/{name}"))

    def _claim_number(self, content: str, sizes: Mapping[str, int], at_least: int) -> tuple[int, Record]:
        """Return a number for this content, that of an interrupted copy or the next one, and its record."""
        record = Record(State.ARRIVING, content, dict(sizes), secrets.token_hex(8))
        known = {int(name) for name in files.list_names(self._at(RECORDS_PREFIX)) if name.isdecimal()}
        newest = max(known | set(self._list_numbers()), default=0)
        if newest in known:
            last = self._read_record(newest)
            if (last.state, last.content) == (State.ARRIVING, content):
                return newest, last
        number = max(newest + 1, at_least)
        while not files.create_if_absent(self._at(f"{RECORDS_PREFIX}/{number}"), record.to_bytes()):
            number += 1
        return number, record

    def _remove_interrupted(self, content: str, say: Say) -> None:
        """Delete interrupted uploads and copies of any other content."""
        for other in files.list_names(self._at(STAGING_PREFIX)):
            if other != content:
                say(f"removing an interrupted upload of content {other[:12]}")
                files.remove_directory(self._at(f"{STAGING_PREFIX}/{other}"))
        newest = max(self._list_numbers(), default=0)
        for number, record in self._read_records().items():
            if record.state is State.ARRIVING and (record.content != content or number != newest):
                say(f"removing version {number}, which was never complete")
                self._take_down(number, State.REMOVING)

    def _take_down(self, version: int, state: State) -> None:
        """Withdraw or remove a version, in steps that can be repeated after an interruption."""
        record = self._read_record(version)
        self._write_record(version, replace(record, state=state))
        names = sorted(self.sizes(version), key=lambda name: (name != contract.SAVED_MODEL_FILE, name))
        if state is State.WITHDRAWING:
            # saved_model.pb is copied last and deleted first: no prefix holds a model without weights.
            for name in reversed(names):
                remote.copy(self._at(f"{version}/{name}"), self._at(f"{bundle.WITHDRAWN}/{version}/{name}"))
        for name in names:
            files.remove(self._at(f"{version}/{name}"))
        self._write_record(version, replace(record, state=State.GONE))

    def _at(self, name: str) -> str:
        """Return the address of an object."""
        return files.join(self.base, name)


def _without_verdict(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if name != contract.VERDICT_FILE}

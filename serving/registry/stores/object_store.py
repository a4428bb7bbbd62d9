"""Versions on an object store, which has no rename.

TensorFlow Serving takes every numeric "directory" below the base path for a version from its first object
on, and loads it at once (file_system_storage_path_source.cc lists children and looks at nothing else). Where
saved_model.pb is there before the variables it loads a model without weights (its loader takes a missing
checkpoint for a model that has none); where it is not there yet the load fails, and is tried again
--max_num_load_retries times (5), --load_retry_interval_micros (a minute) apart, then never. So a version:

1. is uploaded under another prefix, `.hubhead/arriving/<digest>/`, which takes the minutes; an upload that
   was cut off goes on there, since the prefix names the content;
2. gets a number, by a record that only one can create: `.hubhead/versions/<number>`, "arriving";
3. is copied to its number within the store, which takes moments; saved_model.pb last;
4. is whole, says its record. Here it is a version from now on.

It goes in the other order: "leaving", then saved_model.pb first, so that a server that starts meanwhile
fails on it and does not load half of it. Whatever was cut off is gone on with by the next change.
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
from serving.storage.address import base_name
from serving.storage.lease import hold_lease
from serving.storage.objects import Objects

STATE_PREFIX = ".hubhead"
"""Below the base path: what is kept of the versions. No server takes it for one."""

STAGING_PREFIX = f"{STATE_PREFIX}/arriving"
AUDIT_PREFIX = f"{STATE_PREFIX}/audit"
LEASE_PREFIX = f"{STATE_PREFIX}/lease"
RECORDS_PREFIX = f"{STATE_PREFIX}/versions"


class State(StrEnum):
    """Where a version is on its way."""

    ARRIVING = "arriving"
    WHOLE = "whole"
    WITHDRAWING = "withdrawing"
    REMOVING = "removing"
    GONE = "gone"


@dataclass(frozen=True)
class Record:
    """What is known of a number; it stays when the version goes, so that numbers are not used again.

    Attributes:
        state: where the version is on its way.
        content: its digest.
        files: bytes of each file, by its name; the verdict, which may be replaced, left out.
        token: tells two writers apart.
    """

    state: State
    content: str
    files: Mapping[str, int]
    token: str = ""

    def written(self) -> bytes:
        """As it is kept."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @staticmethod
    def parsed(content: bytes, where: str) -> Record:
        """The record that was written.

        Raises:
            InputError: it is none.
        """
        try:
            found = json.loads(content)
            return Record(**{**found, "state": State(found["state"])})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{where} is no record of hubhead: {error}.", remedy="Remove it.") from error


class ObjectStore(Store):
    """A base path on an object store.

    Args:
        objects: those below it.
    """

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def __str__(self) -> str:
        return self.objects.address

    @property
    def name(self) -> str:
        return base_name(self.objects.address)

    def exists(self) -> bool:
        return bool(self.objects.list_children())

    def create(self) -> None:
        """An object store has no directories."""

    def lock(self) -> AbstractContextManager[None]:
        return hold_lease(self.objects, LEASE_PREFIX)

    def versions(self) -> list[int]:
        return [number for number, record in self._records().items() if record.state is State.WHOLE]

    def path(self, version: int) -> str:
        return self.objects.address_of(str(version))

    def read(self, version: int, name: str) -> bytes:
        return self.objects.read(f"{version}/{name}")

    def sizes(self, version: int) -> dict[str, int]:
        return self.objects.list_sizes(str(version))

    def digest(self, version: int) -> str:
        record = self._record(version)
        return record.content if _judged(self.sizes(version)) == record.files else ""

    def find(self, source: Path, content: str) -> int | None:
        del source
        matching = (v for v in reversed(self.versions()) if self._record(v).content == content)
        return next(matching, None)

    def publish(self, source: Path, content: str, *, at_least: int, say: Say) -> int:
        self._abandon(content, say)
        sizes = file_sizes(source)
        names = sorted(sizes, key=lambda name: (name == contract.SAVED_MODEL_FILE, name))
        staging = f"{STAGING_PREFIX}/{content}"
        self._upload(source, staging, sizes, say)
        if verdict.digest(source) != content:
            self._delete(staging)
            raise BundleError(f"{source} changed while it was uploaded.", remedy="Promote it again.")
        number, record = self._claim(content, _judged(sizes), at_least)
        say(f"copying to {self.path(number)}")
        for name in names:
            self.objects.copy(f"{staging}/{name}", f"{number}/{name}")
        if self.sizes(number) != sizes:
            raise OutputError(
                f"{self.path(number)} does not hold what was uploaded: somebody else writes there.",
                remedy="Promote it again.",
            )
        self._keep(number, replace(record, state=State.WHOLE))
        self._delete(staging)
        return number

    def withdraw(self, version: int) -> str:
        self._leave(version, State.WITHDRAWING)
        return self.objects.address_of(bundle.WITHDRAWN)

    def remove(self, version: int) -> None:
        self._leave(version, State.REMOVING)

    def append_to_log(self, line: str) -> None:
        """One object a line: nothing is read and nothing is rewritten, so no line of before can be lost.

        Its number is the next; of two writers only one can create it, and the other takes the one after.
        """
        number = max(
            (int(name) for name in self.objects.list_children(AUDIT_PREFIX) if name.isdecimal()), default=0
        )
        while not self.objects.create(f"{AUDIT_PREFIX}/{(number := number + 1):08d}", line.encode()):
            pass

    def read_log(self) -> Iterator[tuple[str, str]]:
        names = [
            f"{AUDIT_PREFIX}/{name}"
            for name in sorted(self.objects.list_children(AUDIT_PREFIX))
            if name.isdecimal()
        ]
        for name, line in zip(names, self.objects.read_all(names), strict=True):
            yield self.objects.address_of(name), line.decode(errors="replace")

    def finish_interrupted(self, say: Say) -> list[int]:
        leaving = {
            number: record
            for number, record in self._records().items()
            if record.state in (State.WITHDRAWING, State.REMOVING)
        }
        for number, record in leaving.items():
            say(f"{record.state} version {number}, which was cut off")
            self._leave(number, record.state)
        uploads = self.objects.list_children(STAGING_PREFIX)
        whole = {record.content for record in self._records().values() if record.state is State.WHOLE}
        for content in whole.intersection(uploads):
            self._delete(f"{STAGING_PREFIX}/{content}")
        return [number for number, record in leaving.items() if record.state is State.WITHDRAWING]

    def list_unfinished(self) -> dict[int, str]:
        records = self._records()
        return {
            number: f"hubhead was cut off while {records[number].state} it"
            if number in records
            else "foreign"
            for number in self._numbers()
            if number not in records or records[number].state is not State.WHOLE
        }

    def _numbers(self) -> list[int]:
        """What a server takes for versions, ascending."""
        return sorted({int(name) for name in self.objects.list_children() if name.isdecimal()})

    def _records(self) -> dict[int, Record]:
        """The records of the numbers that have objects, ascending."""
        known = {name for name in self.objects.list_children(RECORDS_PREFIX) if name.isdecimal()}
        numbers = [number for number in self._numbers() if str(number) in known]
        names = [f"{RECORDS_PREFIX}/{number}" for number in numbers]
        found = zip(names, self.objects.read_all(names), strict=True)
        records = (Record.parsed(content, self.objects.address_of(name)) for name, content in found)
        return dict(zip(numbers, records, strict=True))

    def _record(self, version: int) -> Record:
        name = f"{RECORDS_PREFIX}/{version}"
        try:
            return Record.parsed(self.objects.read(name), self.objects.address_of(name))
        except FileNotFoundError as error:
            raise BundleError(f"{self} holds no version {version}.") from error

    def _keep(self, version: int, record: Record) -> None:
        self.objects.write(f"{RECORDS_PREFIX}/{version}", record.written())

    def _upload(self, source: Path, staging: str, sizes: Mapping[str, int], say: Say) -> None:
        """What is not there yet. The verdict always: it is no part of the digest that names the place."""
        there = self.objects.list_sizes(staging)
        missing = [n for n in sizes if there.get(n) != sizes[n] or n == contract.VERDICT_FILE]
        for place, name in enumerate(missing, 1):
            say(f"uploading {name} ({sizes[name] / 1e6:.1f} MB, {place} of {len(missing)})")
            self.objects.upload(source / name, f"{staging}/{name}")

    def _claim(self, content: str, files: Mapping[str, int], at_least: int) -> tuple[int, Record]:
        """A number for this content: the one that it had when it was cut off, else the next."""
        record = Record(State.ARRIVING, content, dict(files), secrets.token_hex(8))
        known = {int(name) for name in self.objects.list_children(RECORDS_PREFIX) if name.isdecimal()}
        newest = max(known | set(self._numbers()), default=0)
        if newest in known:
            last = self._record(newest)
            if (last.state, last.content) == (State.ARRIVING, content):
                return newest, last
        number = max(newest + 1, at_least)
        while not self.objects.create(f"{RECORDS_PREFIX}/{number}", record.written()):
            number += 1
        return number, record

    def _abandon(self, content: str, say: Say) -> None:
        """Delete what was uploaded in part of another content."""
        for other in self.objects.list_children(STAGING_PREFIX):
            if other != content:
                say(f"removing an upload that was cut off, of content {other[:12]}")
                self._delete(f"{STAGING_PREFIX}/{other}")
        newest = max(self._numbers(), default=0)
        for number, record in self._records().items():
            if record.state is State.ARRIVING and (record.content != content or number != newest):
                say(f"removing version {number}, which was never whole")
                self._leave(number, State.REMOVING)

    def _leave(self, version: int, state: State) -> None:
        """Out of the server's sight, in steps that may be repeated."""
        record = self._record(version)
        self._keep(version, replace(record, state=state))
        names = sorted(self.sizes(version), key=lambda name: (name != contract.SAVED_MODEL_FILE, name))
        if state is State.WITHDRAWING:
            for name in reversed(names):
                self.objects.copy(f"{version}/{name}", f"{bundle.WITHDRAWN}/{version}/{name}")
        for name in names:
            self.objects.remove(f"{version}/{name}")
        self._keep(version, replace(record, state=State.GONE))

    def _delete(self, prefix: str) -> None:
        for name in self.objects.list_sizes(prefix):
            self.objects.remove(f"{prefix}/{name}")


def _judged(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if name != contract.VERDICT_FILE}

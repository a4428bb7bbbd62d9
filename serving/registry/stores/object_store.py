"""Store on an object store, which has no atomic rename of directories.

TensorFlow Serving takes every numeric "directory" below the base path for a version as soon as it contains
an object, and loads it at once (file_system_storage_path_source.cc lists children and inspects nothing else).
If saved_model.pb is there before the variables, the server loads a model without weights, since its loader
takes a missing checkpoint for a model that has none. If saved_model.pb is not there yet, the load fails; it
is retried --max_num_load_retries times (5), --load_retry_interval_micros (a minute) apart, and then never. A
version is therefore published in steps:

1. It is uploaded below another prefix, `.hubhead/arriving/<digest>/`, which takes minutes. An interrupted
   upload is resumed, since the prefix names the content.
2. The publication is decided, by an entry in the lease (serving.storage.lease). It is then carried out within
   the store, which takes moments, if need be by the next process that changes the store: the objects are
   copied to their number, saved_model.pb last, and then the record `.hubhead/versions/<number>` is written.
   From now on hubhead treats it as a version.

A version is removed in the opposite order: its record is replaced, then saved_model.pb is deleted first, so
that a server that starts meanwhile fails to load it instead of loading a part of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from serving import bundle, contract
from serving.errors import BundleError, InputError, OutputError
from serving.registry import verdict
from serving.registry.stores.store import LEASE_DIRECTORY, LogLine, Say, Store, content_sizes
from serving.storage import files, remote
from serving.storage.lease import read_intent

STAGING_PREFIX = ".hubhead/arriving"
AUDIT_PREFIX = ".hubhead/audit"
RECORDS_PREFIX = ".hubhead/versions"

_WHOLE, _GONE = "whole", "gone"


@dataclass(frozen=True)
class Record:
    """Record of a version number; it outlives the version, so that numbers are not used again.

    Attributes:
        state: _WHOLE, or anything else for a number that is no version any more.
        content: digest of the version.
        files: size in bytes of each file, by name, without the verdict, which may be replaced.
        token: of earlier versions of hubhead.
    """

    state: str
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
            return Record(**json.loads(content))
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"{location} is not a version record of hubhead: {error}.", remedy="Remove it."
            ) from error


class ObjectStore(Store):
    """Store below a base path on an object store."""

    base: str

    def versions(self) -> list[int]:
        return [number for number, record in self._read_records().items() if record.state == _WHOLE]

    def path(self, version: int) -> str:
        return self._at(str(version))

    def digest(self, version: int) -> str:
        record = self._read_record(version)
        # Objects may have been lost or replaced; sizes show that without a download.
        return record.content if content_sizes(self.path(version)) == record.files else ""

    def find(self, source: Path, digest: str) -> int | None:
        del source
        matching = (v for v in reversed(self.versions()) if self._read_record(v).content == digest)
        return next(matching, None)

    def publish(self, source: Path, digest: str, *, at_least: int, log: LogLine, say: Say) -> int:
        for other in files.list_names(self._at(STAGING_PREFIX)):
            if other != digest:
                say(f"removing an interrupted upload of content {other[:12]}")
                files.remove_directory(self._at(f"{STAGING_PREFIX}/{other}"))
        sizes = dict(sorted(files.walk_files(str(source))))
        staging = f"{STAGING_PREFIX}/{digest}"
        self._upload(source, staging, sizes, say)
        if verdict.digest(source) != digest:
            files.remove_directory(self._at(staging))
            raise BundleError(f"{source} changed while it was uploaded.", remedy="Promote it again.")
        used = [*_list_numbers(self.base), *_list_numbers(self._at(RECORDS_PREFIX))]
        number = max(max(used, default=0) + 1, at_least)
        say(f"copying to {self.path(number)}")
        record = Record(_WHOLE, digest, content_sizes(source))
        self.lease.publish(
            {f"{RECORDS_PREFIX}/{number}": record.to_bytes(), **self.log_content(log(number))},
            moves=[(f"{staging}/{name}", f"{number}/{name}") for name in _model_last(sizes)],
        )
        if self.sizes(number) != sizes:
            raise OutputError(
                f"{self.path(number)} differs from what was uploaded: another writer is at work there.",
                remedy="Stop the other writer and promote the bundle again.",
            )
        return number

    def withdraw(self, version: int, log: str) -> str:
        moves = [
            (f"{version}/{name}", f"{bundle.WITHDRAWN}/{version}/{name}")
            for name in _model_last(self.sizes(version))
        ]
        self.lease.publish(self._gone_content(version, log), moves=moves)
        return self._at(bundle.WITHDRAWN)

    def remove(self, version: int, log: str) -> None:
        names = reversed(_model_last(self.sizes(version)))
        removes = [f"{version}/{name}" for name in names]
        self.lease.publish(self._gone_content(version, log), removes=removes)

    def log_content(self, *lines: str) -> Mapping[str, bytes]:
        """Return each line as an object of its own: nothing is rewritten, so no earlier line can be lost."""
        first = max(_list_numbers(self._at(AUDIT_PREFIX)), default=0) + 1
        return {f"{AUDIT_PREFIX}/{number:08d}": line.encode() for number, line in enumerate(lines, first)}

    def read_log(self) -> Iterator[tuple[str, str]]:
        numbers = _list_numbers(self._at(AUDIT_PREFIX))
        addresses = [self._at(f"{AUDIT_PREFIX}/{number:08d}") for number in numbers]
        for address, line in zip(addresses, remote.read_all(addresses), strict=True):
            yield address, line.decode(errors="replace")

    def list_unfinished(self) -> Mapping[int, str]:
        intent = read_intent(self.base, LEASE_DIRECTORY)
        names = [name for move in intent.get("moves", ()) for name in move] + intent.get("removes", [])
        changing = {name.partition("/")[0] for name in names}
        records = self._read_records()
        unfinished = {}
        for number in _list_numbers(self.base):
            if str(number) in changing:
                unfinished[number] = (
                    "hubhead is changing it or was interrupted, which the next change completes"
                )
            elif number not in records:
                unfinished[number] = "foreign"
            elif records[number].state != _WHOLE:
                unfinished[number] = "hubhead removed it, and objects are there again"
        return unfinished

    def _read_records(self) -> dict[int, Record]:
        """Read the records of the numbers that have objects, ascending."""
        known = set(_list_numbers(self._at(RECORDS_PREFIX)))
        numbers = [number for number in _list_numbers(self.base) if number in known]
        addresses = [self._at(f"{RECORDS_PREFIX}/{number}") for number in numbers]
        records = map(Record.from_bytes, remote.read_all(addresses), addresses)
        return dict(zip(numbers, records, strict=True))

    def _read_record(self, version: int) -> Record:
        name = f"{RECORDS_PREFIX}/{version}"
        try:
            return Record.from_bytes(files.read(self._at(name)), self._at(name))
        except FileNotFoundError as error:
            raise BundleError(f"{self.base} has no version {version}.") from error

    def _gone_content(self, version: int, log: str) -> Mapping[str, bytes]:
        """Return the record of a version that is taken away, and the line of the audit log, by name."""
        record = replace(self._read_record(version), state=_GONE)
        return {f"{RECORDS_PREFIX}/{version}": record.to_bytes(), **self.log_content(log)}

    def _upload(self, source: Path, staging: str, sizes: Mapping[str, int], say: Say) -> None:
        """Upload the files that are missing; the verdict always, since the digest does not cover it."""
        uploaded = dict(files.walk_files(self._at(staging)))
        missing = [n for n in sizes if uploaded.get(n) != sizes[n] or n == contract.VERDICT_FILE]
        for position, name in enumerate(missing, 1):
            say(f"uploading {name} ({sizes[name] / 1e6:.1f} MB, {position} of {len(missing)})")
            remote.upload(str(source / name), self._at(f"{staging}/{name}"))

    def _at(self, name: str) -> str:
        """Return the address of an object."""
        return files.join(self.base, name)


def _list_numbers(directory: str) -> list[int]:
    """List the names in a directory that are numbers, ascending. At the top a server loads them."""
    return sorted({int(name) for name in files.list_names(directory) if name.isdecimal()})


def _model_last(names: Iterable[str]) -> list[str]:
    """Return names with saved_model.pb last: no prefix then ever holds a model without weights."""
    return sorted(names, key=lambda name: (name == contract.SAVED_MODEL_FILE, name))

"""Journal of a labelling session: JSON lines, each synced to disk before its answer counts.

An entry is never changed. A later entry takes an earlier one back (`undo`) or replaces its answers. What a
crash or a full disk leaves is a torn last line, which is cut off when the journal is opened again: its answer
was never confirmed. The lock on the file is released by the kernel when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serving.errors import InputError, OutputBusy, OutputError
from trainer.labelling.types import AnswerNotKept

VERSION = 1

_START = b'{"kind":"start"'
"""Beginning of every journal."""


class StartEntry(msgspec.Struct, frozen=True, tag="start", tag_field="kind"):
    """First entry of each process that writes the journal."""

    version: int
    at: str
    labels: tuple[str, ...]


class LabelEntry(msgspec.Struct, frozen=True, tag="label", tag_field="kind"):
    """New label."""

    name: str
    at: str
    browser: str


class JournalAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer about one photo.

    Attributes:
        uri: path or address of the photo.
        sha256: hex digest of its content.
        label: its label; "" for none of these.
        strategy: what chose the photo.
        seconds: time to the answer.
        test: true if the photo belongs to the test set.
    """

    uri: str
    sha256: str
    label: str
    strategy: str
    seconds: float = 0.0
    test: bool = False


class AnswersEntry(msgspec.Struct, frozen=True, tag="answers", tag_field="kind", omit_defaults=True):
    """Answers that were given at once, and photos of the grid that are not of its label.

    Attributes:
        at: time in UTC, ISO 8601.
        by: person.
        browser: name of the browser.
        answers: the answers.
        rejected: sha256 of the photos that are not of the label `grid`.
        grid: label of the grid.
    """

    at: str
    by: str
    browser: str
    answers: tuple[JournalAnswer, ...]
    rejected: tuple[str, ...] = ()
    grid: str = ""


class SkipEntry(msgspec.Struct, frozen=True, tag="skip", tag_field="kind"):
    """Photos that were skipped, by sha256."""

    at: str
    browser: str
    photos: tuple[str, ...]


class UndoEntry(msgspec.Struct, frozen=True, tag="undo", tag_field="kind"):
    """Take back an earlier entry, by its number in the journal."""

    at: str
    browser: str
    entry: int


Entry = StartEntry | LabelEntry | AnswersEntry | SkipEntry | UndoEntry


@dataclass(frozen=True)
class _Content:
    """Entries of a journal file, and the length of the part that is valid."""

    entries: list[Entry]
    length: int


class Journal:
    """Journal that this process alone may write.

    Args:
        path: file, which is created if there is none.

    Attributes:
        entries: the entries that the file had when it was opened; their numbers are their places.

    Raises:
        OutputBusy: another process has opened it.
        OutputError: the file cannot be created or written.
        InputError: the file is not such a journal, or it is damaged before its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.Lock()
        self._encoder = msgspec.json.Encoder()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            self._lock()
            content = _read(path)
            self.entries: Sequence[Entry] = content.entries
            self._count, self._length = len(content.entries), content.length
            os.ftruncate(self._descriptor, self._length)
            os.fsync(self._descriptor)
            _sync_directory(path.parent)
        except OSError as error:
            self.close()
            raise _cannot_write(path, error) from error
        except BaseException:
            self.close()
            raise

    def append(self, entry: Entry) -> int:
        """Write an entry, sync it to disk, and return its number.

        Raises:
            AnswerNotKept: it could not be written. The journal is as before.
        """
        line = self._encoder.encode(entry) + b"\n"
        with self._mutex:
            try:
                # A former failure may have left a part of its line.
                if os.fstat(self._descriptor).st_size != self._length:
                    os.ftruncate(self._descriptor, self._length)
                written = 0
                while written < len(line):
                    written += os.write(self._descriptor, line[written:])
                os.fsync(self._descriptor)
            except OSError as error:
                self._cut_back()
                raise AnswerNotKept(
                    f"The answer was not kept: {self.path} cannot be written: {error.strerror or error}.",
                    remedy="Free some space or repair the disk, and answer again.",
                ) from error
            self._length += len(line)
            self._count += 1
            return self._count - 1

    def close(self) -> None:
        """Release the lock. May be called twice."""
        with self._mutex:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputBusy(
                f"Another process is labelling into {self.path}.",
                remedy="Use the page of that process, or another --output.",
            ) from error

    def _cut_back(self) -> None:
        """Remove what a failed append has written; if that fails too, the next append does it."""
        try:
            os.ftruncate(self._descriptor, self._length)
            os.fsync(self._descriptor)
        except OSError:
            return


def _read(path: Path) -> _Content:
    """Read a journal up to its last complete entry.

    Lines after it are what a crash has left, since an entry is synced before the next one is written.

    Raises:
        InputError: an entry follows a line that is none, or the version is unknown.
    """
    decoder = msgspec.json.Decoder(Entry)
    entries: list[Entry] = []
    length = position = 0
    broken = ""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            position += len(line)
            try:
                if not line.endswith(b"\n"):
                    raise msgspec.DecodeError("the line has no end")
                entry = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                broken = broken or f"{path}, line {number}: {error}"
                continue
            if broken:
                raise InputError(
                    f"The journal is damaged: {broken}.",
                    remedy="Restore it from a backup, or remove that line.",
                )
            if isinstance(entry, StartEntry) and entry.version > VERSION:
                raise InputError(
                    f"{path} was written by a newer version of hubhead (format {entry.version}).",
                    remedy="Use that version.",
                )
            entries.append(entry)
            length = position
    if broken and not entries and not _is_torn_start(path):
        raise InputError(
            f"{path} is not a labelling journal: {broken}.",
            remedy="Give another --output, or remove the file.",
        )
    return _Content(entries, length)


def _is_torn_start(path: Path) -> bool:
    """Return whether a file is what a crash may leave of the first entry: a part of it, or zeros."""
    with path.open("rb") as file:
        content = file.read(1 << 12)
    return b"\n" not in content and (content.startswith(_START) or _START.startswith(content.rstrip(b"\0")))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror or error}.",
        remedy="Give another --output, or change the permissions.",
    )

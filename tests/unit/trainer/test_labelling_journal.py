"""Journal of a labelling session: durability, torn lines, a full disk, one process at a time."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from serving.errors import InputError, OutputBusy, OutputError
from trainer.labelling.journal import AnswersEntry, Journal, JournalAnswer, StartEntry, UndoEntry
from trainer.labelling.types import AnswerNotKept

START = StartEntry(1, "2026-05-31T10:00:00+00:00", ("pizza", "crème"))


def make_answer(number: int) -> AnswersEntry:
    answer = JournalAnswer(f"/photos/{number}.jpg", f"{number:064x}", "pizza", "mixed", 1.5)
    return AnswersEntry("2026-05-31T10:00:01+00:00", "ann", "browser", (answer,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with a start entry and three answers."""
    path = tmp_path / "labels.csv.journal"
    journal = Journal(path)
    for entry in (START, *map(make_answer, range(3))):
        journal.append(entry)
    journal.close()
    return path


def read(path: Path) -> list[Any]:
    journal = Journal(path)
    journal.close()
    return list(journal.entries)


def test_entries_are_read_as_they_were_written(path: Path) -> None:
    assert read(path) == [START, *map(make_answer, range(3))]


def test_entries_are_numbered_across_processes(path: Path) -> None:
    journal = Journal(path)
    assert journal.append(UndoEntry("", "browser", 3)) == 4
    journal.close()
    assert read(path)[4] == UndoEntry("", "browser", 3)


@pytest.mark.parametrize("torn", [b'{"kind":"ans', b"\x00" * 100, b'{"kind":"answers"}\n', b"\xff\xfe\n\x00"])
def test_a_torn_last_line_is_cut_off_and_the_journal_goes_on(path: Path, torn: bytes) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    journal = Journal(path)
    assert len(journal.entries) == 4
    journal.append(make_answer(7))
    journal.close()
    assert path.read_bytes().startswith(whole)
    assert read(path)[4] == make_answer(7)


@pytest.mark.parametrize("length", range(0, 400, 37))
def test_every_length_that_a_crash_may_leave_can_be_opened(path: Path, length: int) -> None:
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(whole[:length])
    complete = [number for number in range(len(lines) + 1) if len(b"".join(lines[:number])) <= length]
    assert len(read(path)) == complete[-1]


def test_a_damaged_line_before_others_is_an_error(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"damaged\n", *lines[2:]]))
    with pytest.raises(InputError, match="line 2"):
        Journal(path)


def test_another_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("my notes\n")
    with pytest.raises(InputError, match="not a labelling journal"):
        Journal(path)
    assert path.read_text() == "my notes\n"


def test_zeros_that_a_crash_left_of_a_new_journal_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv.journal"
    path.write_bytes(b"\0" * 80)
    assert read(path) == []
    assert path.read_bytes() == b""


def test_a_newer_format_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
    with pytest.raises(InputError, match="newer version"):
        Journal(path)


def test_only_one_process_may_write(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(OutputBusy, match="Another process"):
        Journal(path)
    journal.close()
    Journal(path).close()


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(tmp_path / "file" / "labels.csv.journal")


def test_a_full_disk_keeps_no_answer_and_damages_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    write = os.write

    def write_half(descriptor: int, content: bytes) -> int:
        if len(content) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content[: len(content) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_half)
        with pytest.raises(AnswerNotKept, match="No space left"):
            journal.append(make_answer(8))
    assert journal.append(make_answer(9)) == 4
    journal.close()
    assert read(path)[3:] == [make_answer(2), make_answer(9)]


def test_a_failed_sync_keeps_no_answer_even_if_the_line_cannot_be_removed_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(AnswerNotKept, match="Input/output error"):
            journal.append(make_answer(8))
    assert journal.append(make_answer(9)) == 4
    journal.close()
    assert read(path)[3:] == [make_answer(2), make_answer(9)]


def test_an_answer_is_synced_before_it_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), fsync(fd))[1])
    journal.append(make_answer(8))
    assert synced == [path.stat().st_size]
    journal.close()

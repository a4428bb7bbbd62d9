"""Labelling sessions whose process is killed, or whose disk is full: no confirmed answer is lost."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.labelling import make_candidates
from tests.support.labelling_process import PHOTOS
from tests.support.repository import REPO
from trainer.labelling.session import LabellingSession
from trainer.labelling.settings import SessionSettings


def start(output: Path, limit: int = 0) -> subprocess.Popen[str]:
    """Start a process that labels into the output."""
    command = [sys.executable, "-m", "tests.support.labelling_process", str(output), str(limit)]
    return subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)


def read_rows(output: Path) -> dict[int, str]:
    """Return the label of each photo in the output, which a new session writes from the journal."""
    settings = SessionSettings(near_threshold=2.0)
    LabellingSession(make_candidates(PHOTOS).candidates, output, settings).close()
    with output.open(encoding="utf-8", newline="") as file:
        return {int(Path(row["uri"]).stem): row["label"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("answers", [1, 17, 90])
def test_every_answer_that_was_confirmed_before_sigkill_is_kept(tmp_path: Path, answers: int) -> None:
    output = tmp_path / "labels.csv"
    with start(output) as process:
        assert process.stdout
        confirmed = [int(process.stdout.readline()) for _ in range(answers)]
        process.kill()  # while the next answers are on their way
        confirmed += [
            int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")
        ]
    photos, found = make_candidates(PHOTOS), read_rows(output)
    assert len(set(confirmed)) == len(confirmed)
    # The last answer may be in the journal without having been confirmed.
    assert set(confirmed) <= set(found)
    assert len(found) <= len(confirmed) + 1
    assert all(label == photos.label(row) for row, label in found.items())


def test_a_full_disk_takes_no_answer_and_the_session_goes_on_when_there_is_space(tmp_path: Path) -> None:
    output = tmp_path / "labels.csv"
    with start(output, limit=3000) as process:
        assert process.stdout
        *confirmed, full, last = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert "The answer was not kept" in full
    assert "File too large" in full
    assert len(confirmed) > 5
    assert list(read_rows(output)) == [*map(int, confirmed), int(last)]

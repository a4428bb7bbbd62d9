"""The whole labelling loop: answers by keyboard, undo, SIGKILL, resume, and a training with a better head."""

from __future__ import annotations

import csv
import hashlib
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import PROGRAMS, Browser
from tests.support.label_command import answer_shown, run_label, wait_for_labels
from tests.support.trained import Trained, writable_settings

if TYPE_CHECKING:
    from trainer import TrainResult, TrainSettings

pytestmark = [pytest.mark.tf, pytest.mark.beam, pytest.mark.server, pytest.mark.needs(PROGRAMS)]

ANSWERS, KILLED_AFTER = 30, 14
SEED_PHOTOS, TEST_PHOTOS, UPLOADS = 2, 14, 14
"""Photos of each label: labelled ones to begin with, the test set, and photos to label."""


@dataclass(frozen=True)
class Photos:
    """Copies of the sample photos.

    Attributes:
        labelled: folder with the sets train and test.
        uploads: directory of photos without labels.
        truth: true label of each upload, by its name.
    """

    labelled: Path
    uploads: Path
    truth: dict[str, str]


@pytest.fixture
def photos(trained: Trained, tmp_path: Path) -> Photos:
    found = Photos(tmp_path / "food", tmp_path / "uploads", {})
    found.uploads.mkdir()
    for directory in sorted(path for path in Path(trained.settings.image_dir).iterdir() if path.is_dir()):
        label, files = directory.name, sorted(directory.iterdir(), key=_shuffle)
        for number, file in enumerate(files[: SEED_PHOTOS + TEST_PHOTOS + UPLOADS]):
            name = f"{len(found.truth):04d}{file.suffix}"
            if number < SEED_PHOTOS + TEST_PHOTOS:
                subset = "train" if number < SEED_PHOTOS else "test"
                target = found.labelled / subset / label / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
            else:
                target = found.uploads / name
                found.truth[name] = label
            shutil.copyfile(file, target)
    return found


def _shuffle(file: Path) -> str:
    """Return a key that puts files into a random order, always the same."""
    return hashlib.sha256(f"a{file.name}".encode()).hexdigest()


def train_head(settings: TrainSettings) -> TrainResult:
    from trainer import train

    result = train(settings, say=lambda _: None)
    assert result.test is not None
    return result


@pytest.mark.slow(seconds=40)
def test_thirty_answers_undo_kill_and_resume_give_a_better_head(
    trained: Trained, photos: Photos, tmp_path: Path
) -> None:
    settings = replace(writable_settings(trained, tmp_path), image_dir=photos.labelled)
    before = train_head(settings)
    output, log = tmp_path / "labels.csv", tmp_path / "label.log"
    arguments = (
        *("--photos", str(photos.uploads), "--model", str(before.bundle.path), "--output", str(output)),
        *("--embedding_store", settings.embedding_store, "--test_percentage", "0"),
    )
    with Browser(tmp_path / "profile") as browser:
        with run_label(arguments, log) as (process, url):
            browser.open(url)
            answered = [answer_shown(browser, photos.truth) for _ in range(KILLED_AFTER)]
            wait_for_labels(browser, KILLED_AFTER)
            browser.press("u")
            wait_for_labels(browser, KILLED_AFTER - 1)
            browser.wait_for(f"document.getElementById('name').textContent === '{answered.pop()}'")
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            browser.press("1")
            browser.wait_for("document.getElementById('banner').innerText.includes('does not answer')")
        with run_label(arguments, log) as (process, url):
            browser.open(url)
            wait_for_labels(browser, len(answered))
            answered += [answer_shown(browser, photos.truth) for _ in range(ANSWERS - len(answered))]
            wait_for_labels(browser, ANSWERS)
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        assert browser.messages == [] or all("ERR_CONNECTION" in message for message in browser.messages)
    assert len(set(answered)) == ANSWERS
    with output.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["uri"]).name: row["label"] for row in rows} == {
        name: photos.truth[name] for name in answered
    }
    assert all(float(row["seconds"]) >= 0 and row["by"] and row["at"] for row in rows)
    after = train_head(replace(settings, manifest=output))
    assert after.test is not None
    assert before.test is not None
    # The accuracy on so few photos may fall by chance; tests/bench/labelling measures it over many splits.
    assert after.test.log_loss < before.test.log_loss

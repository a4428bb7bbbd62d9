"""Batch runs that are killed or meet a full disk at random points resume and give identical rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPO
from tests.support.score_job import GOOD, make_bundle

KILLS = 20


@pytest.mark.tf
@pytest.mark.beam
@pytest.mark.slow(seconds=35)
def test_runs_killed_at_random_points_resume_with_identical_rows(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(24):
        (photos / f"{number}.jpg").write_bytes(GOOD + bytes([number]) * number)
    (photos / "twin.jpg").write_bytes((photos / "3.jpg").read_bytes())
    (photos / "text.jpg").write_bytes(b"text")
    (photos / "dangling.jpg").symlink_to(photos / "nowhere")
    model = make_bundle(tmp_path / "models" / "food" / "1")
    given = {"photos": str(photos), "model": str(model), "top": str(tmp_path), "kills": KILLS, "seed": 5}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.crash_tests"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["problems"] == [], done.stderr[-4000:]
    assert report["kills"] >= KILLS
    assert report["full_disks"] >= 1
    assert report["outputs"] >= 4, "each variant at least once"

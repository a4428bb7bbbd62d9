"""The first use of a backbone in a new cache prints none of TensorFlow's start-up messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.tf
@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize(("command", "kept"), [("show", "backbones"), ("build", "downloads")])
def test_the_first_use_prints_no_messages_of_tensorflow(
    cache: Path, tmp_path: Path, command: str, kept: str
) -> None:
    (tmp_path / kept).symlink_to(cache / kept)  # without fingerprints and templates
    done = subprocess.run(
        [sys.executable, "-m", "hubhead", "backbone", command, "efficientnet_lite0"],
        env=os.environ | {"HUBHEAD_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert ("fingerprint" if command == "show" else "efficientnet_lite0") in done.stdout
    assert done.stderr == ""

"""Progress bar on a terminal (a pseudo-terminal)."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from tests.support.repository import REPO

SCRIPT = """
import time
from batch.monitoring.progress import progress_bar
from batch.monitoring.stats import Progress
with progress_bar() as report:
    for done in range(0, 2600, 100):
        report(Progress(done, 2500, done // 500))
        time.sleep(0.1)
print("after")
"""


def test_terminal_shows_a_progress_bar_with_rate_and_time_left() -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=theirs,
        stderr=theirs,
        cwd=REPO,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "110"},
    )
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 65536):
            output += chunk
    except OSError:  # Linux raises EIO at the end of a pseudo-terminal
        pass
    os.close(ours)
    assert child.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode())
    assert re.search(r"2,[0-4]00 of 2,500 photos .* \d+ photos/s, \d s left, 4 rejected", text)
    assert text.rstrip().endswith("after")

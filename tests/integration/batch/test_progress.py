"""How a run gets on: the recent rate, the time left, and what a terminal and a log are told."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from tests.support.repository import REPO

SHOW = """
import time
from batch.monitoring.progress import progress_bar
from batch.monitoring.stats import Progress
with progress_bar() as report:
    for done in range(0, 2600, 100):
        report(Progress(done, 2500, done // 500))
        time.sleep(0.1)
print("after")
"""


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        stdout=theirs,
        stderr=theirs,
        cwd=REPO,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "110"},
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:  # what Linux says at the end of a terminal
        pass
    os.close(ours)
    assert child.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode())
    assert re.search(r"2,[0-4]00 of 2,500 photos .* \d+ photos/s, \d s left, 4 rejected", text)
    assert text.rstrip().endswith("after")

"""hubhead demo, run as a user does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from tests.support.docs import code_blocks
from tests.support.docs.compare import mask
from tests.support.docs.shell import LEFT_OUT

if TYPE_CHECKING:
    from tests.support.trained import Trained

pytestmark = [pytest.mark.tf, pytest.mark.beam]

DEMO = ("-m", "hubhead")

DEMO_WITH_A_TRAINED_BUNDLE = (
    "-c",
    """
import importlib, time, types
import apache_beam, tensorflow  # as after a training and a scoring run
demo = importlib.import_module("trainer.commands.demo")
demo._train = demo._score = lambda *_: types.SimpleNamespace(bundle=None)
demo._predict = lambda *_: time.sleep(400)  # until the interrupt
importlib.import_module("hubhead").main()
""",
)
"""The demo from its fourth step on."""


def start_demo(directory: Path, python: Sequence[str] = DEMO) -> subprocess.Popen[str]:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under nohup; child processes inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, *python, "demo", "--output_dir", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


@pytest.mark.slow(seconds=45)
def test_the_demo_trains_scores_serves_and_predicts(tmp_path: Path) -> None:
    process = start_demo(tmp_path)
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "406 kept with 10 labels" in output
    assert "test accuracy" in output
    assert "N=45" in output
    assert "photos/s" in output
    assert "not_an_image" in output
    bundle = tmp_path / "models" / "food" / "1"
    assert json.loads((bundle / "assets.extra" / "hubhead.json").read_text())["labels"][0] in output
    rows = pq.read_table(tmp_path / "scores" / "scores").to_pylist()
    assert len(rows) == 542
    assert all(row["label"] in output for row in rows)
    printed = {mask(line) for line in output.splitlines()}
    (shown,) = [block for block in code_blocks("README.md", "text") if "Photos" in block]
    assert [line for line in shown.splitlines() if line != LEFT_OUT and mask(line) not in printed] == []
    assert json.loads((tmp_path / "scores" / "run.json").read_text())["photos"] == 542


def test_ctrl_c_stops_the_demo_and_its_server(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.result.bundle.path, tmp_path / "models" / "food" / "1")
    process = start_demo(tmp_path, DEMO_WITH_A_TRAINED_BUNDLE)
    deadline = threading.Timer(400, process.kill)
    deadline.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "local model server ready" in line:
                break
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the whole process group
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 130, rest
    finally:
        deadline.cancel()
        process.kill()
        process.communicate()  # closes its output
    assert "Traceback" not in rest

"""hubhead demo, run as a user does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.tf, pytest.mark.beam, pytest.mark.slow(seconds=45)]


def start_demo(directory: Path) -> subprocess.Popen[str]:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under nohup; child processes inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "-m", "hubhead", "demo", "--output_dir", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


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
    assert json.loads((tmp_path / "scores" / "run.json").read_text())["photos"] == 542


def test_ctrl_c_stops_the_demo_and_its_server(tmp_path: Path) -> None:
    process = start_demo(tmp_path)
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

"""Fits on many photos in blocks: the same head streamed and in memory, with constant memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PEAK = """
import sys, resource
import numpy as np
from pathlib import Path
from trainer import heads
from trainer.heads import block_training

block_training.CHOOSING, block_training.HELD_OUT = 4096, 1024
count = int(sys.argv[1])
random = np.random.default_rng(0)
piece = random.normal(size=(2048, 256)).astype(np.float16)
piece += (np.arange(2048) % 4)[:, None] * piece[:1]

def read():
    for start in range(0, count, 2048):
        size = min(2048, count - start)
        yield piece[:size], (np.arange(2048) % 4)[:size]

settings = heads.HeadSettings(kind=sys.argv[2], memory=1 << 20, width=16)
_, selection = heads.fit_blocks(heads.Blocks(read, count, 256), 4, settings=settings)
assert selection.settings["streamed"]
line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(int(line.split()[1]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["linear", "hidden"])
def test_the_memory_of_a_streamed_fit_is_constant(kind: str) -> None:
    def peak(count: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(count), kind], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    small, large = peak(20_000), peak(200_000)
    # The features alone would take 164 MB more.
    assert large - small < 30e6

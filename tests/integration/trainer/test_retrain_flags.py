"""Command lines of retrain.py and make_image_classifier work, and every flag says what became of it."""

from __future__ import annotations

import subprocess
import sys


def test_the_flags_cost_no_start_up_time() -> None:
    script = (
        "import sys, trainer.commands.retrain_flags; "
        "print(sorted({'tensorflow', 'numpy', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"

"""Import time of the flags of retrain.py and make_image_classifier."""

from __future__ import annotations

import subprocess
import sys


def test_the_flags_import_neither_tensorflow_nor_numpy_nor_rich() -> None:
    script = (
        "import sys, trainer.commands.retrain_flags; "
        "print(sorted({'tensorflow', 'numpy', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"

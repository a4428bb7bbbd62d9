"""The first import of TensorFlow in a process, without its start-up remarks."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from typing import Any

from serving.errors import HubheadError


def import_tensorflow() -> Any:
    """Import TensorFlow and give the module; later imports cost nothing and may be plain ones.

    Its C++ part greets every process with four lines about missing GPU drivers, before any
    log level applies (seen with 2.21), so stderr is held back meanwhile, and let out should
    the import fail.
    """
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            import tensorflow as tf
        except BaseException:
            held_back.seek(0)
            os.write(saved, held_back.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
    tf.get_logger().setLevel("ERROR")
    return tf


def require_tensorflow() -> None:
    """Say how to install TensorFlow where it is missing, before any work.

    Raises:
        HubheadError: it is.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise HubheadError(
            "Running a model needs TensorFlow, which is not installed.",
            remedy="Install it with: pip install 'hubhead[serve]'",
        )

"""Import of TensorFlow without its start-up messages and without Keras."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_START_UP_MESSAGE = re.compile(
    rb"WARNING: All log messages before absl|To enable the following instructions"
    rb"|[IWE]\d{4} |\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
)
"""Beginning of a line that TensorFlow's C++ part logs, in the format of absl or in its own."""

_capturing = threading.Lock()


def import_tensorflow() -> Any:
    """Import TensorFlow and return the module. Later imports can be ordinary import statements.

    Its C++ part prints four lines about missing GPU drivers in every process, before any log
    level applies (seen with 2.21). So stderr is captured during the import, and printed if the
    import fails. Keras, which TensorFlow would import and nothing here uses, is imported on first
    use; together with a paused garbage collector that halves the time.
    """
    if "tensorflow" in sys.modules:
        import tensorflow  # waits for a thread that imports it at the moment

        return tensorflow
    with captured_stderr(), _paused_collector(), _without_keras():
        import tensorflow as tf
    tf.get_logger().setLevel("ERROR")
    _enable_lazy_keras(tf)
    return tf


@contextmanager
def captured_stderr() -> Iterator[None]:
    """Hold back what is written to stderr; TensorFlow's messages are left out unless the block fails.

    The block takes seconds in which other threads log, such as those of a server.
    """
    # One at a time, or the second would take the file of the first for stderr.
    with _capturing, tempfile.TemporaryFile() as captured:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(captured.fileno(), 2)
        is_left_out = _START_UP_MESSAGE.match
        try:
            yield
        except BaseException:
            is_left_out = re.compile(rb"(?!)").match  # none
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            captured.seek(0)
            kept = b"".join(line for line in captured if not is_left_out(line))
            if kept:
                os.write(2, kept)


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause the garbage collector, and exempt the half a million objects that the import creates."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _without_keras() -> Iterator[None]:
    """Hide Keras, which TensorFlow tries to import for its optimizers and can do without."""
    if "keras" in sys.modules or os.environ.get("TF_USE_LEGACY_KERAS"):
        yield
        return
    sys.modules["keras"] = None  # type: ignore[assignment]  # documented: makes the import fail
    try:
        yield
    finally:
        del sys.modules["keras"]


def _enable_lazy_keras(tf: Any) -> None:
    """Make `import tensorflow.keras` find Keras, as after an ordinary import of TensorFlow.

    An import that does not find Keras leaves None in the package path, which is removed.
    """
    tf.__path__ = [entry for entry in tf.__path__ if entry]
    found = importlib.util.find_spec("keras") if "keras" not in sys.modules else None
    if found and found.origin:
        tf.__path__.insert(0, str(Path(found.origin).parent / "_tf_keras"))

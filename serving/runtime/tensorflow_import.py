"""The first import of TensorFlow in a process, without its start-up remarks."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.errors import HubheadError


def import_tensorflow() -> Any:
    """Import TensorFlow and give the module; later imports cost nothing and may be plain ones.

    Its C++ part greets every process with four lines about missing GPU drivers, before any
    log level applies (seen with 2.21), so stderr is held back meanwhile, and let out should
    the import fail. Keras, which it imports too and which nothing here uses, waits until
    somebody asks for it; together with the collector at rest that halves the time.
    """
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held_back, _collector_at_rest(), _without_keras():
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
    _offer_keras(tf)
    return tf


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """No search for garbage among the half a million objects that an import makes and that stay."""
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
    """TensorFlow tries to import Keras for its optimizers, and does without where it is not installed."""
    if "keras" in sys.modules or os.environ.get("TF_USE_LEGACY_KERAS"):
        yield
        return
    sys.modules["keras"] = None  # type: ignore[assignment]  # as documented: the import fails
    try:
        yield
    finally:
        del sys.modules["keras"]


def _offer_keras(tf: Any) -> None:
    """Let `import tensorflow.keras` find Keras, as TensorFlow's own import would have.

    That import leaves None in the path for what it did not find.
    """
    tf.__path__ = [entry for entry in tf.__path__ if entry]
    found = importlib.util.find_spec("keras") if "keras" not in sys.modules else None
    if found and found.origin:
        tf.__path__.insert(0, str(Path(found.origin).parent / "_tf_keras"))


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

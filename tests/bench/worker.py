"""Worker process that runs benchmark variants on request, one at a time."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection

Prepare = Callable[[str, str], Callable[[], float]]
"""Takes a variant's name and setting; returns a function that runs one round and returns photos/s."""


class Worker:
    """A process with one thread setting of TensorFlow, which runs one variant at a time."""

    def __init__(self, setting: str, prepare: Prepare) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=run_worker, args=(other, setting, prepare), daemon=True)
        self._process.start()
        other.close()

    def run(self, name: str) -> float:
        """Run one round of a variant; return photos/s."""
        self._connection.send(name)
        answer = self._connection.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"variant {name!r} failed: {answer}")
        return float(answer)

    def stop(self) -> None:
        """End the process."""
        self._connection.send(None)
        self._process.join(30)


def run_worker(connection: Connection, setting: str, prepare: Prepare) -> None:
    """Receive names of variants and send photos/s, until None arrives."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    ready: dict[str, Callable[[], float]] = {}
    while (name := connection.recv()) is not None:
        try:
            if name not in ready:
                ready[name] = prepare(name, setting)
            connection.send(ready[name]())
        except Exception as error:  # without an answer the parent would wait forever
            connection.send(f"{type(error).__name__}: {error}")

"""A process that runs benchmark variants, one at a time, when it is told to."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection

Prepare = Callable[[str, str], Callable[[], float]]
"""From a variant's name and setting to a function that runs one round of it and gives photos/s."""


class Worker:
    """A process with one setting of TensorFlow's threads, which runs one variant at a time."""

    def __init__(self, setting: str, prepare: Prepare) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, setting, prepare), daemon=True)
        self._process.start()
        other.close()

    def run(self, name: str) -> float:
        """Photos/s of one round of a variant."""
        self._connection.send(name)
        answer = self._connection.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"variant {name!r} failed: {answer}")
        return float(answer)

    def stop(self) -> None:
        self._connection.send(None)
        self._process.join(30)


def serve(connection: Connection, setting: str, prepare: Prepare) -> None:
    """Answer names of variants with photos/s, until None comes."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    ready: dict[str, Callable[[], float]] = {}
    while (name := connection.recv()) is not None:
        try:
            if name not in ready:
                ready[name] = prepare(name, setting)
            connection.send(ready[name]())
        except Exception as error:  # whatever it is, the parent has to hear of it instead of waiting
            connection.send(f"{type(error).__name__}: {error}")

"""Delays before the steps of a scoring run, in driver and workers, without any hook in the product.

Python imports this module at its start if its directory is in PYTHONPATH. It wraps the functions of STEPS as
their modules are imported. The file that HUBHEAD_TEST_DELAYS names says what happens before each call of a
step, and is read at each of them, so that running processes can be steered. A line is `STEP ACTION`:

    Attempt.commit 0.5            sleep for so many seconds
    Attempt.commit ~0.5           sleep for a random time up to so many seconds
    Attempt.commit wait /path     wait for a file, at most a minute; the step is added to the file's .log
    Attempt.commit stop           stop the process (SIGSTOP)
    Attempt.commit fail           raise a ValueError
    Attempt.commit kill           kill the process (SIGKILL)

With `STEP ACTION #N` the action is done before the n-th call in the process alone.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "HUBHEAD_TEST_DELAYS"

STEPS = {
    "serving.storage.files": ("create_if_absent",),
    "serving.storage.lease": ("Lease._advance", "Lease._perform", "Lease.check"),
    "batch.output.attempt": ("Attempt.check", "Attempt.commit"),
    "batch.output.dataset": (
        "Output.list_records",
        "Output.list_row_files",
        "Output.publish_shards",
        "Output.publish_run",
        "Output.remove_attempts",
    ),
    "batch.output.finished": (
        "Publication.__post_init__",
        "Publication.find",
        "Publication.collect",
        "Publication.publish",
    ),
}
"""Steps between the plan of a run and its end, by module."""

_WAIT_SECONDS = 60.0
_calls: Counter[str] = Counter()


def wait_before(step: str) -> None:
    """Do what the file says for a step."""
    _calls[step] += 1
    for action in _read_actions(step):
        *words, last = action.split()
        if last.startswith("#"):
            if _calls[step] != int(last[1:]):
                continue
        else:
            words.append(last)
        _act(step, *words)


def _read_actions(step: str) -> Iterator[str]:
    file = Path(os.environ.get(VARIABLE, ""))
    for line in file.read_text().splitlines() if file.is_file() else ():
        name, _, action = line.partition(" ")
        if name == step:
            yield action


def _act(step: str, action: str, path: str = "") -> None:
    if action == "wait":
        with Path(os.environ[VARIABLE]).with_suffix(".log").open("a") as log:
            log.write(f"{step}\n")
        end = time.monotonic() + _WAIT_SECONDS
        while not Path(path).exists() and time.monotonic() < end:
            time.sleep(0.01)
    elif action == "fail":
        raise ValueError("a step that fails")
    elif action in ("stop", "kill"):
        os.kill(os.getpid(), signal.SIGSTOP if action == "stop" else signal.SIGKILL)
    else:
        seconds = float(action.lstrip("~"))
        time.sleep(random.uniform(0, seconds) if action.startswith("~") else seconds)


def wrap_steps(module: ModuleType) -> None:
    """Wrap the steps of a module."""
    for step in STEPS[module.__name__]:
        owner: Any = module
        *classes, name = step.split(".")
        for part in classes:
            owner = getattr(owner, part)
        setattr(owner, name, _wrap(getattr(owner, name), step))


def _wrap(function: Callable[..., Any], step: str) -> Callable[..., Any]:
    @wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        wait_before(step)
        return function(*arguments, **named)

    return wrapped


class _WrappingLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        wrap_steps(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in STEPS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and spec.loader:
            spec.loader = _WrappingLoader(spec.loader)
        return spec


if os.environ.get(VARIABLE):
    sys.meta_path.insert(0, _Finder())

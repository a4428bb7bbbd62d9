"""Environment, CPU, cores, threads and packages of this process, and the identity of processes."""

from __future__ import annotations

import os
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")


class Variable(StrEnum):
    """Environment variable that hubhead defines.

    Attributes:
        meaning: one sentence that explains the variable to users.
    """

    meaning: str

    CACHE_DIR = (
        "HUBHEAD_CACHE_DIR",
        "Directory for downloads, backbones, traced graphs and the default embedding store, in place of"
        " `$XDG_CACHE_HOME/hubhead` or `~/.cache/hubhead`.",
    )
    HEADERS = (
        "HUBHEAD_HEADERS",
        "Headers of every call to a model server, one `NAME=VALUE` per line, beside those of `--header`."
        " Workers of a batch job read it where they run.",
    )
    METRICS_PUSH = (
        "HUBHEAD_METRICS_PUSH",
        "URL of the Prometheus Pushgateway, or `@FILE` with the URL, as with `--metrics_push`.",
    )
    MODEL = ("HUBHEAD_MODEL", "Name of the model that requests to a server use, as with `--model_name`.")

    def __new__(cls, value: str, meaning: str = "") -> Variable:
        """Create the member with this name, and keep its meaning beside it."""
        variable = str.__new__(cls, value)
        variable._value_, variable.meaning = value, meaning
        return variable


_main_program = threading.Event()


def set_main_program() -> None:
    """Note that this process runs one command of hubhead and no other code."""
    _main_program.set()


def is_main_program() -> bool:
    """Return whether `set_main_program` was called; False where hubhead is used as a library."""
    return _main_program.is_set()


def cores() -> int:
    """Return the number of CPU cores this process may use.

    In a container or under taskset these are fewer than the machine has.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def get_cpu_model() -> str:
    """Return the name of this machine's CPU, such as `AMD EPYC 7B13`; its architecture if it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def map_ahead(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int, ahead: int
) -> Iterator[_Result]:
    """Yield the result of a function for each item, in order, computed by threads.

    Unlike with `ThreadPoolExecutor.map`, memory is bounded: items are taken as their results are needed.

    Args:
        function: function to call.
        items: its arguments.
        threads: number of threads.
        ahead: number of items that are taken before the result of the first one is needed.
    """
    pending: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def call_alone_first(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return a function whose first call others wait for: each call before its end would compile it too."""
    lock, is_compiled = threading.Lock(), threading.Event()

    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if is_compiled.is_set():
            return function(*args, **kwargs)
        with lock:
            result = function(*args, **kwargs)
            is_compiled.set()
            return result

    return call


def get_package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed versions of packages; those that are not installed are left out."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # an optional extra, or hubhead itself if it runs from a source tree
    return versions


def process_identity() -> dict[str, Any]:
    """Return the host name and process id of this process, as a lease records its holder."""
    return {"host": platform.node(), "pid": os.getpid(), "namespace": _pid_namespace()}


def _pid_namespace() -> str:
    """Return what tells containers of one host name apart; "" where there is no such thing."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def is_on_this_host(identity: Mapping[str, Any]) -> bool:
    """Return whether the process of a `process_identity` is of this host and container."""
    return identity.get("host") == platform.node() and identity.get("namespace") == _pid_namespace()


def process_has_ended(identity: Mapping[str, Any]) -> bool:
    """Return whether the process of a `process_identity` is known to have ended.

    Only processes of this host can be checked; False for any other.
    """
    if not is_on_this_host(identity):
        return False
    try:
        os.kill(int(identity.get("pid", 0)), 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return False

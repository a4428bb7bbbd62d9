"""What this process may use of the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any


def cores() -> int:
    """The cores this process may use, which in a container or under taskset are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_process() -> dict[str, Any]:
    """Its host and number, as a lease says who holds it."""
    return {"host": platform.node(), "pid": os.getpid()}


def process_is_gone(about: Mapping[str, Any]) -> bool:
    """Whether that process of `this_process` is known to have ended: on this machine, and no more there."""
    if about.get("host") != platform.node():
        return False
    try:
        os.kill(int(about.get("pid", 0)), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return False

"""What this process may use of the machine."""

from __future__ import annotations

import os


def cores() -> int:
    """The cores this process may use, which in a container or under taskset are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

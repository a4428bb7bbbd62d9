"""Limits of the control group (cgroup v1 or v2) that this process runs in, as of a container."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60
"""Limits of cgroup v1 from which there is none: it writes the largest multiple of a page."""


@dataclass(frozen=True)
class Limits:
    """Smallest limits of a control group and those above it; None for no limit.

    Attributes:
        cores: processor seconds per second.
        memory: bytes of memory.
        memory_left: bytes of memory that are not used yet.
    """

    cores: float | None = None
    memory: int | None = None
    memory_left: int | None = None


def read_limits(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> Limits:
    """Return the limits of this process; none where there are no control groups.

    Args:
        root: where the control groups are mounted.
        membership: file with the group of the process in each hierarchy.
    """
    try:
        lines = membership.read_text("utf-8").splitlines()
    except OSError:
        return Limits()
    quotas: list[float] = []
    memory: list[tuple[int, int]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            directories = list(_list_ancestors(root, path))
            quotas += [quota for one in directories if (quota := _read_quota(one)) is not None]
            memory += [
                pair for one in directories if (pair := _read_memory(one, "memory.max", "memory.current"))
            ]
        for controller in controllers.split(","):
            directories = list(_list_ancestors(root / controller, path))  # cpu is a link to cpu,cpuacct
            if controller == "cpu":
                quotas += [quota for one in directories if (quota := _read_old_quota(one)) is not None]
            elif controller == "memory":
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
                memory += [pair for one in directories if (pair := _read_memory(one, *names))]
    return Limits(
        min(quotas, default=None),
        min((limit for limit, _ in memory), default=None),
        min((max(limit - used, 0) for limit, used in memory), default=None),
    )


def _list_ancestors(root: Path, path: str) -> Iterator[Path]:
    """Yield the directory of a group and of those above it; the path may be that outside of the container."""
    directory = root / path.lstrip("/")
    while directory != root and root in directory.parents:
        yield directory
        directory = directory.parent
    yield root


def _read(file: Path) -> list[str]:
    try:
        return file.read_text("ascii").split()
    except (OSError, ValueError):
        return []


def _read_quota(directory: Path) -> float | None:
    words = _read(directory / "cpu.max")
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _read_old_quota(directory: Path) -> float | None:
    quota, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _read_memory(directory: Path, limit: str, used: str) -> tuple[int, int] | None:
    limits, uses = _read(directory / limit), _read(directory / used)
    if not limits or limits[0] == "max" or int(limits[0]) >= _UNLIMITED_BYTES:
        return None
    return int(limits[0]), int(uses[0]) if uses else 0

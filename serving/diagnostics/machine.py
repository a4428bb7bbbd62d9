"""CPU, memory, directories and ports of this machine, as far as this process may use them."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serving.diagnostics.cgroups import read_limits
from serving.diagnostics.finding import Finding, Level
from serving.errors import OutputError
from serving.process import Variable, cores, get_cpu_model
from serving.storage import files

PORTS = {8500: "--port", 8501: "--rest_api_port"}
"""Ports that the examples use, and the flag of `hubhead serve` for each."""

_FEATURES = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "asimd",
    "sve",
    "bf16",
)
"""Instruction sets that TensorFlow and ONNX Runtime use, by their name in /proc/cpuinfo."""

_GIGABYTE = 1e9
MIN_MEMORY, GOOD_MEMORY = 0.8 * _GIGABYTE, 2 * _GIGABYTE
"""Bytes that the import of TensorFlow needs, and those of a scoring."""

MIN_DISK, GOOD_DISK = 0.1 * _GIGABYTE, 2 * _GIGABYTE
"""Free bytes for a bundle, and those for backbones and a store of some 100,000 photos."""


def check_cpu() -> Iterator[Finding]:
    """Check the CPU, its instruction sets, and the cores that this process may use."""
    features = read_cpu_features()
    shown = " ".join(name for name in _FEATURES if name in features) or "no known vector instructions"
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if is_x86 and features and "avx" not in features:
        yield Finding(
            "CPU",
            Level.ERROR,
            f"{get_cpu_model()}, without AVX, which the wheels of TensorFlow need",
            "Use another machine, or in a virtual machine the CPU model of its host.",
        )
    else:
        yield Finding("CPU", Level.OK, f"{get_cpu_model()}; {shown}")
    yield describe_cores(cores(), os.cpu_count() or 1, read_limits().cores)


def describe_cores(usable: int, existing: int, quota: float | None) -> Finding:
    """Return the finding about the cores.

    Args:
        usable: cores that the process may run on, which are the threads of hubhead.
        existing: cores of the machine.
        quota: processor seconds per second that the container may use; None for no limit.
    """
    found = f"{usable} of {existing} usable"
    if quota is not None and quota < usable:
        return Finding(
            "cores",
            Level.WARNING,
            f"{found}, but the container may use {quota:g} at a time: threads wait for the rest",
            "Give the container whole cores of its own (Kubernetes: CPU manager policy static, or a limit of"
            " all cores), or limit the process with taskset.",
        )
    return Finding("cores", Level.OK, found)


def read_cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the instruction sets of the CPU; empty where the system does not tell."""
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(found, ()))


def check_memory() -> Iterator[Finding]:
    """Check the memory that this process may use."""
    limits = read_limits()
    yield describe_memory(read_available_memory(), limits.memory, limits.memory_left)


def describe_memory(available: int | None, limit: int | None, left: int | None) -> Finding:
    """Return the finding about memory.

    Args:
        available: bytes that the machine can still give to processes; None if unknown.
        limit: bytes that the container may use; None for no limit.
        left: bytes of these that are free; None for no limit.
    """
    known = [number for number in (available, left) if number is not None]
    if not known:
        return Finding("memory", Level.OK, "unknown on this system")
    free = min(known)
    found = f"{free / _GIGABYTE:.1f} GB available"
    found += f", of the container's {limit / _GIGABYTE:.1f} GB" if limit is not None else ""
    if free < GOOD_MEMORY:
        level = Level.WARNING if free >= MIN_MEMORY else Level.ERROR
        return Finding(
            "memory", level, found, "Free memory, or raise the limit: score and train need about 2 GB."
        )
    return Finding("memory", Level.OK, found)


def read_available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes that processes can still have; None where the system does not tell."""
    try:
        lines = meminfo.read_text("ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)


def check_directories() -> Iterator[Finding]:
    """Check the home directory, the cache and the directory of temporary files."""
    try:
        home = Path.home()
        exists = "" if home.is_dir() else ", which does not exist"
        yield Finding("home directory", Level.OK, f"{home}{exists}")
    except RuntimeError:  # a user id without a name
        yield Finding("home directory", Level.OK, "this user has none")
    try:
        yield check_directory("cache directory", files.cache_directory(), Variable.CACHE_DIR)
    except OutputError as error:
        yield Finding("cache directory", Level.ERROR, error.what, error.remedy)
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield Finding(
            "temporary files", Level.ERROR, str(error), "Set TMPDIR to a directory that can be written."
        )
    else:
        yield check_directory("temporary files", temporary, "TMPDIR")


def check_directory(name: str, path: Path, variable: str) -> Finding:
    """Check that a directory can be written and has space; it need not exist yet.

    Args:
        name: what it is for.
        path: its path.
        variable: environment variable that names another one.
    """
    existing = next((one for one in (path, *path.parents) if one.exists()), Path("/"))
    remedy = f"Set {variable} to a directory that can be written."
    try:
        # A file is written, since permissions alone do not tell of read-only file systems and full quotas.
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
    except OSError as error:
        return Finding(name, Level.ERROR, f"{path} cannot be written: {error.strerror}", remedy)
    free = shutil.disk_usage(existing).free
    found = f"{path}, {free / _GIGABYTE:.1f} GB free"
    if free < GOOD_DISK:
        level = Level.WARNING if free >= MIN_DISK else Level.ERROR
        return Finding(
            name, level, found, f"Free space there, or set {variable} to a directory on a larger disk."
        )
    return Finding(name, Level.OK, found)


def check_ports() -> Iterator[Finding]:
    """Check that the ports of a local server are free."""
    for port, flag in PORTS.items():
        if is_port_free(port):
            yield Finding(f"port {port}", Level.OK, "free")
        else:
            remedy = f"For a server beside it: hubhead serve {flag} NUMBER (or -1 and 0: see --help)."
            yield Finding(f"port {port}", Level.WARNING, "in use by another process", remedy)


def is_port_free(port: int) -> bool:
    """Return whether a server could listen at a port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True

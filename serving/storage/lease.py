"""Lock that allows one change at a time: flock on a file system, numbered leases in an object store.

The lease is the object with the highest number. To acquire it, a process creates the next number, which
succeeds for one process only; so two processes that find an abandoned lease cannot both get it. The holder
rewrites its lease every few seconds, and the lease is valid while it is recent. When it is released it is
marked as free and kept, so that the numbers always rise.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.errors import HubheadError, OutputBusy, OutputError
from serving.process import process_has_ended, process_identity
from serving.storage import files

LEASE_SECONDS = 120.0
"""Age in seconds from which a lease counts as abandoned."""

HEARTBEAT_SECONDS = 20.0
"""Seconds between two renewals of a lease."""

_WAIT = "Run the command again when it has finished."


@contextmanager
def hold_file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file within a `with` block; the kernel releases it however the process ends.

    Raises:
        OutputBusy: another process holds the lock.
        OutputError: the directory cannot be written.
    """
    try:
        file = path.open("a")
    except OSError as error:
        raise _unwritable(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputBusy(
                f"Another promotion or rollback is in progress in {path.parent}.", remedy=_WAIT
            ) from error
        except OSError as error:
            raise _unwritable(path, error) from error
        yield


@contextmanager
def hold_lease(base: str, prefix: str) -> Iterator[None]:
    """Hold the lease below a prefix within a `with` block.

    Raises:
        OutputBusy: another process holds the lease.
        OutputError: the lease cannot be written.
    """
    numbers = sorted(int(name) for name in files.list_names(files.join(base, prefix)) if name.isdecimal())
    last = numbers[-1] if numbers else 0
    if last:
        _check_free(base, f"{prefix}/{last:08d}")
    own = f"{prefix}/{last + 1:08d}"
    # The token makes the content unique, so that `create` can tell our own object from another's.
    holder = {**process_identity(), "token": secrets.token_hex(8)}
    if not files.create_if_absent(files.join(base, own), _serialize(holder)):
        raise _busy(base, {})
    for number in numbers:
        files.remove(files.join(base, f"{prefix}/{number:08d}"))
    done = threading.Event()
    thread = threading.Thread(target=_renew_until, args=(base, own, holder, done), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        files.write(files.join(base, own), json.dumps({**holder, "free": True}).encode())


def _check_free(base: str, name: str) -> None:
    """Raise OutputBusy if a lease is neither free nor abandoned."""
    try:
        lease = json.loads(files.read(files.join(base, name)))
    except FileNotFoundError as error:  # another process has just taken it over
        raise _busy(base, {}) from error
    except ValueError:  # damaged: it protects nothing
        return
    fresh = time.time() - float(lease.get("beat", 0)) < LEASE_SECONDS
    if not lease.get("free") and fresh and not process_has_ended(lease):
        raise _busy(base, lease)


def _busy(base: str, lease: dict[str, Any]) -> OutputBusy:
    process = f" (process {lease['pid']} on {lease['host']})" if {"pid", "host"} <= lease.keys() else ""
    return OutputBusy(
        f"Another promotion or rollback is in progress in {base}{process}.",
        remedy=f"{_WAIT} If it was killed, its lease expires after {LEASE_SECONDS:g} s.",
    )


def _renew_until(base: str, own: str, holder: dict[str, Any], done: threading.Event) -> None:
    """Rewrite the lease every few seconds until `done` is set."""
    while not done.wait(HEARTBEAT_SECONDS):
        try:
            files.write(files.join(base, own), _serialize(holder))
        except HubheadError:
            continue  # a later heartbeat may succeed; the lease outlasts several


def _serialize(holder: dict[str, Any]) -> bytes:
    return json.dumps({**holder, "beat": time.time()}).encode()


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path.parent} cannot be written: {error.strerror}.",
        remedy="Give --model_base_path the directory above the versions; you need write permission on it.",
    )

"""Lock that allows one run at a time in an output directory.

On the local disk it is flock, which the kernel releases however the process ends. Object
stores have no locks: there it is a lease file, which its holder rewrites every few seconds and
which is valid while it is recent. If two runs start at the same moment, the last writer wins;
on a storage whose reads lag behind its writes, both could get the lease.
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

LOCK_FILE = "lock"

LEASE_SECONDS = 120.0
"""Age in seconds from which a lease counts as abandoned."""

_HEARTBEAT_SECONDS = 20.0
_SETTLE_SECONDS = 1.0
"""Pause between writing a lease and checking that no other run has overwritten it."""


@contextmanager
def hold(directory: str) -> Iterator[None]:
    """Hold the lock of an output's work directory within a `with` block.

    Raises:
        OutputBusy: another run holds the lock.
        OutputError: the lock file cannot be written.
    """
    uri = files.join(directory, LOCK_FILE)
    with _hold_lease(uri) if files.is_remote(uri) else _hold_file_lock(Path(uri)):
        yield


def _holder() -> dict[str, Any]:
    return {**process_identity(), "since": time.time()}


def _busy(uri: str, holder: Any) -> OutputBusy:
    process = ""
    if isinstance(holder, dict) and holder:
        process = f" (process {holder.get('pid')} on {holder.get('host')})"
    return OutputBusy(
        f"Another run is using this output{process}; its lock is {uri}.",
        remedy="Wait until it ends, stop it, or give another --output.",
    )


@contextmanager
def _hold_file_lock(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error.strerror or error}.",
            remedy="Choose a location that you can write to.",
        ) from error
    # Closing the file releases the lock. The file stays: deleting it would be a race with the next run.
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _busy(str(path), _parse_lease(file.read())) from error
        except OSError as error:
            raise OutputError(
                f"Cannot lock {path}: {error.strerror or error}.",
                remedy="Give an --output on a file system that supports flock, or on an object store.",
            ) from error
        file.truncate(0)
        file.write(json.dumps(_holder()))
        file.flush()
        yield


@contextmanager
def _hold_lease(uri: str) -> Iterator[None]:
    token = secrets.token_hex(8)
    _acquire(uri, token)
    done = threading.Event()
    thread = threading.Thread(target=_renew_until, args=(uri, token, done), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if (lease := _read_lease(uri)) and lease.get("token") == token:
            files.remove(uri)


def _acquire(uri: str, token: str) -> None:
    """Write a lease unless another run holds a valid one."""
    lease = _read_lease(uri)
    if lease and time.time() - float(lease.get("beat", 0)) < LEASE_SECONDS and not process_has_ended(lease):
        raise _busy(uri, lease)
    _write_lease(uri, token)
    time.sleep(_SETTLE_SECONDS)
    # Of several runs that saw no valid lease, only the last writer still finds its own token.
    if (lease := _read_lease(uri)) is None or lease.get("token") != token:
        raise _busy(uri, lease)


def _renew_until(uri: str, token: str, done: threading.Event) -> None:
    """Rewrite the lease every few seconds until `done` is set."""
    while not done.wait(_HEARTBEAT_SECONDS):
        lease = _read_lease(uri)
        if lease and lease.get("token") != token:
            return  # this process was suspended for so long that another run took the lease over
        try:
            _write_lease(uri, token)
        except HubheadError:
            continue  # a later heartbeat may succeed; the lease outlasts several


def _write_lease(uri: str, token: str) -> None:
    files.write(uri, json.dumps({**_holder(), "token": token, "beat": time.time()}).encode())


def _read_lease(uri: str) -> dict[str, Any] | None:
    """Return the content of a lease file, or None if it is missing or damaged."""
    try:
        return _parse_lease(files.read(uri))
    except OSError:
        return None


def _parse_lease(text: str | bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None

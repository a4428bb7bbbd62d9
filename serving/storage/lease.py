"""One change at a time: flock on a file system, numbered lease objects on an object store.

A lease is the object with the highest number. Who wants it creates the next number, which only one can;
so two that find a lease abandoned do not both get it. It is written again every few seconds, and counts
as long as it is fresh. In the end it is marked free and stays, so that numbers only ever rise.
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
from serving.storage.objects import Objects

LEASE_SECONDS = 120.0
"""How old a lease may grow before its holder counts as dead."""

HEARTBEAT_SECONDS = 20.0

_BUSY = "Run the command again when it is done."


@contextmanager
def hold_file_lock(path: Path) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it however the process ends.

    Raises:
        OutputBusy: somebody else holds it.
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
                f"Another promotion or rollback is at work in {path.parent}.", remedy=_BUSY
            ) from error
        except OSError as error:
            raise _unwritable(path, error) from error
        yield


@contextmanager
def hold_lease(objects: Objects, prefix: str) -> Iterator[None]:
    """Hold the lease below a prefix.

    Raises:
        OutputBusy: somebody else holds it.
        OutputError: the store does not take it.
    """
    numbers = sorted(int(name) for name in objects.list_children(prefix) if name.isdecimal())
    last = numbers[-1] if numbers else 0
    if last:
        _check_free(objects, f"{prefix}/{last:08d}")
    own = f"{prefix}/{last + 1:08d}"
    about = {**process_identity(), "token": secrets.token_hex(8)}
    if not objects.create(own, _written(about)):
        raise _busy(objects, {})
    for number in numbers:
        objects.remove(f"{prefix}/{number:08d}")
    done = threading.Event()
    thread = threading.Thread(target=_beat, args=(objects, own, about, done), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        objects.write(own, json.dumps({**about, "free": True}).encode())


def _check_free(objects: Objects, name: str) -> None:
    try:
        lease = json.loads(objects.read(name))
    except FileNotFoundError as error:  # taken over this moment
        raise _busy(objects, {}) from error
    except ValueError:
        return
    fresh = time.time() - float(lease.get("beat", 0)) < LEASE_SECONDS
    if not lease.get("free") and fresh and not process_has_ended(lease):
        raise _busy(objects, lease)


def _busy(objects: Objects, lease: dict[str, Any]) -> OutputBusy:
    who = f" (process {lease['pid']} on {lease['host']})" if {"pid", "host"} <= lease.keys() else ""
    return OutputBusy(
        f"Another promotion or rollback is at work in {objects.address}{who}.",
        remedy=f"{_BUSY} If it was killed, its lease ends after {LEASE_SECONDS:g} s.",
    )


def _beat(objects: Objects, own: str, about: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_SECONDS):
        try:
            objects.write(own, _written(about))
        except HubheadError:
            continue  # the next one may get through; the lease lasts for several


def _written(about: dict[str, Any]) -> bytes:
    return json.dumps({**about, "beat": time.time()}).encode()


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path.parent} cannot be written: {error.strerror}.",
        remedy="Give --model_base_path the directory above the versions, one that you may write.",
    )

"""One run at a time in an output.

On the local disk it is flock, which the kernel lets go of however the process ends. Object
stores have no such thing: a lease file there is written again every few seconds, and counts
as long as it is fresh. Two runs that begin in the same moment are told apart by who wrote
last; a storage whose listing lags behind its writes could still let both through.
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
"""How old a lease may grow before the run that held it counts as dead."""

_BEAT_SECONDS = 20.0
_SETTLE_SECONDS = 1.0


@contextmanager
def hold(directory: str) -> Iterator[None]:
    """Hold the lock of an output's work directory.

    Raises:
        OutputBusy: another run holds it.
        OutputError: it cannot be written.
    """
    uri = files.join(directory, LOCK_FILE)
    with _leased(uri) if files.is_remote(uri) else _locked(Path(uri)):
        yield


def _about() -> dict[str, Any]:
    return {**process_identity(), "since": time.time()}


def _busy(uri: str, about: Any) -> OutputBusy:
    who = f" (process {about.get('pid')} on {about.get('host')})" if isinstance(about, dict) and about else ""
    return OutputBusy(
        f"Another run is at work in this output{who}; its lock is {uri}.",
        remedy="Wait for it, stop it, or give another --output.",
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error.strerror or error}.", remedy="Choose a place you may write to."
        ) from error
    with file:  # the lock goes with the descriptor, and the file stays: removing it would be a race
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _busy(str(path), _parsed(file.read())) from error
        except OSError as error:
            raise OutputError(
                f"Cannot lock {path}: {error.strerror or error}.",
                remedy="Give an --output on a file system with locks, or on an object store.",
            ) from error
        file.truncate(0)
        file.write(json.dumps(_about()))
        file.flush()
        yield


@contextmanager
def _leased(uri: str) -> Iterator[None]:
    token = secrets.token_hex(8)
    _take(uri, token)
    done = threading.Event()
    thread = threading.Thread(target=_beat, args=(uri, token, done), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if (lease := _lease(uri)) and lease.get("token") == token:
            files.remove(uri)


def _take(uri: str, token: str) -> None:
    lease = _lease(uri)
    if lease and time.time() - float(lease.get("beat", 0)) < LEASE_SECONDS and not process_has_ended(lease):
        raise _busy(uri, lease)
    _write(uri, token)
    time.sleep(_SETTLE_SECONDS)
    if (lease := _lease(uri)) is None or lease.get("token") != token:
        raise _busy(uri, lease)


def _beat(uri: str, token: str, done: threading.Event) -> None:
    while not done.wait(_BEAT_SECONDS):
        lease = _lease(uri)
        if lease and lease.get("token") != token:
            return  # this process slept so long that another run took over
        try:
            _write(uri, token)
        except HubheadError:
            continue  # the next one may get through; the lease lasts for several


def _write(uri: str, token: str) -> None:
    files.write(uri, json.dumps({**_about(), "token": token, "beat": time.time()}).encode())


def _lease(uri: str) -> dict[str, Any] | None:
    try:
        return _parsed(files.read(uri))
    except OSError:
        return None


def _parsed(text: str | bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None

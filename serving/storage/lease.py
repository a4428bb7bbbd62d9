"""Lease on a directory: one process at a time changes it, and nobody else can publish there, however late.

A lease is a chain of numbered files, `<root>/<directory>/00000007`, of which the one with the highest number
counts. Each step creates the next number, and files.create_if_absent lets one process succeed:

- To acquire the lease, if the last entry is free or abandoned: its process has ended on this host, or the
  holder has not renewed its beat (`beat-<token>`) for LEASE_SECONDS. A process of another host may have been
  killed just now, so the next one waits until the lease is renewed or expires.
- To publish. The entry has an intent: files to move into place, which were staged before, and files to
  delete. If the entry cannot be created, another process took over, and LeaseLost is raised. Otherwise the
  publication is decided. The holder carries it out; if it is interrupted, the next holder does, before
  anything else.

So a process that was stopped for longer than its lease (SIGSTOP, a suspended machine) fails at its next
step. One that was stopped while it carried out an intent finds its staged files gone, since the next holder
moved or deleted them, and moves nothing. The lease is checked before each step. Worker processes publish
nothing; they `check` a copy of the lease to notice that their holder was replaced.

What each storage contributes:

- S3, Google Cloud Storage, Azure: conditional writes, consistent listings, and copies that the store makes in
  one request, which fails if the source is gone. An S3-compatible store without If-None-Match lets two
  processes in, of which the later one wins.
- Local disk: a hard link creates an entry with its content, and a rename moves a staged file. Without hard
  links the entry is created exclusively and then written. A process that reads it in between takes the lease
  over, and the first one fails at its next step.
- NFS: link and rename are atomic on the server. A listing may be seconds old. That lets no second process in,
  since creating an entry does not depend on it, nor does a late one find its staged files.

One case is left: a process that is stopped exactly between a check and the deletion of a file deletes it
when it continues, which matters if the file was created again under the same name meanwhile. Clocks of
several hosts are compared for the age of a beat only: if they differ by more than LEASE_SECONDS, a lease is
taken over early and its holder fails, but nothing is damaged.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from serving.errors import HubheadError, LeaseLost, OutputBusy
from serving.process import is_on_this_host, process_has_ended, process_identity
from serving.storage import files, remote

LEASE_SECONDS = 120.0
"""Age in seconds from which a beat counts as the last one of its process."""

HEARTBEAT_SECONDS = 20.0
"""Seconds between two beats."""

POLL_SECONDS = 1.0
"""Seconds between two looks at the lease of a process of another host."""

CONCURRENT = 32
"""Files of an unordered publication that are moved or deleted at a time on remote storage."""

_log = logging.getLogger(__name__)

T = TypeVar("T")

Move = tuple[str, str]
"""Name of a file, and the name that it gets, replacing any file of that name."""


@dataclass
class Lease:
    """Right to change the files below a root; can be sent to worker processes. All names are relative to it.

    Without a directory it stands for no lease at all: everything is done at once and unchecked.

    Attributes:
        root: path or address.
        directory: name of the directory of the chain.
        token: random name of the holder.
        number: number of the holder's last entry.
        intent: what that entry is to publish; None once it is done.
    """

    root: str
    directory: str = ""
    token: str = ""
    number: int = 0
    intent: dict[str, Any] | None = None

    @property
    def staging(self) -> str:
        """Name of the holder's own directory, which is deleted when the lease is released or taken over."""
        return files.join(self.directory, "staged", self.token)

    def check(self) -> None:
        """Check that no other process has taken the lease over.

        Raises:
            LeaseLost: another process has.
        """
        if not self.directory or (newest := self._find_newest()) == self.number:
            return
        # The holder may have published since it sent the lease to this process.
        if (self._read(newest) or {}).get("token") != self.token:
            raise self._lost_error()

    def stage(self, contents: Mapping[str, bytes]) -> list[Move]:
        """Write the contents of files to the staging directory; return the moves that put them into place.

        Raises:
            OutputError: a file cannot be written.
        """
        moves = []
        for name, content in contents.items():
            staged = files.join(self.staging, secrets.token_hex(8)) if self.directory else name
            files.write(self._at(staged), content)
            moves.append((staged, name))
        return moves if self.directory else []

    def publish(
        self,
        contents: Mapping[str, bytes] | None = None,
        *,
        moves: Iterable[Move] = (),
        removes: Iterable[str] = (),
        unordered: bool = False,
    ) -> None:
        """Move files into place, create or replace others, and then delete files: all of it or nothing.

        Args:
            contents: contents of the files to create or replace, by name.
            moves: files to move; on remote storage they are copied in this order and then deleted in reverse.
            removes: names of files to delete, in this order.
            unordered: whether many files of remote storage may be moved, and then deleted, at a time.

        Raises:
            LeaseLost: another process took over; nothing is published.
            OutputError: a file cannot be written. If it was decided, the next holder completes it.
        """
        moves = [*moves, *self.stage(contents or {})]
        intent = {"moves": moves, "removes": list(removes), "unordered": unordered}
        if moves or intent["removes"]:
            self._advance(intent)
            self._finish(intent)

    def _advance(self, intent: dict[str, Any] | None) -> None:
        """Create the next entry of the chain.

        Raises:
            LeaseLost: another process has created it, or a later one.
        """
        if not self.directory:
            return
        number = self.number + 1
        created = files.create_if_absent(self._entry(number), self._serialize(intent=intent))
        # Old entries are deleted, so the number may be free although the chain is further.
        if not created or self._find_newest() != number:
            raise self._lost_error()
        self.number, self.intent = number, intent

    def _finish(self, intent: dict[str, Any]) -> None:
        """Carry an intent out, and record that it is done."""
        self._perform(intent)
        if self.directory:
            files.write(self._entry(self.number), self._serialize(intent=None))
        self.intent = None

    def _perform(self, intent: Mapping[str, Any]) -> None:
        """Carry an intent out. What another process has already moved is skipped."""
        is_remote = files.is_remote(self.root)
        at_once = CONCURRENT if is_remote and intent.get("unordered") else 1

        def move(names: Move) -> None:
            if not (remote.copy if is_remote else files.rename)(*map(self._at, names)):
                self.check()

        def remove(name: str) -> None:
            files.remove(self._at(name))

        sources = [source for source, _ in reversed(intent["moves"])] if is_remote else []
        self._each(intent["moves"], move, at_once)
        self._each([*sources, *intent["removes"]], remove, at_once)

    def _each(self, items: Sequence[T], action: Callable[[T], None], at_once: int) -> None:
        """Carry out an action on each item, some of them at a time, unless the lease is lost."""
        with ThreadPoolExecutor(at_once) as pool:
            for start in range(0, len(items), at_once):
                self.check()
                list(pool.map(action, items[start : start + at_once]))

    def _acquire(self, activity: str) -> None:
        """Create the entry that makes this process the holder, waiting for that of a silent one to expire.

        Raises:
            OutputBusy: another process holds the lease.
        """
        found, start = None, time.monotonic()
        while True:
            with files.output_errors(self._at(self.directory), "read"):
                self.number = self._find_newest()
                last: dict[str, Any] = (self._read(self.number) if self.number else {"free": True}) or {}
                renewed = self._read_renewal(last)
            # Waiting ends by this clock too, since that of the other host may be fast.
            left = LEASE_SECONDS - max(time.time() - renewed, time.monotonic() - start)
            if last.get("free") or process_has_ended(last) or left <= 0:
                break
            if found is None and not is_on_this_host(last):
                found = self.number, renewed
                _log.warning(
                    "%s %s%s, unless it was killed. Waiting until its lease is renewed or expires (%.0f s).",
                    activity,
                    self.root,
                    _describe_holder(last),
                    left,
                )
            if found != (self.number, renewed):
                raise self._busy_error(activity, last)
            time.sleep(min(POLL_SECONDS, left))
        try:
            self._advance(last.get("intent"))
        except LeaseLost as error:
            raise self._busy_error(activity, {}) from error

    def _recover(self) -> None:
        """Complete the publication of an interrupted holder, and delete what earlier holders left."""
        if self.intent:
            self._finish(self.intent)
        for name in files.list_names(self._at(self.directory)):
            left = ("beat-", files.TEMPORARY_PREFIX)
            if name.startswith(left) or (name.isdecimal() and int(name) < self.number):
                files.remove(self._at(files.join(self.directory, name)))
        for token in files.list_names(self._at(files.join(self.directory, "staged"))):
            files.remove_directory(self._at(files.join(self.directory, "staged", token)))

    def _beat_until(self, done: threading.Event) -> None:
        """Renew the beat until `done` is set or the lease is lost."""
        while not done.wait(HEARTBEAT_SECONDS):
            try:
                self.check()
                files.write(self._at(self._beat(self.token)), json.dumps({"time": time.time()}).encode())
            except LeaseLost:
                return
            except HubheadError:
                continue  # a later beat may succeed; the lease outlasts several

    def _release(self) -> None:
        with suppress(HubheadError):  # otherwise the lease expires
            if not self.intent:
                files.remove_directory(self._at(self.staging))
            self.check()
            files.write(self._entry(self.number), self._serialize(intent=self.intent, free=True))
            files.remove(self._at(self._beat(self.token)))

    def _read_renewal(self, entry: Mapping[str, Any]) -> float:
        """Return when the holder of an entry was last seen, in seconds since 1970 by its own clock."""
        beat = _read_json(self._at(self._beat(str(entry.get("token"))))) or {}
        return max(float(entry.get("time", 0)), float(beat.get("time", 0)))

    def _serialize(self, **values: Any) -> bytes:
        # The token and the time make the content unique, as files.create_if_absent requires.
        return json.dumps({**process_identity(), "token": self.token, "time": time.time(), **values}).encode()

    def _find_newest(self) -> int:
        names = files.list_names(self._at(self.directory))
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def _read(self, number: int) -> dict[str, Any] | None:
        return _read_json(self._entry(number))

    def _at(self, name: str) -> str:
        return files.join(self.root, name)

    def _entry(self, number: int) -> str:
        return self._at(files.join(self.directory, f"{number:08d}"))

    def _beat(self, token: str) -> str:
        return files.join(self.directory, f"beat-{token}")

    def _busy_error(self, activity: str, entry: Mapping[str, Any]) -> OutputBusy:
        return OutputBusy(
            f"{activity} {self.root}{_describe_holder(entry)}.",
            remedy="Run the command again when it has finished.",
        )

    def _lost_error(self) -> LeaseLost:
        entry = self._read(self._find_newest()) or {}
        return LeaseLost(
            f"This process was stopped for longer than its lease of {self.root} ({LEASE_SECONDS:g} s), and"
            f" another process{_describe_holder(entry)} took over; this one has published nothing since.",
            remedy="Run the same command again.",
        )


@contextmanager
def hold(root: str, directory: str, activity: str) -> Iterator[Lease]:
    """Hold the lease of a directory within a `with` block.

    Args:
        root: path or address below which only the holder changes files.
        directory: name of the lease's own directory below the root.
        activity: what another holder does, for its error, such as "Another run is writing to".

    Raises:
        OutputBusy: another process holds the lease.
        OutputError: the lease cannot be written.
        LeaseLost: another process took over within the block.
    """
    lease = Lease(root, directory, secrets.token_hex(8))
    lease._acquire(activity)
    done = threading.Event()
    thread = threading.Thread(target=lease._beat_until, args=(done,), name="lease", daemon=True)
    thread.start()
    try:
        lease._recover()
        yield lease
    except Exception:
        lease.check()  # if it is lost, that is why: the process that took over deletes what was staged
        raise
    finally:
        done.set()
        thread.join()
        lease._release()


def read_intent(root: str, directory: str) -> Mapping[str, Any]:
    """Return the moves and removes of an interrupted publication; {} if there is none."""
    lease = Lease(root, directory)
    return (lease._read(lease._find_newest()) or {}).get("intent") or {}


def _describe_holder(entry: Mapping[str, Any]) -> str:
    return f" (process {entry['pid']} on {entry['host']})" if {"pid", "host"} <= entry.keys() else ""


def _read_json(uri: str) -> dict[str, Any] | None:
    """Return the content of a JSON object; None if there is no such file, {} if it is damaged."""
    try:
        content = json.loads(files.read(uri))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}

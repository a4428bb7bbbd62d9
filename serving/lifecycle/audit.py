"""Who changed what, and when: `<base>/audit.jsonl`, one line a change, only ever appended to."""

from __future__ import annotations

import datetime
import getpass
import json
import os
import socket
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path

from serving.errors import InputError, OutputError

FILE = "audit.jsonl"


class Action(StrEnum):
    """What was done."""

    PUBLISH = "publish"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    WITHDRAW = "withdraw"
    REMOVE = "remove"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def now() -> str:
    """The time of day as the records have it: ISO 8601, UTC, seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Event:
    """One change.

    Attributes:
        action: what was done.
        model: the model's name.
        old, new: the versions before and after; None: none. "from" and "to" in the file.
        label: the version label that moved; None where no label is used.
        blessed: what the verdict on `new` says; None: there is none, or it is about other content.
        failed: the checks that `new` did not pass.
        forced: whether it was done in spite of that.
        reason: what the person said of it.
        source: where a published version came from.
        at: when.
        who: user and host.
    """

    action: Action
    model: str
    old: int | None
    new: int | None
    label: str | None = None
    blessed: bool | None = None
    failed: tuple[str, ...] = ()
    forced: bool = False
    reason: str = ""
    source: str = ""
    at: str = field(default_factory=now)
    who: str = field(default_factory=_who)


_NAMES = {"old": "from", "new": "to"}


def append(base: Path, event: Event) -> None:
    """Add a line, in one write, so that lines of two writers never mix.

    Raises:
        OutputError: the file cannot be written.
    """
    record = {_NAMES.get(name, name): value for name, value in asdict(event).items()}
    path = base / FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(record, ensure_ascii=False) + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error


def read(base: Path) -> list[Event]:
    """All events, oldest first; a torn last line is left out.

    Raises:
        InputError: the file cannot be read, or a line is no event.
    """
    path = base / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    whole = [line for line in lines if line.endswith("\n")]
    return [_event(path, number, line) for number, line in enumerate(whole, 1) if line.strip()]


def _event(path: Path, number: int, line: str) -> Event:
    try:
        record = json.loads(line)
        own = {f.name: record[_NAMES.get(f.name, f.name)] for f in fields(Event)}
        return Event(**own | {"action": Action(own["action"]), "failed": tuple(own["failed"])})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}, line {number} is no event of hubhead: {error}.", remedy="Mend or remove that line."
        ) from error


def previous(
    events: Iterable[Event], label: str | None, current: int | None, there: Collection[int]
) -> int | None:
    """The version that a label was on before the one it is on now, of those that are still there.

    A rollback undoes a promotion, so that a second one goes further back and not forth again.
    """
    stack: list[int] = []
    for event in events:
        if event.label != label or event.new is None:
            continue
        if event.action is Action.PROMOTE:
            if event.old is not None and (not stack or stack[-1] != event.old):
                stack.append(event.old)
            stack.append(event.new)
        elif event.action is Action.ROLLBACK:
            while stack and stack[-1] != event.new:
                stack.pop()
            stack = stack or [event.new]
    return next((version for version in reversed(stack) if version != current and version in there), None)

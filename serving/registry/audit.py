"""Who changed what, and when: one line a change, only ever appended to.

`<base>/audit.jsonl`, or the objects of `<base>/.hubhead/audit/`.
"""

from __future__ import annotations

import datetime
import getpass
import json
import os
import socket
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum

from serving.errors import InputError
from serving.registry.stores.store import Store


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


def append(store: Store, event: Event) -> None:
    """Add a line.

    Raises:
        OutputError: it cannot be written.
    """
    record = {_NAMES.get(name, name): value for name, value in asdict(event).items()}
    store.append_to_log(json.dumps(record, ensure_ascii=False))


def read(store: Store) -> list[Event]:
    """All events, oldest first.

    Raises:
        InputError: the log cannot be read, or a line is no event.
    """
    return [_event(where, line) for where, line in store.read_log()]


def _event(where: str, line: str) -> Event:
    try:
        record = json.loads(line)
        own = {f.name: record[_NAMES.get(f.name, f.name)] for f in fields(Event)}
        return Event(**own | {"action": Action(own["action"]), "failed": tuple(own["failed"])})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{where} is no event of hubhead: {error}.", remedy="Mend or remove that."
        ) from error


def previous_version(
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

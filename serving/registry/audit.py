"""Append-only audit log: who changed what, and when; one JSON line per change.

Stored in `<base>/audit.jsonl`, or on an object store as the objects below `<base>/.hubhead/audit/`.
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
from serving.text import escape_controls, redact


class Action(StrEnum):
    """Kind of change."""

    PUBLISH = "publish"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    WITHDRAW = "withdraw"
    REMOVE = "remove"


def _user_at_host() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user id without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def now() -> str:
    """Return the current time as ISO 8601 in UTC, with a resolution of seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Event:
    """One entry of the audit log.

    Attributes:
        action: kind of change.
        model: name of the model.
        old: version before the change, or None; stored as "from".
        new: version after the change, or None; stored as "to".
        label: version label that moved; None if labels are not used.
        blessed: result of the verdict on `new`; None if there is no verdict or it is void because the
            content has changed.
        failed: names of the checks that `new` failed.
        forced: True if the change was made although the gate had not blessed the version.
        reason: reason stated by the user.
        source: where a published version was copied from.
        at: time at which the change began, ISO 8601 in UTC.
        who: user and host, as user@host.
        operation: identifier of the change, by which a repetition is recognised; "" for none.
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
    who: str = field(default_factory=_user_at_host)
    operation: str = ""


_KEYS = {"old": "from", "new": "to"}
"""JSON keys that differ from the attribute's name: `from` is a keyword of Python."""


def to_line(event: Event) -> str:
    """Return an event as a line of the log, without its end."""
    record = {_KEYS.get(name, name): value for name, value in asdict(event).items()}
    # A reason or a path may have bytes that are not UTF-8, an address a password.
    return escape_controls(json.dumps(redact(record), ensure_ascii=False))


def read(store: Store) -> list[Event]:
    """Read all events, oldest first.

    Raises:
        InputError: the log cannot be read, or a line of it is not an event.
    """
    return [parse_event(where, line) for where, line in store.read_log()]


def parse_event(where: str, line: str) -> Event:
    """Parse a line of the log.

    Args:
        where: location of the line, for the error.
        line: JSON of an event.

    Raises:
        InputError: the line is not an event.
    """
    try:
        record = {"operation": "", **json.loads(line)}  # lines of earlier releases have none
        own = {f.name: record[_KEYS.get(f.name, f.name)] for f in fields(Event)}
        return Event(**own | {"action": Action(own["action"]), "failed": tuple(own["failed"])})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{where} is not an audit event of hubhead: {error}.", remedy="Repair or remove it."
        ) from error


def previous_version(
    events: Iterable[Event], label: str | None, current: int | None, existing: Collection[int]
) -> int | None:
    """Return the version that a label was on before its current one; None if there is none.

    A rollback undoes a promotion, so that a second rollback goes further back instead of forth again.

    Args:
        events: audit log, oldest first.
        label: version label; None if labels are not used.
        current: version that the label is on now.
        existing: versions that still exist; others are skipped.
    """
    # Replay the log as a stack: a promotion pushes, a rollback pops down to the version it returned to.
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
    return next((version for version in reversed(stack) if version != current and version in existing), None)

"""Operations: promotions and rollbacks, which are written down before they begin.

The events that an operation is going to append to the audit log are first written to PENDING. They are moved
to the log once the change is complete. After an interruption in between, PENDING says which versions were
chosen:

- The same operation again (same action, label and identifier) does not choose again. It carries out the steps
  towards the same versions, which are idempotent. So a second pod of a Job does not go back by two versions.
- Any other operation first settles the interrupted one: its events are moved to the log if the labels are on
  its versions, and discarded if they are not. The next rollback then knows where it starts.

An operation whose identifier is in the log was completed, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from serving.errors import BundleError
from serving.registry import audit
from serving.registry.audit import Action, Event
from serving.registry.target import DeploymentTarget
from serving.storage import files

PENDING = ".hubhead/pending"
"""File below the base path with the events of the operation in progress, as lines of the audit log."""

Events = tuple[Event, ...]
"""Events of one operation, one per label that it moves; the first is about the label that was requested."""


def find_completed(target: DeploymentTarget, operation: str, action: Action) -> Events:
    """Return the events of a completed operation; none if the log has none, or the identifier is ""."""
    if not operation:
        return ()
    events = audit.read(target.store)
    found = tuple(event for event in events if (event.operation, event.action) == (operation, action))
    if found:
        target.say(f"operation {operation} was completed before, at {found[0].at}; nothing changes")
    return found


def find_version(target: DeploymentTarget, operation: str, action: Action) -> int | None:
    """Return the version that an interrupted operation chose or published; None if it did neither."""
    if not operation:
        return None
    pending = [event for event in read_pending(target) if event.action is action]
    published = [event for event in audit.read(target.store) if event.action is Action.PUBLISH]
    chosen = [event.new for event in (*published, *pending) if event.operation == operation]
    # A version that did not load was withdrawn.
    return next((version for version in reversed(chosen) if version in target.versions), None)


def resume(
    target: DeploymentTarget,
    action: Action,
    label: str | None,
    operation: str,
    versions: Collection[int | None],
) -> Events:
    """Return the events of the interrupted operation if it is the same; settle any other.

    Args:
        target: locked deployment target.
        action: kind of change that begins now.
        label: version label that it moves; None without a configuration.
        operation: its identifier, or "".
        versions: versions that it may lead to.

    Raises:
        InputError: the pending events cannot be read.
        OutputError: the log cannot be written.
    """
    pending = read_pending(target)
    if not pending:
        return ()
    first = pending[0]
    same = (first.action, first.label, first.operation) == (action, label, operation)
    if same and first.new in versions:
        target.say(f"completing the interrupted {action} to version {first.new}")
        return pending
    if _has_happened(target, pending):
        _finish(target, pending)
    else:
        _discard(target)
    return ()


@contextmanager
def carry_out(target: DeploymentTarget, events: Events) -> Iterator[None]:
    """Write events to PENDING, and move them to the audit log at the end of the block.

    They stay pending if the block is interrupted or the server does not follow. They are discarded if the
    version does not load, since the block has restored the previous state then.
    """
    lines = "".join(f"{audit.to_line(event)}\n" for event in events)
    target.store.lease.publish({PENDING: lines.encode()})
    try:
        yield
    except BundleError:
        _discard(target)
        raise
    _finish(target, events)


def read_pending(target: DeploymentTarget) -> Events:
    """Return the events of an interrupted operation; none if there was none."""
    location = files.join(str(target.base), PENDING)
    if not files.exists(location):
        return ()
    with files.output_errors(location, "read"):
        content = files.read(location)
    return tuple(audit.parse_event(location, line) for line in content.decode(errors="replace").splitlines())


def _has_happened(target: DeploymentTarget, events: Events) -> bool:
    """Return whether each label is on the version of its event; without labels, whether the newest is."""
    labels = target.read_config().labels
    newest = max(target.versions, default=None)
    return all((labels.get(event.label) if event.label else newest) == event.new for event in events)


def _finish(target: DeploymentTarget, events: Events) -> None:
    """Append the events to the log and delete PENDING: both or neither."""
    lines = [audit.to_line(event) for event in events]
    target.store.lease.publish(target.store.log_content(*lines), removes=[PENDING])


def _discard(target: DeploymentTarget) -> None:
    target.store.lease.publish(removes=[PENDING])

"""Rollback to the previous version."""

from __future__ import annotations

from dataclasses import replace

from serving.client.canary import STABLE
from serving.errors import InputError
from serving.registry import audit, inventory, operations, rollout
from serving.registry.audit import Action, Event
from serving.registry.operations import Events
from serving.registry.promote import Change, describe_change, withdraw
from serving.registry.target import DeploymentTarget, lock_target


def rollback(
    target: DeploymentTarget,
    *,
    label: str = STABLE,
    to: int | None = None,
    reason: str = "",
    operation: str = "",
) -> Change:
    """Return a label to its previous version; without a configuration, withdraw the newest version.

    A rollback of `stable` also moves the other labels on the abandoned version, so that no caller gets it. A
    rollback that was interrupted is completed by the same call, which then goes no further back.

    Args:
        target: deployment target.
        label: version label to move, if the target has a configuration.
        to: version to return to; None for the previous one according to the audit log.
        reason: reason for the audit log.
        operation: identifier of this rollback; "" for none. A second call with it does nothing once the first
            one is complete.

    Raises:
        InputError: there is no version to return to.
        BundleError: the version does not load; nothing has changed.
        ServerError: the server did not reach the expected state.
    """
    if not target.versions:
        raise InputError(f"{target.base} has no versions.", remedy="Give the directory above the versions.")
    with lock_target(target) as target:
        if completed := operations.find_completed(target, operation, Action.ROLLBACK):
            return describe_change(target, completed)
        moved = label if target.config else None
        acceptable = target.versions if to is None else [to]
        events = operations.resume(target, Action.ROLLBACK, moved, operation, acceptable)
        if not events:
            plan = _plan_labels(target, label, to) if target.config else _plan_newest(target, to)
            events = tuple(replace(event, reason=reason, operation=operation) for event in plan)
        with operations.carry_out(target, events):
            _go_back(target, events)
        return describe_change(target, events)


def _plan_labels(target: DeploymentTarget, label: str, to: int | None) -> Events:
    """Return the events of the label and of those that move along; `to` is None for its previous version."""
    labels = target.read_config().labels
    current = labels.get(label)
    if to is None and label != STABLE and labels.get(STABLE) != current:
        to = labels.get(STABLE)  # ending a canary sends its callers to the stable version
    if to is None:
        to = audit.previous_version(audit.read(target.store), label, current, target.versions)
    new = _require_other(target, to, current, f"label {label}")
    followers = [other for other, on in labels.items() if on == current and other != label]
    along = followers if label == STABLE else []  # ending a canary does not move stable
    event = _rollback_event(target, current, new)
    return tuple(replace(event, label=name) for name in (label, *along))


def _plan_newest(target: DeploymentTarget, to: int | None) -> Events:
    """Return the event of a target without a configuration; `to` is None for the version below the newest."""
    *earlier, current = target.versions
    new = _require_other(target, to if to or not earlier else earlier[-1], current, "the newest version")
    if new > current:
        raise InputError(
            f"Version {new} is newer than the live version {current}.",
            remedy="Make a newer version live with hubhead promote.",
        )
    return (_rollback_event(target, current, new),)


def _go_back(target: DeploymentTarget, events: Events) -> None:
    """Move the labels of the events, or withdraw the versions above the one to return to."""
    first = events[0]
    assert first.new is not None
    if first.label:
        rollout.move_labels(target, {event.label: event.new for event in events if event.label and event.new})
        return
    # Ascending, so that the newest version, which is the one served, is withdrawn last.
    for version in [version for version in target.versions if version > first.new]:
        withdraw(target, version, replace(first, action=Action.WITHDRAW, blessed=None, failed=()))
    target.wait_available(first.new)


def _require_other(target: DeploymentTarget, to: int | None, current: int | None, what: str) -> int:
    """Return the version to roll back to, after checking that it exists and is not the current one."""
    if to is None:
        raise InputError(
            f"There is no earlier version in {target.base} that {what} could return to.",
            remedy=f"Existing versions: {', '.join(map(str, target.versions)) or 'none'}; choose one with "
            "--to.",
        )
    target.store.require(to)
    if to == current:
        raise InputError(
            f"Version {to} is already the one of {what}.", remedy="Choose another version with --to."
        )
    return to


def _rollback_event(target: DeploymentTarget, old: int | None, new: int) -> Event:
    word, failed = inventory.verdict_of(target.store, new)
    blessed = {"blessed": True, "forced": True, "not blessed": False}.get(word)
    return Event(Action.ROLLBACK, target.model, old, new, blessed=blessed, failed=failed)

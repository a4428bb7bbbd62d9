"""Rollback to the previous version."""

from __future__ import annotations

from serving.client.canary import STABLE
from serving.errors import InputError
from serving.registry import audit, inventory, rollout
from serving.registry.audit import Action, Event
from serving.registry.promote import Change, withdraw
from serving.registry.target import DeploymentTarget, lock_target


def rollback(
    target: DeploymentTarget, *, label: str = STABLE, to: int | None = None, reason: str = ""
) -> Change:
    """Return a label to its previous version; without a configuration, withdraw the newest version.

    A rollback of `stable` also moves the other labels on the abandoned version, so that no caller gets it.

    Args:
        target: deployment target.
        label: version label to move, if the target has a configuration.
        to: version to return to; None for the previous one according to the audit log.
        reason: reason for the audit log.

    Raises:
        InputError: there is no version to return to.
        BundleError: the version does not load; nothing has changed.
        ServerError: the server did not reach the expected state.
    """
    if not target.versions:
        raise InputError(f"{target.base} has no versions.", remedy="Give the directory above the versions.")
    with lock_target(target) as target:
        if target.config:
            return _roll_back_label(target, label, to, reason)
        return _roll_back_newest(target, to, reason)


def _roll_back_label(target: DeploymentTarget, label: str, to: int | None, reason: str) -> Change:
    labels = target.read_config().labels
    current = labels.get(label)
    if to is None and label != STABLE and labels.get(STABLE) != current:
        to = labels.get(STABLE)  # ending a canary sends its callers to the stable version
    if to is None:
        to = audit.previous_version(audit.read(target.store), label, current, target.versions)
    new = _require_other(target, to, current, f"label {label}")
    followers = [other for other, on in labels.items() if on == current and other != label]
    along = tuple(followers) if label == STABLE else ()  # ending a canary does not move stable
    rollout.move_labels(target, dict.fromkeys((label, *along), new))
    for name in (label, *along):
        _log_rollback(target, name, current, new, reason)
    return Change(target.model, current, new, label, waited=target.client is not None, also=along)


def _roll_back_newest(target: DeploymentTarget, to: int | None, reason: str) -> Change:
    """Withdraw all versions above the one to return to.

    Args:
        target: deployment target without a configuration.
        to: version to return to; None for the one below the newest.
        reason: reason for the audit log.
    """
    existing = target.versions
    # The withdrawal of an interrupted rollback was completed just now; this rollback continues it.
    withdrawn = target.store.lease.recovered
    current = max([*existing, *([withdrawn] if withdrawn else [])], default=None)
    if to is None:
        to = max((version for version in existing if version != current), default=None)
    new = _require_other(target, to, current, "the newest version")
    if current is not None and new > current:
        raise InputError(
            f"Version {new} is newer than the live version {current}.",
            remedy="Make a newer version live with hubhead promote.",
        )
    # Ascending, so that the newest version, which is the one served, is withdrawn last.
    for version in [version for version in existing if version > new]:
        withdraw(target, version, Event(Action.WITHDRAW, target.model, version, None, reason=reason))
    target.wait_available(new)
    _log_rollback(target, None, current, new, reason)
    return Change(target.model, current, new, None, waited=target.client is not None)


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


def _log_rollback(
    target: DeploymentTarget, label: str | None, old: int | None, new: int, reason: str
) -> None:
    word, failed = inventory.verdict_of(target.store, new)
    blessed = {"blessed": True, "forced": True, "not blessed": False}.get(word)
    event = Event(
        Action.ROLLBACK, target.model, old, new, label=label, blessed=blessed, failed=failed, reason=reason
    )
    audit.append(target.store, event)

"""Back to the version that answered before, in one step."""

from __future__ import annotations

from collections.abc import Sequence

from serving.client.canary import STABLE
from serving.errors import InputError
from serving.registry import audit, inventory, rollout
from serving.registry.audit import Action, Event
from serving.registry.promote import Change, record_withdrawal, withdraw
from serving.registry.target import DeploymentTarget, lock_target


def rollback(
    place: DeploymentTarget, *, label: str = STABLE, to: int | None = None, reason: str = ""
) -> Change:
    """Bring a label back to where it was; without a configuration, withdraw the newest version.

    Other labels on the version that is left behind go back with it: nobody should meet it any more.

    Args:
        place: where.
        label: which one, where there is a configuration.
        to: the version to go back to; None: that of before, by the audit log.
        reason: for the audit log.

    Raises:
        InputError: there is nothing to go back to.
        BundleError: the version does not load; all is as before.
        ServerError: the server does not follow.
    """
    if not place.store.exists():
        raise InputError(f"{place.base} does not exist.", remedy="Give the directory above the versions.")
    with lock_target(place):
        withdrawn = place.store.finish_interrupted(place.say)
        for version in withdrawn:
            record_withdrawal(place, version, Event(Action.WITHDRAW, place.model, None, None, reason=reason))
        if place.config:
            return _by_label(place, label, to, reason)
        return _by_withdrawal(place, to, reason, withdrawn)


def _by_label(place: DeploymentTarget, label: str, to: int | None, reason: str) -> Change:
    labels = place.read_config().labels
    current = labels.get(label)
    if to is None and label != STABLE and labels.get(STABLE) != current:
        to = labels.get(STABLE)  # callers of a canary then get what all others get
    if to is None:
        to = audit.previous_version(audit.read(place.store), label, current, place.versions)
    new = _checked(place, to, current, f"label {label}")
    along = tuple(other for other, on in labels.items() if on == current and other != label)
    if label != STABLE:
        along = ()  # a canary's end is not that of stable
    rollout.move_labels(place, dict.fromkeys((label, *along), new))
    for name in (label, *along):
        _append(place, name, current, new, reason)
    return Change(place.model, current, new, label, waited=place.client is not None, also=along)


def _by_withdrawal(place: DeploymentTarget, to: int | None, reason: str, withdrawn: Sequence[int]) -> Change:
    """Args: `withdrawn`: by a rollback that was cut off, and that this one goes on with."""
    there = place.versions
    current = max([*there, *withdrawn], default=None)
    if to is None:
        to = max((version for version in there if version != current), default=None)
    new = _checked(place, to, current, "the newest version")
    if current is not None and new > current:
        raise InputError(f"Version {new} is above {current}.", remedy="hubhead promote goes forward.")
    for version in [version for version in there if version > new]:  # the newest last: it serves
        withdraw(place, version, Event(Action.WITHDRAW, place.model, version, None, reason=reason))
    place.wait_available(new)
    _append(place, None, current, new, reason)
    return Change(place.model, current, new, None, waited=place.client is not None)


def _checked(place: DeploymentTarget, to: int | None, current: int | None, what: str) -> int:
    if to is None:
        raise InputError(
            f"There is no earlier version that {what} could go back to in {place.base}.",
            remedy=f"Versions there: {', '.join(map(str, place.versions)) or 'none'}; choose with --to.",
        )
    place.store.require(to)
    if to == current:
        raise InputError(f"Version {to} is where {what} is.", remedy="Choose another with --to.")
    return to


def _append(place: DeploymentTarget, label: str | None, old: int | None, new: int, reason: str) -> None:
    word, failed = inventory.verdict_of(place.store, new)
    blessed = {"blessed": True, "forced": True, "not blessed": False}.get(word)
    event = Event(
        Action.ROLLBACK, place.model, old, new, label=label, blessed=blessed, failed=failed, reason=reason
    )
    audit.append(place.store, event)

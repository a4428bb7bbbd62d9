"""Publish a bundle and make it what callers get; keep so many versions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving import bundle
from serving.client.canary import CANARY, STABLE
from serving.errors import BundleError, InputError
from serving.registry import audit, rollout, verdict
from serving.registry.audit import Action, Event
from serving.registry.target import DeploymentTarget, lock_target
from serving.registry.verdict import Verdict
from serving.storage.address import Address


@dataclass(frozen=True)
class Change:
    """What a promotion or a rollback did.

    Attributes:
        model: the model's name.
        old: the version of before; None: none.
        new: the version now.
        label: the label that moved; None where there are no labels.
        published: whether the version was put into the directory for it.
        waited: whether a server was seen to answer with it.
        also: other labels that moved along.
        removed: versions that were deleted.
    """

    model: str
    old: int | None
    new: int
    label: str | None
    published: bool = False
    waited: bool = False
    also: tuple[str, ...] = ()
    removed: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def promote(
    place: DeploymentTarget,
    *,
    source: Path | None = None,
    origin: Address | None = None,
    version: int | None = None,
    label: str = STABLE,
    force: bool = False,
    reason: str = "",
    keep: int | None = None,
) -> Change:
    """Make a bundle what callers get, or callers of a label.

    A bundle that is there already, under whatever number, is not published again; so a promotion
    that was cut off is finished by the same call.

    Args:
        place: where.
        source: a bundle anywhere on this machine; in place of it `version`.
        origin: where that one is kept, for the audit log; None: at its path.
        version: one that is in the directory.
        label: what moves, where there is a configuration.
        force: whether a bundle that is not blessed may go live.
        reason: for the audit log.
        keep: how many versions stay in the directory; None: all.

    Raises:
        BundleError: the bundle cannot be read, or does not load in the server; all is as before.
        GateRejected: it has no verdict that lets it through.
        InputError: the configuration cannot be used.
        OutputError: something cannot be written.
        ServerError: the server does not follow.
    """
    source = bundle.resolve(source) if source else None  # a base path means its newest version
    judged = _judged_source(source, origin) if source else _judged_version(place, version or 0)
    content, found = judged.content, judged.verdict
    if not force:
        verdict.require_blessed(judged.origin, found, content)
    true = found is not None and found.content == content
    event = Event(
        Action.PROMOTE,
        place.model,
        None,
        None,
        label=label if place.config else None,
        blessed=found.blessed if found and true else None,
        failed=tuple(check.name for check in found.failed) if found and true else (),
        forced=force and not (found and true and found.blessed and not found.forced),
        reason=reason,
    )
    place.store.create()
    with lock_target(place):
        for withdrawn in place.store.finish_interrupted(place.say):
            record_withdrawal(place, withdrawn, event)
        before = place.read_config()
        old = before.labels.get(label) if place.config else max(place.versions, default=None)
        number = place.store.find(source, content) if source else version
        if place.config:
            _check_order(place, label, number)
        published = number is None
        if number is None and source:
            number = _publish(place, source, judged, event)
        assert number is not None
        if place.config:
            rollout.move_labels(place, {label: number})
        else:
            _check_newest(place, number)
            try:
                place.wait_available(number)
            except BundleError:
                if published:
                    withdraw(place, number, event)
                raise
        if old != number or published or not _logged(place, event.label, number):
            audit.append(place.store, replace(event, old=old if old != number else None, new=number))
        removed = prune(place, keep, event) if keep else ()
    return Change(
        place.model,
        old,
        number,
        event.label,
        published=published,
        waited=place.client is not None,
        removed=removed,
    )


def withdraw(place: DeploymentTarget, version: int, event: Event) -> None:
    """Take a version out of the server's sight; its files stay, its number is not used again."""
    place.say(f"withdrawing version {version}")
    aside = place.store.withdraw(version)
    place.say(f"version {version} is in {aside}")
    record_withdrawal(place, version, event)


def record_withdrawal(place: DeploymentTarget, version: int, event: Event) -> None:
    """Say so in the audit log."""
    audit.append(place.store, replace(event, action=Action.WITHDRAW, label=None, old=version, new=None))


def prune(place: DeploymentTarget, keep: int, event: Event) -> tuple[int, ...]:
    """Delete all but the newest so many versions; never one that serves, has a label, or is the way back."""
    there = place.versions
    config = place.read_config()
    needed = {*there[-keep:], *config.serves(there), *config.labels.values()}
    events = audit.read(place.store)
    for label in config.labels if place.config else [None]:
        current = config.labels.get(label) if label else max(there, default=None)
        back = audit.previous_version(events, label, current, there)
        needed |= {back} if back is not None else set()
    if place.client:
        alive = ("AVAILABLE", "LOADING", "START")
        needed |= {status.version for status in place.client.status() if status.state in alive}
    removed = tuple(version for version in there if version not in needed)
    for version in removed:
        place.say(f"removing version {version}")
        place.store.remove(version)
        audit.append(place.store, replace(event, action=Action.REMOVE, old=version, new=None))
    return removed


def _logged(place: DeploymentTarget, label: str | None, version: int) -> bool:
    """Whether the log knows of a version's promotion; not so where that was cut off just before."""
    events = audit.read(place.store)
    return any(e.action is Action.PROMOTE and (e.label, e.new) == (label, version) for e in events)


@dataclass(frozen=True)
class _Judged:
    """A bundle and what is said of it: where it is kept, its digest, its verdict, its own number."""

    origin: Address
    content: str
    verdict: Verdict | None
    number: int


def _judged_source(source: Path, origin: Address | None) -> _Judged:
    found = bundle.read(source)
    at = origin or found.path.resolve()
    return _Judged(at, verdict.digest(found.path), verdict.read(found.path), found.version)


def _judged_version(place: DeploymentTarget, version: int) -> _Judged:
    place.store.require(version)
    place.store.read_metadata(version)  # that it can be read
    path = place.store.path(version)
    return _Judged(path, place.store.digest(version), place.store.verdict(version), version)


def _publish(place: DeploymentTarget, source: Path, judged: _Judged, event: Event) -> int:
    if place.config and place.read_config().latest and place.versions:
        if place.client is None:
            raise InputError(
                f"By {place.config} the server follows the newest version, so that this one would be live "
                "as soon as it is there.",
                remedy="Give --server, or state first what is live: hubhead promote --model_version "
                f"{place.versions[-1]}, with the same --model_config_file.",
            )
        rollout.pin_current(place)
    number = place.store.publish(source, judged.content, at_least=judged.number or 1, say=place.say)
    told = str(judged.origin)
    audit.append(place.store, replace(event, action=Action.PUBLISH, label=None, new=number, source=told))
    return number


def _check_order(place: DeploymentTarget, label: str, version: int | None) -> None:
    """A canary needs something to be the canary of."""
    labels = place.read_config().labels
    if label == CANARY and STABLE not in labels:
        others = [there for there in place.versions if there != version] or [version or 1]
        raise InputError(
            f"No version of {place.model} is {STABLE} in {place.config}, so there is nothing that a "
            f"{CANARY} could be held against.",
            remedy=f"First: hubhead promote --model_version {others[-1]} --label {STABLE}",
        )


def _check_newest(place: DeploymentTarget, version: int) -> None:
    newest = max(place.versions)
    if version != newest:
        raise InputError(
            f"Version {version} is in {place.base} already, and a server of that directory serves the "
            f"newest, {newest}.",
            remedy=f"Go back with: hubhead rollback --to {version}; or use --model_config_file and labels.",
        )

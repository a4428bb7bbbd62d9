"""Publish a bundle and make it what callers get; keep so many versions."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving import bundle
from serving.client.canary import CANARY, STABLE
from serving.errors import BundleError, InputError
from serving.lifecycle import audit, rollout, verdict
from serving.lifecycle.audit import Action, Event
from serving.lifecycle.place import Place, changing


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

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def promote(
    place: Place,
    *,
    source: Path | None = None,
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
        source: a bundle anywhere on this machine; in place of it:
        version: one that is in the directory.
        label: what moves, where there is a configuration.
        force: whether a bundle that is not blessed may go live.
        reason: for the audit log.
        keep: how many versions stay in the directory; None: all.

    Raises:
        BundleError: the bundle cannot be read, or does not load in the server; all is as before.
        NotBlessed: it has no verdict that lets it through.
        InputError: the configuration cannot be used.
        OutputError: something cannot be written.
        ServerError: the server does not follow.
    """
    directory = bundle.read(source if source else bundle.version_directory(place.base, version or 0)).path
    content = verdict.digest(directory)
    found = verdict.read(directory)
    if not force:
        verdict.require_blessed(directory, found, content)
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
    make_base(place)
    with changing(place):
        before = place.configured()
        old = before.labels.get(label) if place.config else max(place.versions, default=None)
        number = _there(place, directory, content)
        if place.config:
            _check_order(place, label, number)
        published = number is None
        if number is None:
            number = _publish(place, directory, event)
        if place.config:
            rollout.move(place, {label: number})
        else:
            _check_newest(place, number)
            try:
                place.wait_available(number)
            except BundleError:
                if published:
                    withdraw(place, number, event)
                raise
        if old != number or published:
            audit.append(place.base, replace(event, old=old, new=number))
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


def make_base(place: Place) -> None:
    """Make the directory above the versions, for the first of them."""
    if not place.base.is_dir():
        with bundle.staging(place.base):
            place.base.joinpath(".lock").touch()


def withdraw(place: Place, version: int, event: Event) -> None:
    """Take a version out of the server's sight; its files stay, its number is not used again."""
    directory = bundle.version_directory(place.base, version)
    aside = place.base / bundle.WITHDRAWN
    aside.mkdir(exist_ok=True)
    place.say(f"moving version {version} to {aside}")
    directory.rename(aside / directory.name)
    audit.append(place.base, replace(event, action=Action.WITHDRAW, old=version, new=None))


def prune(place: Place, keep: int, event: Event) -> tuple[int, ...]:
    """Delete all but the newest so many versions; never one that serves, has a label, or is the way back.

    A version is renamed first, so that no server ever sees half of one.
    """
    there = place.versions
    config = place.configured()
    needed = {*there[-keep:], *config.serves(there), *config.labels.values()}
    events = audit.read(place.base)
    for label in config.labels if place.config else [None]:
        current = config.labels.get(label) if label else max(there, default=None)
        back = audit.previous(events, label, current, there)
        needed |= {back} if back is not None else set()
    if place.client:
        alive = ("AVAILABLE", "LOADING", "START")
        needed |= {status.version for status in place.client.status() if status.state in alive}
    removed = tuple(version for version in there if version not in needed)
    for version in removed:
        directory = bundle.version_directory(place.base, version)
        doomed = place.base / f".removing-{directory.name}"
        place.say(f"removing version {version}")
        directory.rename(doomed)
        audit.append(place.base, replace(event, action=Action.REMOVE, old=version, new=None))
        shutil.rmtree(doomed, ignore_errors=True)
    return removed


def _there(place: Place, directory: Path, content: str) -> int | None:
    """The version with this content; None where there is none."""
    size = None
    for version in reversed(place.versions):
        other = bundle.version_directory(place.base, version)
        if other.resolve() == directory.resolve():
            return version
        size = size or _size(directory)
        if _size(other) == size and verdict.digest(other) == content:
            return version
    return None


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in verdict.files(directory))


def _publish(place: Place, directory: Path, event: Event) -> int:
    if place.config and place.configured().latest and place.versions:
        if place.client is None:
            raise InputError(
                f"By {place.config} the server follows the newest version, so that this one would be live "
                "as soon as it is there.",
                remedy="Give --server, or state first what is live: hubhead promote --model_version "
                f"{place.versions[-1]}, with the same --model_config_file.",
            )
        rollout.pin(place)
    place.say(f"copying {directory}")
    with bundle.staging(place.base) as staged:
        try:
            shutil.copytree(directory, staged, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            raise BundleError(f"{directory} cannot be copied to {place.base}: {error}.") from error
        if verdict.digest(staged) != verdict.digest(directory):
            raise BundleError(f"{directory} changed while it was copied.", remedy="Promote it again.")
        published = bundle.publish(staged, place.base, at_least=bundle.read(directory).version or 1)
    number = int(published.name)
    source = str(directory.resolve())
    audit.append(place.base, replace(event, action=Action.PUBLISH, label=None, new=number, source=source))
    return number


def _check_order(place: Place, label: str, version: int | None) -> None:
    """A canary needs something to be the canary of."""
    labels = place.configured().labels
    if label == CANARY and STABLE not in labels:
        others = [there for there in place.versions if there != version] or [version or 1]
        raise InputError(
            f"No version of {place.model} is {STABLE} in {place.config}, so there is nothing that a "
            f"{CANARY} could be held against.",
            remedy=f"First: hubhead promote --model_version {others[-1]} --label {STABLE}",
        )


def _check_newest(place: Place, version: int) -> None:
    newest = max(place.versions)
    if version != newest:
        raise InputError(
            f"Version {version} is in {place.base} already, and a server of that directory serves the "
            f"newest, {newest}.",
            remedy=f"Go back with: hubhead rollback --to {version}; or use --model_config_file and labels.",
        )

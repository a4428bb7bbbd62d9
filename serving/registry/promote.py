"""Publish a bundle, make it live, and delete old versions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving import bundle
from serving.client.canary import CANARY, STABLE
from serving.errors import BundleError, InputError
from serving.registry import audit, operations, rollout, verdict
from serving.registry.audit import Action, Event
from serving.registry.stores.download import FetchedBundle
from serving.registry.target import DeploymentTarget, lock_target
from serving.registry.verdict import Verdict
from serving.storage.address import Address


@dataclass(frozen=True)
class Change:
    """Result of a promotion or a rollback.

    Attributes:
        model: name of the model.
        old: version before the change; None if there was none.
        new: version after the change.
        label: label that moved; None if labels are not used.
        published: True if the bundle was copied into the store for this change.
        waited: True if a server was seen to answer with the new version.
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
        """Return a JSON-serialisable dictionary."""
        return dict(vars(self))


def promote(
    target: DeploymentTarget,
    *,
    source: Path | FetchedBundle | None = None,
    version: int | None = None,
    label: str = STABLE,
    force: bool = False,
    reason: str = "",
    keep: int | None = None,
    operation: str = "",
) -> Change:
    """Make a bundle live, or move a label to it.

    A bundle that the store already contains, under whatever number, is not published again; the same call
    therefore completes a promotion that was interrupted.

    Args:
        target: deployment target.
        source: bundle in a local directory; alternative to `version`.
        version: version in the store; alternative to `source`.
        label: version label to move, if the target has a configuration.
        force: True to accept a bundle that is not blessed.
        reason: reason for the audit log.
        keep: number of newest versions to keep in the store; None keeps all.
        operation: identifier of this promotion; "" for none. A second call with it promotes the version of
            the first one, whatever `source` is by then, and does nothing once that is complete.

    Raises:
        BundleError: the bundle cannot be read, or does not load in the server; nothing has changed.
        GateRejected: the bundle has no verdict that allows it to go live.
        InputError: the configuration cannot be read.
        OutputError: the store, the configuration or the log cannot be written.
        ServerError: the server did not reach the expected state.
    """
    with lock_target(target) as target:
        events = operations.find_completed(target, operation, Action.PROMOTE)
        if events:
            change = describe_change(target, events)
        else:
            version = operations.find_version(target, operation, Action.PROMOTE) or version
            found = _stored_candidate(target, version) if version else _read_candidate(source)
            if not force:
                verdict.require_blessed(found.origin, found.verdict, found.digest)
            event = _promotion_event(target, found, label, force=force, reason=reason)
            events = (replace(event, operation=operation),)
            change = _promote(target, found, events[0])
        return replace(change, removed=prune(target, keep, events[0]) if keep else ())


def describe_change(target: DeploymentTarget, events: operations.Events) -> Change:
    """Return the change that the events of an operation, one per label, record."""
    first, *others = events
    assert first.new is not None
    also = tuple(event.label for event in others if event.label)
    return Change(
        target.model, first.old, first.new, first.label, waited=target.client is not None, also=also
    )


def withdraw(target: DeploymentTarget, version: int, event: Event) -> None:
    """Hide a version from servers; its files are kept and its number is not used again."""
    target.say(f"withdrawing version {version}")
    event = replace(event, action=Action.WITHDRAW, label=None, old=version, new=None)
    location = target.store.withdraw(version, audit.to_line(event))
    target.say(f"version {version} is in {location}")


def prune(target: DeploymentTarget, keep: int, event: Event) -> tuple[int, ...]:
    """Delete all but the newest `keep` versions and return the deleted ones.

    A version that is served, has a label, or that a rollback would return to is never deleted.
    """
    existing = target.versions
    config = target.read_config()
    needed = {*existing[-keep:], *config.served_versions(existing), *config.labels.values()}
    events = audit.read(target.store)
    for label in config.labels if target.config else [None]:
        current = config.labels.get(label) if label else max(existing, default=None)
        rollback_version = audit.previous_version(events, label, current, existing)
        needed |= {rollback_version} if rollback_version is not None else set()
    if target.client:
        # The server may still hold versions that the configuration no longer names.
        loaded = ("AVAILABLE", "LOADING", "START")
        needed |= {status.version for status in target.client.status() if status.state in loaded}
    removed = tuple(version for version in existing if version not in needed)
    for version in removed:
        target.say(f"removing version {version}")
        line = audit.to_line(replace(event, action=Action.REMOVE, old=version, new=None))
        target.store.remove(version, line)
    return removed


@dataclass(frozen=True)
class _Candidate:
    """A bundle to promote.

    Attributes:
        origin: where the bundle is kept.
        digest: digest of its content.
        verdict: verdict of the gate; None if there is none.
        number: its own version number.
        source: local directory of the bundle; None for a version of the store.
    """

    origin: Address
    digest: str
    verdict: Verdict | None
    number: int
    source: Path | None = None

    @property
    def valid_verdict(self) -> Verdict | None:
        """The verdict, if it is about the bundle's present content."""
        return self.verdict if self.verdict and self.verdict.content == self.digest else None


def _read_candidate(source: Path | FetchedBundle | None) -> _Candidate:
    assert source is not None, "neither a bundle nor a version"
    path = source.path if isinstance(source, FetchedBundle) else source
    found = bundle.read(bundle.resolve(path))  # a base path means its newest version
    origin = source.origin if isinstance(source, FetchedBundle) else found.path.resolve()
    return _Candidate(
        origin, verdict.digest(found.path), verdict.read(found.path), found.version, source=found.path
    )


def _stored_candidate(target: DeploymentTarget, version: int) -> _Candidate:
    target.store.require(version)
    path = target.store.path(version)
    bundle.read_metadata(path)  # raises BundleError if it cannot be read
    return _Candidate(path, target.store.digest(version), verdict.read(path), version)


def _promote(target: DeploymentTarget, found: _Candidate, event: Event) -> Change:
    """Publish the candidate if the store does not contain it, and make it live.

    Args:
        target: locked deployment target.
        found: what to promote.
        event: event for the audit log, still without versions.
    """
    old = _live_version(target, event.label)
    number = target.store.find(found.source, found.digest) if found.source else found.number
    interrupted = operations.resume(target, Action.PROMOTE, event.label, event.operation, [number])
    if event.label:
        _require_stable(target, event.label, number)
    published = number is None
    if number is None and found.source:
        number = _publish(target, found.source, found, event)
    assert number is not None
    event = replace(event, old=old if old != number else None, new=number)
    if not event.label:
        _require_newest(target, number)
    if not interrupted and not published and _is_logged(target, event):
        _make_live(target, event, published=False)
    else:
        with operations.carry_out(target, interrupted or (event,)):
            _make_live(target, event, published=published)
    return replace(describe_change(target, interrupted or (event,)), published=published)


def _promotion_event(
    target: DeploymentTarget, candidate: _Candidate, label: str, *, force: bool, reason: str
) -> Event:
    """Return the audit event of the promotion; its versions are filled in later."""
    found = candidate.valid_verdict
    return Event(
        Action.PROMOTE,
        target.model,
        None,
        None,
        label=label if target.config else None,
        blessed=found.blessed if found else None,
        failed=tuple(check.name for check in found.failed) if found else (),
        # --force on a bundle that needs none is not recorded as forced.
        forced=force and not (found and found.blessed and not found.forced),
        reason=reason,
    )


def _live_version(target: DeploymentTarget, label: str | None) -> int | None:
    """Return the version that the label is on; without a configuration, the newest."""
    return target.read_config().labels.get(label) if label else max(target.versions, default=None)


def _publish(target: DeploymentTarget, source: Path, candidate: _Candidate, event: Event) -> int:
    """Copy the bundle into the store, record that, and return its version number.

    Raises:
        InputError: the policy would make the version live before its label moves, and no server is known
            that could be pinned to the present version first.
    """
    if target.config and target.read_config().latest and target.versions:
        if target.client is None:
            raise InputError(
                f"In {target.config} the policy of {target.model} is the newest version, so that this one "
                "would be live as soon as it is published.",
                remedy="Give --server, or first state which version is live: hubhead promote --model_version "
                f"{target.versions[-1]}, with the same --model_config_file.",
            )
        rollout.pin_current(target)
    event = replace(event, action=Action.PUBLISH, label=None, source=str(candidate.origin))
    return target.store.publish(
        source,
        candidate.digest,
        at_least=candidate.number or 1,
        log=lambda number: audit.to_line(replace(event, new=number)),
        say=target.say,
    )


def _make_live(target: DeploymentTarget, event: Event, *, published: bool) -> None:
    """Move the label to the new version, or wait until the server follows the newest version.

    Raises:
        BundleError: the version does not load. Without a configuration, a version that was published for
            this promotion is withdrawn again.
    """
    number = event.new
    assert number is not None
    if event.label:
        rollout.move_labels(target, {event.label: number})
        return
    try:
        target.wait_available(number)
    except BundleError:
        if published:
            withdraw(target, number, event)
        raise


def _is_logged(target: DeploymentTarget, event: Event) -> bool:
    """Return whether nothing changes, since the version is live and the audit log says so."""
    if event.old is not None or event.operation:  # the log has an event of each identifier
        return False
    return any(
        (e.action, e.label, e.new) == (event.action, event.label, event.new) for e in audit.read(target.store)
    )


def _require_stable(target: DeploymentTarget, label: str, version: int | None) -> None:
    """Check that a canary has a stable version to be compared with.

    Raises:
        InputError: the label is canary and no version is stable.
    """
    labels = target.read_config().labels
    if label == CANARY and STABLE not in labels:
        others = [other for other in target.versions if other != version] or [version or 1]
        raise InputError(
            f"No version of {target.model} is {STABLE} in {target.config}, so there is no version to "
            f"compare a {CANARY} with.",
            remedy=f"First: hubhead promote --model_version {others[-1]} --label {STABLE}",
        )


def _require_newest(target: DeploymentTarget, version: int) -> None:
    """Check that a server that follows the newest version would serve this one.

    Raises:
        InputError: a newer version exists.
    """
    newest = max(target.versions)
    if version != newest:
        raise InputError(
            f"{target.base} already contains this bundle as version {version}, but its server follows the "
            f"newest version, {newest}.",
            remedy=f"Return to it with: hubhead rollback --to {version}; or use --model_config_file and "
            "labels.",
        )

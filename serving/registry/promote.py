"""Publish a bundle, make it live, and delete old versions."""

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
    source: Path | None = None,
    origin: Address | None = None,
    version: int | None = None,
    label: str = STABLE,
    force: bool = False,
    reason: str = "",
    keep: int | None = None,
) -> Change:
    """Make a bundle live, or move a label to it.

    A bundle that the store already contains, under whatever number, is not published again; the same call
    therefore completes a promotion that was interrupted.

    Args:
        target: deployment target.
        source: local directory of the bundle; alternative to `version`.
        origin: address that `source` was fetched from, for the audit log; None if it is its own path.
        version: version in the store; alternative to `source`.
        label: version label to move, if the target has a configuration.
        force: True to accept a bundle that is not blessed.
        reason: reason for the audit log.
        keep: number of newest versions to keep in the store; None keeps all.

    Raises:
        BundleError: the bundle cannot be read, or does not load in the server; nothing has changed.
        GateRejected: the bundle has no verdict that allows it to go live.
        InputError: the configuration cannot be read.
        OutputError: the store, the configuration or the log cannot be written.
        ServerError: the server did not reach the expected state.
    """
    source = bundle.resolve(source) if source else None  # a base path means its newest version
    candidate = _read_candidate(source, origin) if source else _stored_candidate(target, version or 0)
    if not force:
        verdict.require_blessed(candidate.origin, candidate.verdict, candidate.digest)
    event = _promotion_event(target, candidate, label, force=force, reason=reason)
    with lock_target(target) as target:
        old = _live_version(target, label)
        number = target.store.find(source, candidate.digest) if source else version
        if target.config:
            _require_stable(target, label, number)
        published = number is None
        if number is None and source:
            number = _publish(target, source, candidate, event)
        assert number is not None
        _make_live(target, number, label, event, published=published)
        _log_promotion(target, replace(event, old=old, new=number), published=published)
        return Change(
            target.model,
            old,
            number,
            event.label,
            published=published,
            waited=target.client is not None,
            removed=prune(target, keep, event) if keep else (),
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
    """

    origin: Address
    digest: str
    verdict: Verdict | None
    number: int

    @property
    def valid_verdict(self) -> Verdict | None:
        """The verdict, if it is about the bundle's present content."""
        return self.verdict if self.verdict and self.verdict.content == self.digest else None


def _read_candidate(source: Path, origin: Address | None) -> _Candidate:
    found = bundle.read(source)
    at = origin or found.path.resolve()
    return _Candidate(at, verdict.digest(found.path), verdict.read(found.path), found.version)


def _stored_candidate(target: DeploymentTarget, version: int) -> _Candidate:
    target.store.require(version)
    path = target.store.path(version)
    bundle.read_metadata(path)  # raises BundleError if it cannot be read
    return _Candidate(path, target.store.digest(version), verdict.read(path), version)


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


def _live_version(target: DeploymentTarget, label: str) -> int | None:
    """Return the version that the label is on; without a configuration, the newest."""
    before = target.read_config()
    return before.labels.get(label) if target.config else max(target.versions, default=None)


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


def _make_live(target: DeploymentTarget, number: int, label: str, event: Event, *, published: bool) -> None:
    """Move the label to a version, or wait until the server follows the newest version.

    Raises:
        BundleError: the version does not load. Without a configuration, a version that was published for
            this promotion is withdrawn again.
    """
    if target.config:
        rollout.move_labels(target, {label: number})
        return
    _require_newest(target, number)
    try:
        target.wait_available(number)
    except BundleError:
        if published:
            withdraw(target, number, event)
        raise


def _log_promotion(target: DeploymentTarget, event: Event, *, published: bool) -> None:
    """Append the promotion to the audit log, unless nothing changed and the log already contains it.

    The log may lack a promotion that was interrupted after its last other step.
    """
    moved = event.old != event.new
    if not moved and not published:
        events = audit.read(target.store)
        if any(e.action is Action.PROMOTE and (e.label, e.new) == (event.label, event.new) for e in events):
            return
    audit.append(target.store, event if moved else replace(event, old=None))


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

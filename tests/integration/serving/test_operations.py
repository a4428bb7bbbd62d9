"""Promotions and rollbacks that are killed between any two steps, and repeated under the same identifier."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.client import Client
from serving.errors import BundleError, GateRejected, InputError
from serving.registry import audit, operations
from serving.registry.audit import Action, Event
from serving.registry.promote import Change, promote
from serving.registry.rollback import rollback
from serving.registry.stores.local import LocalStore
from serving.registry.target import DeploymentTarget
from serving.server import ServerSettings, start
from tests.support.fake_model import LIMIT, FakeModelLoader, eventually, write_fake_model
from tests.support.registry import CONFIG, command, write_bundle

CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}
"""Audit events of changes to a directory, besides files that are opened for writing."""

Operation = Callable[[DeploymentTarget, str], Change]


class Interrupted(BaseException):
    """Stands for a kill of a process that shares this one with a server."""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Directory of trained bundles 1 to 4."""
    for number in (1, 2, 3, 4):
        write_bundle(tmp_path / "trained", number)
    return tmp_path / "trained"


def target_in(top: Path, *, labels: bool) -> DeploymentTarget:
    return DeploymentTarget(top / "double", "double", top / "model.config" if labels else None)


def deploy(top: Path, models: Path, *, labels: bool) -> DeploymentTarget:
    """Promote versions 1, 2 and 3, one after the other; with labels, 3 is canary too."""
    (top / "other").mkdir(parents=True)
    target = target_in(top, labels=labels)
    if labels:
        (top / "model.config").write_text(CONFIG % (top / "other", target.base))
        promote(replace(target, config=None), source=models / "1")
    for number in (1, 2, 3):
        promote(target, source=models / str(number))
    if labels:
        promote(target, version=3, label="canary")
    return target


def labels_of(target: DeploymentTarget) -> dict[str, int]:
    """Return the version of each label; without a configuration, the newest version as `live`."""
    return dict(target.read_config().labels) if target.config else {"live": max(target.versions)}


def events_of(target: DeploymentTarget, operation: str) -> list[tuple[Any, ...]]:
    """Return the events of an operation in the audit log, without those of versions."""
    return [
        (event.action, event.label, event.old, event.new)
        for event in audit.read(target.store)
        if event.operation == operation and event.action in (Action.PROMOTE, Action.ROLLBACK)
    ]


def run_killed(before_change: int, run: Callable[[], object], top: Path) -> bool:
    """Run in a fork that gets SIGKILL before its n-th change below `top`; return whether it did."""
    child = os.fork()
    if not child:
        left = before_change

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
            if (writes or event in CHANGES) and str(arguments[0]).startswith(str(top)):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        code = 1
        with contextlib.suppress(BaseException):
            run()
            code = 0
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def kill_everywhere(
    tmp_path: Path, models: Path, labels: bool, run: Operation
) -> Iterator[tuple[DeploymentTarget, int]]:
    """Yield a new target for each step before which the operation was killed, until it was not killed."""
    deploy(tmp_path / "served", models, labels=labels)
    for step in range(1, 200):
        top = shutil.copytree(tmp_path / "served", tmp_path / f"served-{step}")
        target = target_in(top, labels=labels)
        if not run_killed(step, lambda target=target: run(target, "first"), top):
            assert step > 10
            return
        yield target, step
    raise AssertionError("the operation never ends")


def go_back(target: DeploymentTarget, operation: str) -> Change:
    return rollback(target, operation=operation)


# --- SIGKILL before each change of a file ---------------------------------------------------------------


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "newest"])
def test_a_killed_rollback_goes_back_by_one_version_when_it_is_repeated(
    labels: bool, tmp_path: Path, models: Path
) -> None:
    moved = ("stable", "canary") if labels else (None,)
    for target, step in kill_everywhere(tmp_path, models, labels, go_back):
        for attempt in range(2):
            change = rollback(target, operation="first")
            assert (change.old, change.new, (change.label, *change.also)) == (3, 2, moved), (step, attempt)
            assert set(labels_of(target).values()) == {2}
        assert events_of(target, "first") == [(Action.ROLLBACK, label, 3, 2) for label in moved]
        assert operations.read_pending(target) == ()
        # A rollback of its own goes one version further, whatever the kill left.
        assert rollback(target, operation="second").new == 1


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "newest"])
def test_a_rollback_after_a_killed_one_never_returns_to_the_bad_version(
    labels: bool, tmp_path: Path, models: Path
) -> None:
    """An operator rolls back by hand while the killed Job does not come back."""
    seen = set()
    for target, _ in kill_everywhere(tmp_path, models, labels, go_back):
        change = rollback(target, reason="by hand")
        assert (change.old, change.new) in ((3, 2), (2, 1))
        assert set(labels_of(target).values()) == {change.new}
        seen.add(change.new)
        # The log has what happened, and nothing else.
        assert bool(events_of(target, "first")) is (change.old == 2)
    assert seen == {1, 2}


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize("label", ["stable", "canary"])
def test_a_killed_promotion_promotes_the_same_version_when_it_is_repeated(
    label: str, tmp_path: Path, models: Path
) -> None:
    def run(target: DeploymentTarget, operation: str) -> Change:
        return promote(target, source=models / "4", label=label, operation=operation)

    others = {"stable": 3, "canary": 3}
    published = {False, True}
    for target, step in kill_everywhere(tmp_path, models, True, run):
        # A newer candidate, which is what the base path of the candidates means to the second pod.
        begun = 4 in target.versions
        published.discard(begun)
        candidate = models / ("1" if begun else "4")
        change = promote(target, source=candidate, label=label, operation="first")
        assert (change.old, change.new) == (3, 4), step
        assert labels_of(target) == {**others, label: 4}
        assert events_of(target, "first") == [(Action.PROMOTE, label, 3, 4)]
        assert run(target, "first").new == 4
        assert events_of(target, "first") == [(Action.PROMOTE, label, 3, 4)]
        assert target.versions == [1, 2, 3, 4]
        assert operations.read_pending(target) == ()
    assert not published


@pytest.mark.slow(seconds=30)
def test_a_rollback_undoes_a_promotion_that_was_killed_after_its_label_moved(
    tmp_path: Path, models: Path
) -> None:
    def run(target: DeploymentTarget, operation: str) -> Change:
        return promote(target, version=1, operation=operation)

    for target, _ in kill_everywhere(tmp_path, models, True, run):
        change = rollback(target)
        assert (change.old, change.new) in ((1, 3), (3, 2))


# --- Repetition -----------------------------------------------------------------------------------------


def test_a_completed_operation_changes_nothing_although_others_followed(tmp_path: Path, models: Path) -> None:
    target = deploy(tmp_path / "served", models, labels=True)
    rollback(target, operation="back")
    promote(target, version=3, operation="forth")
    before = audit.read(target.store)
    assert (rollback(target, operation="back").new, labels_of(target)["stable"]) == (2, 3)
    assert promote(target, version=3, operation="forth").new == 3
    # Its candidate may be gone from the gate's point of view: what was decided is not decided again.
    write_bundle(models, 5, blessed=False)
    assert promote(target, source=models / "5", operation="forth").new == 3
    assert audit.read(target.store) == before
    with pytest.raises(GateRejected):
        promote(target, source=models / "5", operation="other")


def test_without_an_identifier_a_repeated_rollback_goes_further_back(tmp_path: Path, models: Path) -> None:
    target = deploy(tmp_path / "served", models, labels=True)
    assert [rollback(target).new, rollback(target).new] == [2, 1]
    with pytest.raises(InputError, match="no earlier version"):
        rollback(target)
    assert operations.read_pending(target) == ()


def test_an_identifier_is_of_one_action(tmp_path: Path, models: Path) -> None:
    target = deploy(tmp_path / "served", models, labels=True)
    assert rollback(target, operation="job").new == 2
    assert promote(target, version=1, operation="job").new == 1


def test_commands_take_an_identifier(tmp_path: Path, models: Path) -> None:
    target = deploy(tmp_path / "served", models, labels=True)
    assert isinstance(target.base, Path)
    assert isinstance(target.config, Path)
    where = [
        "--model_base_path",
        target.base,
        "--model_config_file",
        target.config,
        "--operation_id",
        "job/1",
    ]
    for _ in range(2):
        done = command("rollback", *where)
        assert done.exit_code == 0, done.output
        assert "stable, canary = version 2" in done.stdout
    assert "operation job/1 was completed before" in done.stderr
    for _ in range(2):
        done = command("promote", models / "4", "--label", "canary", *where)
        assert done.exit_code == 0, done.output
    assert labels_of(target) == {"stable": 2, "canary": 4}
    assert [event.operation for event in audit.read(target.store)][-2:] == ["job/1", "job/1"]


def test_log_lines_of_earlier_releases_have_no_identifier(tmp_path: Path) -> None:
    line = audit.to_line(Event(Action.PROMOTE, "m", None, 1)).replace(', "operation": ""', "")
    assert "operation" not in line
    (tmp_path / "audit.jsonl").write_text(f"{line}\n")
    assert [event.operation for event in audit.read(LocalStore(tmp_path))] == [""]


# --- With a server --------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, models: Path) -> Iterator[DeploymentTarget]:
    """Deployment target with a server that polls its configuration, and a client."""
    target = deploy(tmp_path / "served", models, labels=True)
    assert isinstance(target.config, Path)
    write_fake_model(tmp_path / "served" / "other" / "1")
    settings = ServerSettings(
        port=0,
        file_system_poll_wait_seconds=0.05,
        model_config_file=target.config,
        model_config_file_poll_wait_seconds=0.05,
        allow_version_labels_for_unavailable_models=True,
    )
    with (
        start(settings, loader=FakeModelLoader()) as server,
        Client(f"localhost:{server.port}", model="double", timeout=LIMIT) as client,
    ):

        def labelled(label: str) -> Client:
            return Client(client.target, model="double", timeout=LIMIT, label=label)

        yield replace(target, client=client, label_client=labelled, timeout=LIMIT)


def interrupt_before(step: int, patch: pytest.MonkeyPatch) -> None:
    """Interrupt the n-th step of a change of labels, and every later one."""
    done = 0

    def wrapped(original: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal done
            done += 1
            if done >= step:
                raise Interrupted
            return original(*arguments, **named)

        return run

    for name in ("write_config", "wait_available", "wait_label"):
        patch.setattr(DeploymentTarget, name, wrapped(getattr(DeploymentTarget, name)))
    for name in ("_finish", "_discard"):
        patch.setattr(operations, name, wrapped(getattr(operations, name)))


@pytest.mark.server
def test_a_rollback_interrupted_at_each_step_of_the_server_is_completed(served: DeploymentTarget) -> None:
    for step in range(1, 100):
        name = f"job-{step}"
        with pytest.MonkeyPatch.context() as patch:
            interrupt_before(step, patch)
            try:
                rollback(served, operation=name)
                interrupted = False
            except Interrupted:
                interrupted = True
        change = rollback(served, operation=name)
        assert (change.old, change.new, change.also) == (3, 2, ("canary",))
        assert labels_of(served) == {"stable": 2, "canary": 2}
        assert served.client
        loaded = {status.version for status in served.client.status() if status.state == "AVAILABLE"}
        assert 2 in loaded
        eventually(lambda: served.client and _loaded(served.client) == {2})  # the bad one is unloaded
        if not interrupted:
            break
        for label in ("stable", "canary"):
            promote(served, version=3, label=label)
    assert step == 1 + 7  # steps: load, wait, move, wait for two labels, unload, log


def _loaded(client: Client) -> set[int]:
    return {status.version for status in client.status() if status.state == "AVAILABLE"}


@pytest.mark.server
def test_a_version_that_does_not_load_leaves_no_operation(served: DeploymentTarget, tmp_path: Path) -> None:
    broken = write_bundle(tmp_path / "broken", 5, broken=True)
    for _ in range(2):
        with pytest.raises(BundleError, match="does not load"):
            promote(served, source=broken, operation="job")
        assert operations.read_pending(served) == ()
        assert events_of(served, "job") == []
        assert labels_of(served) == {"stable": 3, "canary": 3}

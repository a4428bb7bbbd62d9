"""Versions on object stores: published atomically, whatever step is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from batch.commands.options import open_models
from serving import contract
from serving.errors import BundleError, GateRejected, InputError, OutputBusy, OutputError
from serving.registry import audit, inventory, verdict
from serving.registry.audit import Action
from serving.registry.promote import promote
from serving.registry.rollback import rollback
from serving.registry.stores.download import fetch_bundle, has_no_version
from serving.registry.stores.object_store import AUDIT_PREFIX, STAGING_PREFIX, ObjectStore
from serving.registry.stores.store import LEASE_DIRECTORY
from serving.registry.target import DeploymentTarget, lock_target
from serving.storage import files, lease, remote
from serving.storage.lease import hold
from tests.support import object_stores
from tests.support.registry import CONFIG, command, write_bundle
from tests.support.repository import REPO

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings(
        # gcsfs sends small files in one request body, which aiohttp warns about.
        "ignore:Sending a large body directly:ResourceWarning"
    ),
]

MUTATING_CALLS = ("write", "create_if_absent", "upload", "copy", "remove")


class Interrupted(BaseException):
    """Stands for a kill of the process; a BaseException, so that no handler catches it."""


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield {
            "s3": stack.enter_context(object_stores.serve_s3()),
            "gs": stack.enter_context(object_stores.serve_gs()),
        }


@pytest.fixture(params=object_stores.KINDS)
def base(request: pytest.FixtureRequest, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Base path on each kind of object store."""
    return object_stores.new_base_path(request.param, monkeypatch, servers)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> str:
    return object_stores.new_base_path("memory", monkeypatch, {})


@pytest.fixture
def on_s3(servers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    return object_stores.new_base_path("s3", monkeypatch, servers)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Bundles 1 to 3 with variables, whose names sort behind saved_model.pb."""
    for number in (1, 2, 3):
        directory = write_bundle(tmp_path / "trained", number, blessed=None)
        variables = directory / "variables"
        variables.mkdir()
        (variables / "variables.data-00000-of-00001").write_bytes(bytes([number]) * 3000)
        (variables / "variables.index").write_bytes(b"index")
        bless(directory)
    return tmp_path / "trained"


def bless(directory: Path, *, passed: bool = True) -> None:
    check = verdict.Check("accuracy", passed)
    verdict.write(directory, verdict.Verdict(verdict.digest(directory), (check,), None, audit.now()))


def target_at(base: str) -> DeploymentTarget:
    return DeploymentTarget(base, "double")


def interrupt_before(
    number: int, patch: pytest.MonkeyPatch, inspect: Callable[[], None] = lambda: None
) -> None:
    """Interrupt the n-th mutating call of a store and all later ones; call `inspect` before each."""
    done = 0

    def wrapped(original: Any) -> Any:
        def change(*arguments: Any, **named: Any) -> Any:
            nonlocal done
            inspect()
            done += 1
            if done >= number:
                raise Interrupted
            return original(*arguments, **named)

        return change

    for name in MUTATING_CALLS:
        patch.setattr(remote, name, wrapped(getattr(remote, name)))


def read_files(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def read_objects(base: str, prefix: str) -> dict[str, bytes]:
    return {name: files.read(f"{base}/{prefix}/{name}") for name, _ in files.walk_files(f"{base}/{prefix}")}


# --- Atomic publication -------------------------------------------------------------------------------


def test_a_promotion_uploads_the_whole_bundle(base: str, models: Path) -> None:
    target = target_at(base)
    assert has_no_version(base)
    change = promote(target, source=models / "2", reason="the first")
    assert (change.old, change.new, change.published) == (None, 2, True)
    assert read_objects(base, "2") == read_files(models / "2")
    assert target.versions == [2]
    assert not read_objects(base, STAGING_PREFIX)
    assert not has_no_version(base)
    again = promote(target, source=models / "2")
    assert (again.new, again.published) == (2, False)
    published, promoted = audit.read(target.store)
    assert (published.action, published.source) == (Action.PUBLISH, str(models / "2"))
    assert (promoted.action, promoted.new, promoted.reason, promoted.blessed) == (
        Action.PROMOTE,
        2,
        "the first",
        True,
    )
    (seen,) = inventory.list_versions(target)
    assert (seen.verdict, seen.live, seen.path) == ("blessed", True, f"{base}/2")
    assert seen.size == sum(map(len, read_files(models / "2").values()))


def test_a_server_never_sees_a_model_without_its_weights(
    memory: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inspect each version directory before each mutating call, while versions are published and removed."""
    seen: list[set[str]] = []
    numbered: list[bool] = []

    def inspect() -> None:
        for number in ("1", "2", "3"):
            seen.append(set(read_objects(memory, number)))
        numbered.append(any(name.isdecimal() for name in files.list_names(memory)))

    interrupt_before(1 << 30, monkeypatch, inspect)
    target = target_at(memory)
    for number in (1, 2, 3):
        promote(target, source=models / str(number), keep=2)
    rollback(target)
    assert target.versions == [2]
    every = set(read_files(models / "1"))
    with_model = [names for names in seen if contract.SAVED_MODEL_FILE in names]
    assert with_model
    assert all(names == every for names in with_model)
    assert any(names and names != every for names in seen)
    assert numbered.count(False) > len(every)  # everything was uploaded before the number existed


def for_each_interruption(base: str, run: Callable[[str, int], bool]) -> None:
    """Run in a new base path each time, interrupted one call later, until nothing is interrupted."""
    cut = 1
    while run(f"{base}-{cut}", cut):
        cut += 1
    assert cut > 10


def test_a_promotion_interrupted_anywhere_is_invisible_and_resumes(memory: str, models: Path) -> None:
    for_each_interruption(memory, lambda base, cut: promote_after_interruption(base, cut, models))


def promote_after_interruption(memory: str, cut: int, models: Path) -> bool:
    target = target_at(memory)
    promote(target, source=models / "1")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_before(cut, patch)
        try:
            promote(target, source=models / "2")
        except Interrupted:
            pass
        else:
            return False
    object_stores.expire_lease(f"{memory}/{LEASE_DIRECTORY}")
    there = target.versions
    assert there in ([1], [1, 2])
    if there == [1, 2]:
        assert read_objects(memory, "2") == read_files(models / "2")
    uploads: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        upload = remote.upload
        patch.setattr(remote, "upload", lambda *a: uploads.append(a[1]) or upload(*a))
        arrived = read_objects(memory, STAGING_PREFIX)
        assert promote(target, source=models / "2").new == 2
    assert {name.partition("/")[2] for name in arrived} & {
        name.removeprefix(f"{memory}/{STAGING_PREFIX}/").partition("/")[2] for name in uploads
    } <= {contract.VERDICT_FILE}
    assert target.versions == [1, 2]
    assert read_objects(memory, "2") == read_files(models / "2")
    assert not target.store.list_unfinished()
    assert not read_objects(memory, STAGING_PREFIX)
    assert [e.new for e in audit.read(target.store) if e.action is Action.PROMOTE] == [1, 2]
    return True


def test_a_rollback_interrupted_anywhere_goes_back_by_one_version(memory: str, models: Path) -> None:
    for_each_interruption(memory, lambda base, cut: roll_back_after_interruption(base, cut, models))


def roll_back_after_interruption(memory: str, cut: int, models: Path) -> bool:
    target = target_at(memory)
    for number in (1, 2, 3):
        promote(target, source=models / str(number))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_before(cut, patch)
        try:
            rollback(target, operation="job")
        except Interrupted:
            pass
        else:
            return False
    object_stores.expire_lease(f"{memory}/{LEASE_DIRECTORY}")
    change = rollback(target, operation="job")
    assert (change.old, change.new) == (3, 2)
    assert target.versions == [1, 2]
    assert read_objects(memory, ".withdrawn/3") == read_files(models / "3")
    again = promote(target, source=models / "3")
    assert again.new == 4  # version numbers are never reused
    return True


def test_a_publication_that_was_decided_is_completed_by_the_next_change(
    memory: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = target_at(memory)
    copied = len(read_files(models / "1")) + 6
    with pytest.MonkeyPatch.context() as patch:
        interrupt_before(copied, patch)  # in the middle of the copying
        with pytest.raises(Interrupted):
            promote(target, source=models / "1")
    object_stores.expire_lease(f"{memory}/{LEASE_DIRECTORY}")
    assert target.versions == []
    assert list(target.store.list_unfinished()) == [1]
    listed = command("models", "--model_base_path", memory)
    assert "1 is not a complete version: hubhead is changing it or was interrupted" in listed.stderr
    assert promote(target, source=models / "2").new == 2
    assert target.versions == [1, 2]
    assert read_objects(memory, "1") == read_files(models / "1")
    assert not read_objects(memory, STAGING_PREFIX)
    assert [(e.action, e.new) for e in audit.read(target.store)] == [
        (Action.PUBLISH, 1),
        (Action.PUBLISH, 2),
        (Action.PROMOTE, 2),
    ]


def test_an_upload_that_was_not_decided_is_deleted_by_the_next_promotion(memory: str, models: Path) -> None:
    target = target_at(memory)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_before(4, patch)  # during the upload
        with pytest.raises(Interrupted):
            promote(target, source=models / "1")
    assert read_objects(memory, STAGING_PREFIX)
    object_stores.expire_lease(f"{memory}/{LEASE_DIRECTORY}")
    assert promote(target, source=models / "2").new == 2
    assert target.versions == [2]
    assert not read_objects(memory, STAGING_PREFIX)


def test_sigkill_during_a_promotion_leaves_no_visible_version(on_s3: str, models: Path) -> None:
    """SIGKILL of a separate process over the network; the next promotion need not wait for its lease."""
    program = """
import os, signal, sys
from pathlib import Path
from serving.registry.target import DeploymentTarget
from serving.registry.promote import promote
from serving.storage import remote
copied = 0
copy = remote.copy
def killed(name, other):
    global copied
    copied += 1
    if copied == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return copy(name, other)
remote.copy = killed
promote(DeploymentTarget(sys.argv[1], "double"), source=Path(sys.argv[2]))
"""
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    ran = subprocess.run(
        [sys.executable, "-c", program, on_s3, models / "1"], env=environment, timeout=60, check=False
    )
    assert ran.returncode == -signal.SIGKILL
    target = target_at(on_s3)
    assert target.versions == []
    assert len(target.store.sizes(1)) == 2
    assert list(target.store.list_unfinished()) == [1]
    with pytest.raises(BundleError, match="is not a bundle"), fetch_bundle(f"{on_s3}/1"):
        pass
    done = command("promote", models / "1", "--model_base_path", on_s3)
    assert done.exit_code == 0, done.output
    assert target.versions == [1]
    assert read_objects(on_s3, "1") == read_files(models / "1")


def test_a_bundle_that_changes_while_it_is_uploaded_is_not_published(
    memory: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = remote.upload

    def changing_upload(path: str, uri: str) -> None:
        upload(path, uri)
        (models / "1" / contract.LABELS_FILE).write_text("c\n")

    monkeypatch.setattr(remote, "upload", changing_upload)
    with pytest.raises(BundleError, match="changed while"):
        promote(target_at(memory), source=models / "1")
    assert target_at(memory).versions == []
    assert not read_objects(memory, STAGING_PREFIX)


def test_foreign_objects_are_reported_and_left_alone(memory: str, models: Path) -> None:
    files.write(f"{memory}/7/saved_model.pb", b"theirs")
    target = target_at(memory)
    assert (
        promote(target, source=models / "1").new == 8
    )  # above the number that a server of the newest version would take
    assert target.store.list_unfinished() == {7: "foreign"}
    assert files.read(f"{memory}/7/saved_model.pb") == b"theirs"


def test_the_verdict_of_a_version_that_lost_an_object_is_void(memory: str, models: Path) -> None:
    target = target_at(memory)
    promote(target, source=models / "1")
    files.remove(f"{memory}/1/variables/variables.index")
    (seen,) = inventory.list_versions(target)
    assert seen.verdict == "void"
    with pytest.raises(GateRejected, match="changed since"):
        promote(target, version=1)


# --- Lease and audit log -----------------------------------------------------------------------


def test_concurrent_changes_are_rejected_by_the_lease(base: str, models: Path) -> None:
    promote(target_at(base), source=models / "1")
    with lock_target(target_at(base)), pytest.raises(OutputBusy, match="in progress"):
        promote(target_at(base), source=models / "2")
    assert promote(target_at(base), source=models / "2").new == 2


@pytest.mark.parametrize("kind", ["memory", "s3"])  # the emulator of gs:// does not support preconditions
def test_one_of_many_takers_gets_an_abandoned_lease(
    kind: str, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = object_stores.new_base_path(kind, monkeypatch, servers)
    files.write(f"{base}/lease/00000003", b'{"time": 0}')
    start, release = threading.Barrier(6), threading.Event()
    got: list[str] = []

    def take() -> None:
        start.wait()
        try:
            with hold(base, "lease", "Busy:"):
                got.append("held")
                release.wait(20)
        except OutputBusy:
            got.append("busy")

    takers = [threading.Thread(target=take) for _ in range(6)]
    for taker in takers:
        taker.start()
    deadline = time.monotonic() + 20
    while len(got) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    release.set()
    for taker in takers:
        taker.join(20)
    assert sorted(got) == ["busy"] * 5 + ["held"]
    with hold(base, "lease", "Busy:"):
        assert files.list_names(f"{base}/lease") == ["00000005"]


def test_a_lease_is_renewed_by_heartbeats_while_its_holder_lives(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    with hold(memory, "lease", "Busy:") as held:
        time.sleep(0.6)
        deadline = time.monotonic() + 20
        while not files.exists(f"{memory}/lease/beat-{held.token}"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(OutputBusy), hold(memory, "lease", "Busy:"):
            pass
    assert files.list_names(f"{memory}/lease") == ["00000001"]


def test_the_audit_log_keeps_order_and_loses_no_line(on_s3: str) -> None:
    with hold(on_s3, LEASE_DIRECTORY, "Busy:") as held:
        store = ObjectStore(on_s3, held)
        for number in range(11):
            store.lease.publish(store.log_content(f"{number}"))
    assert [line for _, line in store.read_log()] == [str(number) for number in range(11)]


def test_a_damaged_line_of_the_audit_log_is_an_error(memory: str, models: Path) -> None:
    target = target_at(memory)
    promote(target, source=models / "1")
    files.write(f"{memory}/{AUDIT_PREFIX}/00000003", b"torn {")
    with pytest.raises(InputError, match="00000003 is not an audit event"):
        audit.read(target.store)


# --- Labels, retention, downloads ------------------------------------------------------------------------


def test_labels_move_in_a_model_config_on_the_object_store(memory: str, models: Path) -> None:
    config = f"{memory.rpartition('/')[0]}/model.config"
    files.write(config, (CONFIG % ("/o", memory)).encode())
    promote(target_at(memory), source=models / "1")
    target = replace(target_at(memory), config=config)
    promote(target, version=1)
    promote(target, source=models / "2", label="canary")
    promote(target, version=2)
    assert target.read_config().labels == {"stable": 2, "canary": 2}
    back = rollback(target, reason="worse")
    assert (back.old, back.new, back.also) == (2, 1, ("canary",))
    promote(target, source=models / "3", keep=1)
    assert target.versions == [1, 2, 3]  # without a server to query, earlier versions may still be served
    assert b"# Kept by hand." in files.read(config)
    with lock_target(target), pytest.raises(OutputBusy):
        promote(DeploymentTarget(f"{memory}-other", "double", config), source=models / "1")


def test_jobs_download_the_stable_version_and_not_the_canary(memory: str, models: Path) -> None:
    config = f"{memory.rpartition('/')[0]}/model.config"
    files.write(config, (CONFIG % ("gs://bucket/other", memory)).encode())
    promote(target_at(memory), source=models / "1")
    target = DeploymentTarget(memory, "double", config)
    promote(target, version=1)
    promote(target, source=models / "2", label="canary")
    with open_models([memory], config, "stable") as (stable,), open_models([memory]) as (newest,):
        assert (stable.name, newest.name) == ("1", "2")
        assert read_files(stable) == read_files(models / "1")
        assert stable.parent.name == "double"
    assert not stable.exists()
    with open_models([f"{memory}/2"], config, "stable") as (given,):
        assert given.name == "2"
    with (
        pytest.raises(InputError, match="No version of double is next"),
        open_models([memory], config, "next"),
    ):
        pass


def test_keep_deletes_old_versions_and_numbers_are_not_reused(memory: str, models: Path) -> None:
    target = target_at(memory)
    for number in (1, 2, 3):
        change = promote(target, source=models / str(number), keep=2)
    assert change.removed == (1,)
    assert target.versions == [2, 3]
    assert not read_objects(memory, "1")
    assert [event.old for event in audit.read(target.store) if event.action is Action.REMOVE] == [1]


def test_a_bundle_is_downloaded_by_its_address_or_its_base_path(base: str, models: Path) -> None:
    for number in (1, 2):
        promote(target_at(base), source=models / str(number))
    for address, expected in ((f"{base}/1", 1), (base, 2)):
        with fetch_bundle(address) as found:
            assert read_files(found.path) == read_files(models / str(expected))
            assert (found.path.parent.name, found.path.name) == ("double", str(expected))
            assert found.origin == f"{base}/{expected}"
            bless(found.path, passed=False)
            found.write_back(contract.VERDICT_FILE)
        assert not found.path.exists()
    assert [version.verdict for version in inventory.list_versions(target_at(base))] == ["not blessed"] * 2
    other = f"{base}-copy"
    refused = command("promote", f"{base}/1", "--model_base_path", other)
    assert isinstance(refused.exception, GateRejected)
    assert f"validate --bundle {base}/1" in refused.exception.remedy or f"{base}/1" in str(refused.exception)
    done = command("promote", f"{base}/1", "--model_base_path", other, "--force", "--json")
    assert done.exit_code == 0, done.output
    assert audit.read(target_at(other).store)[0].source == f"{base}/1"
    with pytest.raises(BundleError, match="is not a bundle"), fetch_bundle(f"{base}-none"):
        pass


def test_promote_models_and_rollback_take_addresses(base: str, models: Path) -> None:
    for number in (1, 2):
        done = command("promote", models / str(number), "--model_base_path", base)
        assert done.exit_code == 0, done.output
    listed = json.loads(command("models", "--model_base_path", base, "--json").stdout)
    assert (listed["model"], listed["base_path"], listed["live"]) == ("double", base, 2)
    assert [version["path"] for version in listed["versions"]] == [f"{base}/2", f"{base}/1"]
    assert command("rollback", "--model_base_path", base).exit_code == 0
    listed = json.loads(command("models", "--model_base_path", base, "--json").stdout)
    assert (listed["live"], listed["unfinished"]) == (1, {})


# --- Missing packages and stores -------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_extra_is_named(
    scheme: str, package: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(_registry, scheme, raising=False)  # drop the class imported before
    refused = command("promote", models / "1", "--model_base_path", f"{scheme}://bucket/models/food")
    assert isinstance(refused.exception, InputError)
    assert f"hubhead[{scheme}]" in refused.exception.remedy
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(InputError, match=rf"hubhead\[{scheme}\]"):
        files.read(f"{scheme}://bucket/models/food")


def test_a_missing_bucket_and_missing_credentials_are_reported(
    on_s3: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match=r"Cannot write s3://nowhere-1/models/food") as caught:
        promote(target_at("s3://nowhere-1/models/food"), source=models / "1")
    assert "bucket" in caught.value.remedy
    storage, _ = fsspec.url_to_fs(on_s3, use_listings_cache=False)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no credentials")

    monkeypatch.setattr(storage, "ls", fail)
    with pytest.raises(OutputError, match="no credentials") as caught:
        inventory.list_versions(target_at(on_s3))
    assert "AWS_PROFILE" in caught.value.remedy

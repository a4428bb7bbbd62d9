"""Promotion, labels and rollback against a real server, with fake models that need no TensorFlow."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hubhead import hubhead
from serving import bundle, contract, protos
from serving.client import Client
from serving.errors import BundleError, DeadlineExceeded, GateRejected, InputError, OutputBusy, ServerError
from serving.registry import audit, inventory, model_config, verdict
from serving.registry.audit import Action, Event
from serving.registry.labels import resolve_label
from serving.registry.promote import promote
from serving.registry.rollback import rollback
from serving.registry.stores.download import FetchedBundle
from serving.registry.stores.local import AUDIT_LOG, LocalStore
from serving.registry.target import DeploymentTarget, lock_target
from serving.server import RunningServer, ServerSettings, start
from serving.storage.address import parse_address
from tests.support.fake_model import LIMIT, FakeModelLoader, eventually, write_fake_model
from tests.support.registry import CONFIG, command, write_bundle

pytestmark = pytest.mark.server


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Directory of trained bundles 1 to 3."""
    for number in (1, 2, 3):
        write_bundle(tmp_path / "trained", number)
    return tmp_path / "trained"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Base path that the server reads."""
    (tmp_path / "served" / "other").mkdir(parents=True)
    write_fake_model(tmp_path / "served" / "other" / "1")
    return tmp_path / "served" / "double"


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.config"
    path.write_text(CONFIG % (base.parent / "other", base))
    return path


def start_server(**settings: Any) -> RunningServer:
    return start(
        ServerSettings(port=0, file_system_poll_wait_seconds=0.05, **settings), loader=FakeModelLoader()
    )


@pytest.fixture
def target(base: Path, config: Path, models: Path) -> Iterator[DeploymentTarget]:
    """Deployment target with version 1, a server that polls its configuration, and a client."""
    promote(DeploymentTarget(base, "double"), source=models / "1")
    with (
        start_server(model_config_file=config, model_config_file_poll_wait_seconds=0.05) as server,
        Client(f"localhost:{server.port}", model="double", timeout=LIMIT) as client,
    ):

        def labelled(label: str) -> Client:
            return Client(client.target, model="double", timeout=LIMIT, label=label)

        yield DeploymentTarget(base, "double", config, client, labelled, timeout=LIMIT)


def served_version(target: DeploymentTarget, label: str | None = None) -> int:
    """Return the version that answers a request, with or without a label."""
    assert target.client
    with Client(target.client.target, model="double", label=label, timeout=LIMIT) as client:
        np.testing.assert_array_equal(
            client.run(contract.SERVING_DEFAULT, {"x": np.ones(1, np.float32)})["y"], [2]
        )
        return client.metadata().version


def available_versions(target: DeploymentTarget) -> set[int]:
    assert target.client
    return {status.version for status in target.client.status() if status.state == "AVAILABLE"}


# --- Publishing ----------------------------------------------------------------------------------------


def test_a_promotion_without_a_configuration_publishes_the_whole_bundle(base: Path, models: Path) -> None:
    change = promote(DeploymentTarget(base, "double"), source=models / "2")
    assert (change.old, change.new, change.published) == (None, 2, True)
    assert verdict.digest(base / "2") == verdict.digest(models / "2")
    assert verdict.read(base / "2") == verdict.read(models / "2")
    assert bundle.versions(base) == [2]


def test_promoting_a_published_bundle_again_changes_nothing(base: Path, models: Path) -> None:
    target = DeploymentTarget(base, "double")
    promote(target, source=models / "1")
    before = (base / AUDIT_LOG).read_text()
    again = promote(target, source=models / "1")
    assert (again.new, again.published) == (1, False)
    assert bundle.versions(base) == [1]
    assert (base / AUDIT_LOG).read_text() == before


def test_a_bundle_with_a_lower_number_gets_the_next_free_number(base: Path, models: Path) -> None:
    promote(DeploymentTarget(base, "double"), source=models / "2")
    assert promote(DeploymentTarget(base, "double"), source=models / "1").new == 3


@pytest.mark.parametrize("blessed", [None, False])
def test_a_bundle_without_a_blessed_verdict_is_rejected(
    base: Path, tmp_path: Path, blessed: bool | None
) -> None:
    directory = write_bundle(tmp_path / "bad", 1, blessed=blessed)
    with pytest.raises(GateRejected) as refused:
        promote(DeploymentTarget(base, "double"), source=directory)
    assert refused.value.exit_code == 4
    assert not bundle.versions(base)
    promote(DeploymentTarget(base, "double"), source=directory, force=True, reason="the demo")
    event = audit.read(LocalStore(base))[-1]
    assert (event.forced, event.blessed, event.reason) == (True, blessed, "the demo")
    assert event.failed == (("accuracy",) if blessed is False else ())


def test_a_verdict_is_void_after_the_bundle_changed(base: Path, models: Path) -> None:
    (models / "1" / contract.WARMUP_FILE).write_bytes(b"other")
    with pytest.raises(GateRejected, match="changed since"):
        promote(DeploymentTarget(base, "double"), source=models / "1")


def test_force_on_a_blessed_bundle_is_not_recorded_as_forced(base: Path, models: Path) -> None:
    promote(DeploymentTarget(base, "double"), source=models / "1", force=True)
    assert [event.forced for event in audit.read(LocalStore(base))] == [False, False]


# --- The newest version is live --------------------------------------------------------------------


def test_rollback_without_a_configuration_withdraws_the_newest(base: Path, models: Path) -> None:
    promote(DeploymentTarget(base, "double"), source=models / "1")
    with (
        start_server(model_base_path=base) as server,
        Client(f"localhost:{server.port}", model="double") as client,
    ):
        target = DeploymentTarget(base, "double", client=client, timeout=LIMIT)
        promote(target, source=models / "2")
        assert served_version(target) == 2
        change = rollback(target, reason="worse")
        assert (change.old, change.new, change.waited) == (2, 1, True)
        assert served_version(target) == 1
        assert promote(target, source=models / "3").new == 3
        rollback(target)
        again = promote(target, source=models / "2")
        assert again.new == 4  # version numbers are never reused
    assert {child.name for child in (base / bundle.WITHDRAWN).iterdir()} == {"2", "3"}
    assert [event.action.value for event in audit.read(LocalStore(base))[-4:]] == [
        "withdraw",
        "rollback",
        "publish",
        "promote",
    ]


def test_a_version_that_does_not_load_is_withdrawn(base: Path, models: Path, tmp_path: Path) -> None:
    promote(DeploymentTarget(base, "double"), source=models / "1")
    broken = write_bundle(tmp_path / "broken", 2, broken=True)
    with (
        start_server(model_base_path=base) as server,
        Client(f"localhost:{server.port}", model="double") as client,
    ):
        target = DeploymentTarget(base, "double", client=client, timeout=LIMIT)
        with pytest.raises(BundleError, match="broken on purpose"):
            promote(target, source=broken)
        assert served_version(target) == 1
    assert bundle.versions(base) == [1]


def test_rollback_without_an_earlier_version_is_an_error(base: Path, models: Path) -> None:
    promote(DeploymentTarget(base, "double"), source=models / "1")
    with pytest.raises(InputError, match="no earlier version"):
        rollback(DeploymentTarget(base, "double"))


# --- Labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_rpc", [False, True])
def test_canary_promotion_and_rollback_lose_no_request(
    target: DeploymentTarget, models: Path, config: Path, by_rpc: bool
) -> None:
    target = replace(target, reload=by_rpc)
    promote(target, version=1)
    stop, failures, seen = threading.Event(), [], set()

    def send_requests() -> None:
        while not stop.is_set():
            try:
                seen.add(served_version(target, "stable"))
            except ServerError as error:
                failures.append(error)

    callers = [threading.Thread(target=send_requests) for _ in range(2)]
    for thread in callers:
        thread.start()
    try:
        promote(target, source=models / "2", label="canary")
        assert (served_version(target, "stable"), served_version(target, "canary")) == (1, 2)
        assert available_versions(target) == {1, 2}
        change = promote(target, version=2)
        assert (change.old, change.new) == (1, 2)
        assert served_version(target, "stable") == 2
        promote(target, source=models / "3")
        assert (served_version(target, "stable"), served_version(target, "canary")) == (3, 2)
        change = rollback(target)
        assert (change.old, change.new) == (3, 2)
        change = rollback(target, reason="that one too")
        assert (change.old, change.new, change.also) == (2, 1, ("canary",))
        assert (served_version(target, "stable"), served_version(target, "canary")) == (1, 1)
    finally:
        stop.set()
        for thread in callers:
            thread.join(LIMIT)
    assert not failures
    assert seen == {1, 2, 3}
    text = config.read_text()
    assert "# Kept by hand." in text
    assert "# of another team" in text
    moves = [(e.action.value, e.label, e.old, e.new) for e in audit.read(target.store) if e.label]
    assert moves == [
        ("promote", "stable", None, 1),
        ("promote", "canary", None, 2),
        ("promote", "stable", 1, 2),
        ("promote", "stable", 2, 3),
        ("rollback", "stable", 3, 2),
        ("rollback", "stable", 2, 1),
        ("rollback", "canary", 2, 1),
    ]


def test_rollback_of_the_canary_label_returns_it_to_stable(target: DeploymentTarget, models: Path) -> None:
    promote(target, version=1)
    promote(target, source=models / "2", label="canary")
    change = rollback(target, label="canary")
    assert (change.old, change.new) == (2, 1)
    assert model_config.read(target.config or Path(), "double").labels == {"stable": 1, "canary": 1}


def test_a_version_that_fails_to_load_leaves_labels_and_configuration_unchanged(
    target: DeploymentTarget, models: Path, tmp_path: Path
) -> None:
    promote(target, version=1)
    broken = write_bundle(tmp_path / "broken", 2, broken=True)
    before = target.read_config()
    with pytest.raises(BundleError, match="broken on purpose"):
        promote(target, source=broken)
    assert target.read_config() == before
    assert served_version(target, "stable") == 1
    assert [event.new for event in audit.read(target.store) if event.label] == [1]


def test_promotion_times_out_if_the_server_does_not_read_the_configuration(
    target: DeploymentTarget, models: Path, tmp_path: Path
) -> None:
    other = tmp_path / "unread.config"
    assert target.config
    other.write_text(target.config.read_text())
    write_bundle(target.base, 2)
    with pytest.raises(DeadlineExceeded, match="--reload"):
        # The server reads another file, whose policy is the newest version, and unloads version 1.
        promote(replace(target, config=other, timeout=0.5), version=1)


def test_a_canary_needs_a_stable_version(target: DeploymentTarget, models: Path) -> None:
    with pytest.raises(InputError, match="No version of double is stable"):
        promote(target, source=models / "2", label="canary")
    assert bundle.versions(target.base) == [1]


def test_publishing_under_a_newest_version_policy_needs_a_server(
    target: DeploymentTarget, models: Path
) -> None:
    without_client = replace(target, client=None, label_client=None)
    with pytest.raises(InputError, match="live as soon"):
        promote(without_client, source=models / "2")
    promote(without_client, version=1)
    promote(without_client, source=models / "2", label="canary")
    with Client(target.client.target if target.client else "", model="double", label="canary") as canary:
        canary.wait_until_ready(LIMIT)  # the server moves the label itself, once the version is loaded
        assert canary.metadata().version == 2


def test_a_label_written_while_the_server_loads_its_first_version_is_applied(
    base: Path, config: Path, models: Path
) -> None:
    base.mkdir()
    loads, loader = threading.Event(), FakeModelLoader()

    def load(path: Path) -> Any:
        assert path.parent != base or loads.wait(LIMIT)
        return loader(path)

    settings = ServerSettings(
        port=0,
        file_system_poll_wait_seconds=0.05,
        model_config_file=config,
        model_config_file_poll_wait_seconds=0.05,
    )
    started: list[RunningServer] = []
    starting = threading.Thread(target=lambda: started.append(start(settings, loader=load)))
    starting.start()
    eventually(lambda: loader.attempts == 1)  # of the other model, so the server has read the configuration
    promote(DeploymentTarget(base, "double", config), source=models / "1")
    loads.set()
    starting.join(LIMIT)
    with (
        started[0] as server,
        Client(f"localhost:{server.port}", model="double", label="stable", timeout=LIMIT) as client,
    ):
        client.wait_until_ready(LIMIT)
        assert client.metadata().version == 1


def test_keep_deletes_old_versions_but_none_that_is_needed(
    target: DeploymentTarget, models: Path, tmp_path: Path
) -> None:
    for number in (4, 5, 6):
        write_bundle(models, number)
    promote(target, version=1)
    for number in (2, 3, 4, 5):
        promote(target, source=models / str(number))
    change = promote(target, source=models / "6", label="canary", keep=1)
    # 6 is the newest, 5 is stable, 4 is the previous stable version, needed for a rollback.
    assert bundle.versions(target.base) == [4, 5, 6]
    assert change.removed == (1, 2, 3)
    assert [e.old for e in audit.read(target.store) if e.action is Action.REMOVE] == [1, 2, 3]
    assert not list(target.base.glob(".removing*"))


def test_list_versions_reports_labels_verdicts_and_states(
    target: DeploymentTarget, models: Path, tmp_path: Path
) -> None:
    promote(target, version=1)
    promote(target, source=models / "2", label="canary")
    write_bundle(target.base, 3, blessed=False)
    (target.base / "4").mkdir()
    unreadable, third, second, first = inventory.list_versions(target)
    assert unreadable.problem
    assert (third.verdict, third.failed, third.serves, third.state) == (
        "not blessed",
        ("accuracy",),
        False,
        None,
    )
    assert (second.labels, second.live, second.state) == (("canary",), True, "AVAILABLE")
    assert (first.labels, first.live, first.verdict) == (("stable",), False, "blessed")
    assert first.accuracy == {"value": 0.51, "n": 50, "low": 0.4, "high": 0.7}
    assert first.size == sum(path.stat().st_size for path in first.path.rglob("*") if path.is_file())


def test_a_scoring_job_uses_the_stable_version_and_not_the_canary(
    target: DeploymentTarget, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(target, version=1)
    promote(target, source=models / "2", label="canary")
    seen: list[Any] = []

    def score(settings: Any, _report: Any) -> Any:
        seen.append(settings.model)
        raise InputError("enough")

    monkeypatch.setattr("batch.jobs.score.score", score)
    command = ["score", "--photos", "p", "--output", "o", "--model"]
    for more in (
        [str(target.base), "--model_config_file", str(target.config)],
        [str(target.base / "2"), "--model_config_file", str(target.config)],
        [str(target.base)],
    ):
        assert isinstance(CliRunner().invoke(hubhead, [*command, *more]).exception, InputError)
    assert seen == [(target.base / "1",), (target.base / "2",), (target.base,)]
    assert target.config
    with pytest.raises(InputError, match="No version of double is next"):
        resolve_label(target.base, target.config, "next")


# --- Files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        CONFIG % ("/o", "/d"),
        'model_config_list: { config: { name: "a" base_path: "/a" } config < name: "double" base_path: "/d"'
        ' version_labels { key: "x}" value: 3 } > }',
        'model_config_list { config { base_path: "/d" # }\n'
        ' name: "dou" "ble" model_version_policy { all {} } } }',
        'model_config_list { config: [{ name: "a" base_path: "/a" }, { name: "double" base_path: "/d" }] }',
    ],
)
def test_writing_model_config_changes_only_the_model(text: str, tmp_path: Path) -> None:
    from google.protobuf import text_format

    path = tmp_path / "model.config"
    path.write_text(text)
    path.chmod(0o640)
    expected = text_format.Parse(text, protos.ModelServerConfig())
    for versions, labels in (({1}, {"stable": 1}), ({1, 2}, {"stable": 1, "canary": 2}), ({7}, {})):
        with lock_target(DeploymentTarget(tmp_path / "models", "double", path)) as target:
            target.write_config(versions, labels)
        entry = next(e for e in expected.model_config_list.config if e.name == "double")
        entry.model_version_policy.Clear()
        entry.model_version_policy.specific.versions.extend(sorted(versions))
        entry.version_labels.clear()
        entry.version_labels.update(labels)
        assert model_config.parse(path) == expected
        assert path.read_text().count("#") == (text.count("#") if "[" not in text else 0)
    assert path.stat().st_mode & 0o777 == 0o640
    assert {child.name for child in tmp_path.iterdir()} == {"model.config", ".model.config.lease", "models"}


def test_a_model_missing_from_model_config_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.config"
    path.write_text(CONFIG % ("/o", "/d"))
    with pytest.raises(InputError, match="no model 'food'; it has 'other', 'double'"):
        model_config.read(path, "food")


def test_repeated_rollbacks_go_further_back() -> None:
    def event(action: Action, old: int | None, new: int) -> Event:
        return Event(action, "m", old, new, label="stable")

    events = [event(Action.PROMOTE, 1, 2), event(Action.PROMOTE, 2, 3)]
    assert audit.previous_version(events, "stable", 3, {1, 2, 3}) == 2
    assert audit.previous_version(events, "stable", 3, {1, 3}) == 1
    assert audit.previous_version(events, "stable", 9, {1, 2, 3, 9}) == 3  # the label was moved by hand
    events.append(event(Action.ROLLBACK, 3, 2))
    assert audit.previous_version(events, "stable", 2, {1, 2, 3}) == 1
    events.append(event(Action.ROLLBACK, 2, 1))
    assert audit.previous_version(events, "stable", 1, {1, 2, 3}) is None
    assert audit.previous_version(events, "canary", 1, {1, 2, 3}) is None


def test_an_incomplete_last_log_line_is_skipped_and_a_damaged_line_is_an_error(tmp_path: Path) -> None:
    line = audit.to_line(Event(Action.PROMOTE, "m", None, 1))
    (tmp_path / AUDIT_LOG).write_text(f"{line}\n")
    whole = audit.read(LocalStore(tmp_path))
    with (tmp_path / AUDIT_LOG).open("a") as file:
        file.write('{"action": "pro')
    assert audit.read(LocalStore(tmp_path)) == whole
    with (tmp_path / AUDIT_LOG).open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match="line 2"):
        audit.read(LocalStore(tmp_path))


def test_concurrent_changes_are_rejected_by_the_lock(base: Path, models: Path) -> None:
    promote(DeploymentTarget(base, "double"), source=models / "1")
    with lock_target(DeploymentTarget(base, "double")), pytest.raises(OutputBusy):
        promote(DeploymentTarget(base, "double"), source=models / "2")
    assert bundle.versions(base) == [1]


def test_unsupported_addresses_are_rejected() -> None:
    assert parse_address("models/food") == Path("models/food")
    assert parse_address("gs://bucket/models/food/") == "gs://bucket/models/food"
    assert parse_address("az://container/models/food") == "az://container/models/food"
    for text in ("https://host/models", "gs://", "hdfs://a/b"):
        with pytest.raises(InputError):
            parse_address(text)


def test_promote_models_and_rollback_commands(
    base: Path, config: Path, models: Path, target: DeploymentTarget
) -> None:
    assert target.client
    where = ("--model_base_path", base, "--model_config_file", config, "--server", target.client.target)
    done = command("promote", "--model_version", "1", *where, "--json")
    assert done.exit_code == 0, done.output
    done = command("promote", models / "2", "--label", "canary", *where, "--reason", "trial")
    assert done.exit_code == 0, done.output
    assert "double: canary = version 2." in done.stdout
    listed = json.loads(command("models", *where, "--json").stdout)
    assert [version["labels"] for version in listed["versions"]] == [["canary"], ["stable"]]
    assert "canary" in command("models", *where).stdout
    assert command("promote", "--model_version", "2", *where).exit_code == 0
    back = json.loads(command("rollback", *where, "--json").stdout.splitlines()[-1])
    assert (back["old"], back["new"], back["also"]) == (2, 1, ["canary"])


def test_conflicting_flags_are_usage_errors(base: Path, models: Path) -> None:
    for arguments in (
        ("promote", "--model_base_path", base),
        ("promote", models / "1", "--model_base_path", base, "--label", "canary"),
        ("promote", models / "1", "--model_base_path", base, "--reload"),
        ("rollback", "--model_base_path", base, "--label", "canary"),
    ):
        assert command(*arguments).exit_code == 2, arguments
    refused = command("promote", models / "1", "--model_base_path", "ftp://bucket/food")
    assert isinstance(refused.exception, InputError)


def test_audit_log_and_verdict_take_text_that_is_not_utf8_and_contain_no_secrets(
    base: Path, models: Path
) -> None:
    directory, odd = models / "1", os.fsdecode(b"\xff\x1b")
    fetched = FetchedBundle(directory, "s3://key:secret@b/1")
    promote(DeploymentTarget(base, "double"), source=fetched, reason=odd)
    assert audit.read(LocalStore(base))[-1].reason == odd
    assert "secret" not in (base / "audit.jsonl").read_text("utf-8")
    found = verdict.read(directory)
    assert found
    verdict.write(directory, replace(found, live=odd))
    assert verdict.read(directory) == replace(found, live=odd)

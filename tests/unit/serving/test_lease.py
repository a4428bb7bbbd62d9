"""Lease of a directory: publications are decided once, completed after interruptions, and fenced."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.errors import LeaseLost, OutputBusy, OutputError
from serving.storage import files, lease
from serving.storage.lease import Lease, hold, read_intent
from tests.support.object_stores import expire_lease


@contextmanager
def taken_over(root: Path) -> Iterator[Lease]:
    """Let the present lease expire, and hold the next one."""
    expire_lease(f"{root}/lease")
    with hold(str(root), "lease", "Busy:") as other:
        yield other


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != "lease")


def test_a_publication_replaces_moves_and_deletes_files(tmp_path: Path) -> None:
    for name in ("old", "staged", "kept"):
        (tmp_path / name).write_text(name)
    with hold(str(tmp_path), "lease", "Busy:") as held:
        held.publish({"deep/new": b"new"}, moves=[("staged", "moved")], removes=["old", "missing"])
        assert files.list_names(f"{tmp_path}/lease") == ["00000001", "00000002", "staged"]
    assert names(tmp_path) == ["deep", "kept", "moved"]
    assert (tmp_path / "deep" / "new").read_bytes() == b"new"
    assert not read_intent(str(tmp_path), "lease")
    with hold(str(tmp_path), "lease", "Busy:") as held:
        assert files.list_names(f"{tmp_path}/lease") == ["00000003", "staged"]


def test_permissions_of_a_replaced_file_are_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o640)
    with hold(str(tmp_path), "lease", "Busy:") as held:
        held.publish({"file": b"new"})
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_holder_that_was_overtaken_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(LeaseLost, match="took over; this one has published nothing since"):  # noqa: SIM117, PT012
        with hold(str(tmp_path), "lease", "Busy:") as held:
            with taken_over(tmp_path) as other:
                other.publish({"a": b"theirs"})
            with pytest.raises(LeaseLost):
                held.publish({"a": b"mine", "b": b"mine"})
            held.publish(removes=["a"])
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"theirs"
    with hold(str(tmp_path), "lease", "Busy:"):
        pass


def test_a_number_that_is_free_again_does_not_decide_a_publication(tmp_path: Path) -> None:
    with hold(str(tmp_path), "lease", "Busy:") as held:
        for content in (b"1", b"2", b"3"):
            with taken_over(tmp_path) as other:
                other.publish({"a": content})
        numbers = [path.name for path in (tmp_path / "lease").glob("0*")]
        assert f"{held.number + 1:08d}" not in numbers
        with pytest.raises(LeaseLost):
            held.publish({"a": b"mine"})
    assert (tmp_path / "a").read_bytes() == b"3"
    with hold(str(tmp_path), "lease", "Busy:"):
        assert (tmp_path / "a").read_bytes() == b"3"


@pytest.mark.parametrize("done", [0, 1, 2])
def test_an_interrupted_publication_is_completed_by_the_next_holder(
    tmp_path: Path, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").touch()
    left = done

    def fail(path: str, other: str) -> bool:
        nonlocal left
        if not left:
            raise OutputError("The disk is full.")
        left -= 1
        return rename(path, other)

    rename = files.rename
    with monkeypatch.context() as patch:
        patch.setattr(files, "rename", fail)
        with pytest.raises(OutputError, match="disk is full"), hold(str(tmp_path), "lease", "Busy:") as held:
            held.publish({"a": b"1", "b": b"2", "c": b"3"}, removes=["old"])
    assert len(names(tmp_path)) == done + 1
    assert read_intent(str(tmp_path), "lease")["removes"] == ["old"]
    with hold(str(tmp_path), "lease", "Busy:") as held:
        assert names(tmp_path) == ["a", "b", "c"]
    assert not read_intent(str(tmp_path), "lease")


def test_a_worker_process_notices_that_the_lease_is_lost(tmp_path: Path) -> None:
    with hold(str(tmp_path), "lease", "Busy:") as held:
        worker = pickle.loads(pickle.dumps(held))
        held.publish({"a": b"1"})
        worker.check()
        staged = worker.stage({"c": b"3"})
        with taken_over(tmp_path):
            assert not files.list_names(f"{tmp_path}/{worker.staging}")
        with pytest.raises(LeaseLost):
            worker.check()
        with pytest.raises(LeaseLost):
            worker._perform({"moves": staged, "removes": []})
    assert names(tmp_path) == ["a"]


def test_a_staged_file_that_is_gone_means_that_the_lease_is_lost(tmp_path: Path) -> None:
    with pytest.raises(LeaseLost), hold(str(tmp_path), "lease", "Busy:") as held:  # noqa: PT012
        plan = f"{tmp_path}/{held.staging}/plan"
        files.write(plan, b"plan")
        with taken_over(tmp_path):
            pass
        files.read(plan)


def write_entry(root: Path, seconds_ago: float) -> Path:
    """Write the entry of a process of another host, and return its file."""
    file = root / "lease" / "00000005"
    file.parent.mkdir()
    entry = {"host": "elsewhere", "pid": 7, "token": "t", "time": time.time() - seconds_ago}
    file.write_text(json.dumps(entry))
    return file


def test_a_process_of_another_host_that_renews_its_lease_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_entry(tmp_path, 60).parent

    def renew(_: float) -> None:
        (directory / "beat-t").write_text(json.dumps({"time": now()}))

    now = time.time
    monkeypatch.setattr(lease.time, "sleep", renew)
    with pytest.raises(OutputBusy, match="process 7 on elsewhere"), hold(str(tmp_path), "lease", "Busy:"):
        pass


@pytest.mark.parametrize("seconds_ago", [lease.LEASE_SECONDS - 0.1, -3600], ids=["silent", "fast clock"])
def test_the_lease_of_a_process_that_was_killed_on_another_host_is_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seconds_ago: float
) -> None:
    write_entry(tmp_path, seconds_ago)
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: clock.append(clock[-1] + seconds))
    clock = [time.monotonic()]
    monkeypatch.setattr(lease.time, "monotonic", lambda: clock[-1])
    if seconds_ago > 0:
        start = time.time() - clock[0]
        monkeypatch.setattr(lease.time, "time", lambda: start + clock[-1])
    with hold(str(tmp_path), "lease", "Busy:") as held:
        assert held.number == 6
    assert "(process 7 on elsewhere), unless it was killed. Waiting until" in caplog.text
    assert clock[-1] - clock[0] <= lease.LEASE_SECONDS


def test_a_damaged_entry_does_not_hold_a_lease(tmp_path: Path) -> None:
    directory = write_entry(tmp_path, 0).parent
    (directory / "00000006").write_text("torn {")
    with hold(str(tmp_path), "lease", "Busy:") as held:
        assert held.number == 7
        assert files.list_names(str(directory)) == ["00000007"]


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot"), hold(str(tmp_path / "file"), "lease", "Busy:"):
        pass


def test_temporary_files_of_a_killed_holder_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / ".tmp-abc").write_bytes(b"cut off")
    with hold(str(tmp_path), "lease", "Busy:"):
        assert ".tmp-abc" not in files.list_names(f"{tmp_path}/lease")

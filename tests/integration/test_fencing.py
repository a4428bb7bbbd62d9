"""A process that was stopped for longer than its lease changes nothing after another one took over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batch.embeddings import EmbeddingStore, maintenance
from serving.errors import OutputBusy
from serving.registry import audit
from serving.registry.audit import Action
from serving.registry.stores.download import open_store
from serving.registry.target import DeploymentTarget
from serving.storage import files, lease
from serving.storage.address import parse_address
from tests.support import fencing, object_stores
from tests.support.embedding_store import D, fill, rows, sha
from tests.support.processes import environment
from tests.support.registry import CONFIG, write_bundle

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with object_stores.serve_s3() as address:
        yield address


@pytest.fixture
def where(request: pytest.FixtureRequest, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Directory on the local disk or on S3 (the indirect parameter), with a lease of less than a second."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", fencing.LEASE_SECONDS)
    if request.param == "local":
        return str(tmp_path / "where")
    return object_stores.new_base_path("s3", monkeypatch, {"s3": s3})


@contextmanager
def stopped(
    change: str, where: str, name: str, function: str, number: int
) -> Iterator[subprocess.Popen[str]]:
    """Run a change in a process that is stopped by SIGSTOP before the n-th call of a method of its lease."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.fencing", change, where, name, function, str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line == "waiting\n", process.communicate(timeout=20)
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def take_over(change: str, where: str, name: str) -> None:
    """Make a change in this process, as soon as the lease of the other one has expired."""
    deadline = time.monotonic() + 20
    while True:
        try:
            fencing.CHANGES[change](where, name)
            return
        except OutputBusy:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def snapshot(where: str) -> dict[str, bytes]:
    """Return the content of all files but those of leases."""
    paths = [path for path, _ in files.walk_files(where) if "lease/" not in path and ".staging-" not in path]
    return {path: files.read(f"{where}/{path}") for path in paths}


def assert_fenced(change: str, where: str, first: str, second: str, function: str, number: int) -> None:
    """Stop one process, let another one take over and publish, and continue the first one."""
    with stopped(change, where, first, function, number) as process:
        take_over(change, where, second)
        published = snapshot(where)
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate("\n", timeout=30)
    assert process.returncode == 1, errors
    assert errors.startswith("LeaseLost: This process was stopped for longer than its lease of "), errors
    assert f"another process (process {os.getpid()} on " in errors
    assert "Run the same command again." in errors
    assert snapshot(where) == published


def steps(*local: tuple[str, int], s3: tuple[tuple[str, int], ...]) -> pytest.MarkDecorator:
    """Run a test with a process that is stopped at each of these steps, on the local disk and on S3."""
    cases = [("local", *step) for step in local] + [("s3", *step) for step in s3]
    return pytest.mark.parametrize(("where", "function", "number"), cases, indirect=["where"])


# Publications of a scoring run: delete run.json, write input.json, delete outdated records and rows, move the
# new shards into place, publish run.json: the fifth that is carried out, as no record is outdated here.
@steps(
    ("publish", 1), ("publish", 4), ("publish", 5), ("publish", 6), ("_perform", 5),
    s3=(("publish", 4), ("publish", 5), ("_perform", 5)),
)  # fmt: skip
def test_scores(where: str, function: str, number: int) -> None:
    fencing.write_scores(where, "previous")
    assert_fenced("scores", where, "first", "second", function, number)
    assert files.read(f"{where}/out/run.json") == b"second"


@steps(("publish", 1), ("_perform", 3), s3=(("publish", 1),))
def test_maintenance_of_the_embedding_store(
    where: str, function: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "YOUNG_SECONDS", fencing.YOUNG_SECONDS)
    store = EmbeddingStore(f"{where}/store", "f1", D)
    for start in range(0, 40, 20):
        fill(store, list(range(start, start + 20)))
    store.append({}, rows([100]))  # prune deletes it
    assert_fenced("embeddings", where, "", "", function, number)
    reader = EmbeddingStore(f"{where}/store", "f1", D)
    assert len(reader.get([sha(number) for number in range(101)]).shas) == 40


@steps(("publish", 1), ("_perform", 1), s3=(("publish", 1), ("_perform", 1)))
def test_promotion(where: str, tmp_path: Path, function: str, number: int) -> None:
    first, second = (write_bundle(tmp_path / "trained", version) for version in (1, 2))
    assert_fenced("registry", where, str(first), str(second), function, number)
    store = open_store(parse_address(f"{where}/models/double"))
    # What was decided is completed by the process that takes over, before its own promotion.
    decided = function == "_perform"
    assert store.versions() == ([1, 2] if decided else [2])
    events = [(event.action.value, event.new) for event in audit.read(store)]
    assert events == [("publish", 1)] * decided + [("publish", 2), ("promote", 2)]


@steps(("publish", 2), ("publish", 3), s3=(("publish", 2),))
def test_labels(where: str, tmp_path: Path, function: str, number: int) -> None:
    bundles = [str(write_bundle(tmp_path / "trained", version)) for version in (1, 2, 3)]
    files.write(f"{where}/model.config", (CONFIG % ("/other", f"{where}/models/double")).encode())
    fencing.move_label(where, bundles[0])
    assert_fenced("labels", where, bundles[1], bundles[2], function, number)
    base, config = (parse_address(f"{where}/{name}") for name in ("models/double", "model.config"))
    assert DeploymentTarget(base, "double", config).read_config().labels == {"stable": 3}
    promoted = [event.new for event in audit.read(open_store(base)) if event.action is Action.PROMOTE]
    assert promoted == [1, 3]

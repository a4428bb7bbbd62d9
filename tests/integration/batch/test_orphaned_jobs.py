"""Jobs that go on after their driver was killed, beside a second run over the same output.

Whatever the second run is, and whenever the orphaned job ends: after exit code 0 of the second run the
readers see each row once, those of an undisturbed run, and still do when the orphaned job has ended.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from serving.storage import files
from tests.support import object_stores, orphans
from tests.support.beam_cluster import write_delays
from tests.support.orphans import ADDED, PHOTOS, Command, Scene

pytestmark = [pytest.mark.tf, pytest.mark.beam, pytest.mark.server, pytest.mark.slow(seconds=90)]

OVERWRITE = "--overwrite"
LABEL, DATE = ("--partition_by", "label"), ("--partition_by", "date")


@dataclass(frozen=True)
class Change:
    """Runs over one output.

    Attributes:
        first: command whose driver is killed.
        second: command that must succeed.
        before: command that completes before both; None for none.
    """

    first: Command
    second: Command
    before: Command | None = None


MORE = PHOTOS + ADDED
CHANGES = {
    "same command": Change(Command(), Command()),
    "other model": Change(Command(), Command(1, flags=(OVERWRITE,))),
    "other model over complete scores": Change(
        Command(1, flags=(OVERWRITE,)), Command(flags=(OVERWRITE,)), Command()
    ),
    "photos added": Change(Command(), Command(photos=MORE)),
    "photos added to complete scores": Change(Command(photos=MORE), Command(photos=MORE + 3), Command()),
    "only_new": Change(Command(flags=("--only_new",)), Command(photos=MORE, flags=("--only_new",))),
    "only_new over complete scores": Change(
        Command(photos=MORE, flags=("--only_new",), run_id="day"),
        Command(photos=MORE + 3, flags=("--only_new",), run_id="noon"),
        Command(),
    ),
    "partition_by label": Change(Command(), Command(flags=LABEL)),
    "partition_by date": Change(
        Command(photos=MORE, flags=LABEL),
        Command(photos=MORE, flags=(*DATE, OVERWRITE)),
        Command(flags=LABEL),
    ),
}

DRIVER_STEPS = (
    "Publication.__post_init__",
    "Output.list_records",
    "Output.list_row_files",
    "Publication.find",
    "Publication.collect",
    "Publication.publish",
    "Lease._advance",
    "Lease._perform",
    "Output.publish_shards",
    "Output.publish_run",
    "Output.remove_attempts",
)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with object_stores.serve_s3() as address:
        yield address


@pytest.fixture(scope="module")
def scene(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    environment = {**object_stores.AWS, "AWS_ENDPOINT_URL": s3}
    with orphans.run_scene(tmp_path_factory.mktemp("orphans"), environment) as scene:
        yield scene


@pytest.fixture
def place(tmp_path: Path, scene: Scene) -> Iterator[Path]:
    """Directory of a test, after which no job is running."""
    yield tmp_path
    (tmp_path / "gate").touch()
    scene.cluster.delay()
    scene.wait_for_orphans()


@pytest.fixture
def s3_output(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    return object_stores.new_base_path("s3", monkeypatch, {"s3": s3})


def leave_orphan(
    scene: Scene, change: Change, place: Path, output: str, step: str = "Attempt.commit"
) -> None:
    """Kill the driver of the first command when a worker is before a step, usually after some shards.

    The worker waits until there is the file `gate`, and then goes on with its job.
    """
    log, gate = scene.top / "delays.log", f"{step} wait {place / 'gate'}"
    waiting = log.stat().st_size if log.exists() else 0
    if change.before:  # few shards are open then, and the worker waits before the first
        scene.run(change.before, place, output)
        scene.cluster.delay(gate)
    else:
        scene.cluster.delay("Attempt.commit 0.2")
    process = scene.start(change.first, place, output)
    if not change.before:
        wait_until(lambda: len(orphans.list_finished(output)) >= 2 or not process.is_alive())
        scene.cluster.delay(gate)
    wait_until(lambda: log.exists() and log.stat().st_size > waiting)
    assert orphans.kill(process) < 0, "it ended before it was killed"
    scene.cluster.delay()
    assert scene.count_running() == 1


def wait_until(condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def end_orphan(scene: Scene, place: Path, running: int = 0) -> None:
    """Let the orphaned job go on, and wait until it has ended."""
    (place / "gate").touch()
    wait_until(lambda: scene.count_running() <= running)


@contextmanager
def paused(scene: Scene, place: Path, step: str, output: str, command: Command) -> Iterator[None]:
    """Start a command, wait until it is before a step, and let it go on to success after the block."""
    log = place / "delays.log"
    write_delays(place / "delays", f"{step} wait {place / 'go'} #1")
    process = scene.start(command, place, output)
    wait_until(lambda: log.exists() and step in log.read_text())
    yield
    (place / "go").touch()
    orphans.assert_success(process, place)


def run_second(scene: Scene, change: Change, place: Path, output: str, step: str) -> None:
    """Make the second run, while the orphan ends at the step: `before`, `after`, or one of the driver."""
    if step == "before":
        end_orphan(scene, place)
    if step in ("before", "after"):
        scene.run(change.second, place, output)
    else:
        with paused(scene, place, step, output, change.second):
            end_orphan(scene, place, running=scene.count_running() - 1)
    orphans.check_rows(output, scene.expect(change.second), place)
    end_orphan(scene, place)
    orphans.check_rows(output, scene.expect(change.second), place)
    assert not files.list_names(f"{output}/_hubhead/attempts") or step == "after"
    assert "Traceback" not in (place / "log").read_text()


@pytest.mark.parametrize(
    ("name", "step"),
    [(name, step) for name in CHANGES for step in ("Publication.collect", "after")]
    + [(name, "before") for name in ("same command", "other model", "only_new")],
)
def test_rows_are_those_of_an_undisturbed_run(scene: Scene, place: Path, name: str, step: str) -> None:
    output = str(place / "out")
    leave_orphan(scene, CHANGES[name], place, output)
    run_second(scene, CHANGES[name], place, output, step)


@pytest.mark.parametrize(("number", "step"), list(enumerate(DRIVER_STEPS)))
def test_an_orphan_that_ends_before_any_step_of_the_driver_changes_nothing(
    scene: Scene, place: Path, number: int, step: str
) -> None:
    change = list(CHANGES.values())[number % len(CHANGES)]
    output = str(place / "out")
    leave_orphan(scene, change, place, output)
    run_second(scene, change, place, output, step)


@pytest.mark.parametrize("ends", ["Publication.collect", "after"])
@pytest.mark.parametrize("step", ["Attempt.check", "Lease.check", "create_if_absent"])
def test_an_orphan_that_waits_at_any_step_of_a_worker_changes_nothing(
    scene: Scene, place: Path, step: str, ends: str
) -> None:
    change = CHANGES["other model over complete scores" if ends == "after" else "photos added"]
    output = str(place / "out")
    leave_orphan(scene, change, place, output, step)
    run_second(scene, change, place, output, ends)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("same command", "before"),
        ("other model over complete scores", "Output.publish_shards"),
        ("photos added", "Publication.collect"),
        ("only_new over complete scores", "after"),
        ("partition_by label", "Output.publish_run"),
    ],
)
def test_rows_on_an_object_store_are_those_of_an_undisturbed_run(
    scene: Scene, place: Path, s3_output: str, name: str, step: str
) -> None:
    leave_orphan(scene, CHANGES[name], place, s3_output)
    run_second(scene, CHANGES[name], place, s3_output, step)


def test_finished_shards_of_a_killed_run_are_adopted(scene: Scene, place: Path) -> None:
    output = str(place / "out")
    leave_orphan(scene, CHANGES["same command"], place, output)
    finished = set(orphans.list_finished(output))
    scene.run(Command(), place, output)
    log = (place / "log").read_text()
    assert "of them were written by a previous run" in log
    assert "left a job running" in log
    assert "It was RUNNING and has been cancelled." in log
    assert len(finished) >= 2


def test_random_attempts(scene: Scene) -> None:
    figures = orphans.attempt_at_random(scene, 5, random.Random(5))
    assert figures.problems == []
    assert figures.attempts >= 5

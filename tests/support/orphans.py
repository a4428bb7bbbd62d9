"""Scoring runs on a Beam cluster whose drivers are killed while their jobs go on.

`python -m tests.support.orphans --attempts 100 --seed 1` makes attempts at distributed runs on one job server
and one pool. Each driver is killed at a random point, by SIGKILL, SIGTERM or SIGINT, and the next attempt
changes the command at random: the model, added photos, --only_new, the partitions. An output is completed by
an attempt that is not killed. Then its rows must be those of an undisturbed run, each once, and still be so
when all orphaned jobs have ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from serving.storage import files
from tests.support import drivers, processes
from tests.support.beam_cluster import BeamCluster, delayed, write_delays
from tests.support.delays import sitecustomize
from tests.support.score_job import GOOD, make_bundle

PHOTOS, ADDED = 24, 5
SHARD_SIZE = 2
SECONDS = 120.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A command line of `hubhead score`.

    Attributes:
        model: number of the model.
        photos: number of photos in the input.
        flags: further flags.
        run_id: id of the run.
    """

    model: int = 0
    photos: int = PHOTOS
    flags: tuple[str, ...] = ()
    run_id: str = "night"


@dataclass
class Scene:
    """A cluster, models, and the drivers of runs on it.

    Attributes:
        top: directory of all local files.
        cluster: job server and pool.
        models: bundle directories, in the order of Command.model.
        expected: rows of an undisturbed run by model and number of photos.
    """

    top: Path
    cluster: BeamCluster
    models: Sequence[Path]
    expected: dict[tuple[int, int], list[Row]] = field(default_factory=dict)

    def make_photos(self, place: Path, count: int) -> Path:
        """Create the first photos of a directory."""
        photos = place / "photos"
        photos.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            content = b"text" if number == 7 else GOOD + bytes([number]) * number
            if not (path := photos / f"{number}.jpg").exists():
                path.write_bytes(content)
        return photos

    def start(self, command: Command, place: Path, output: str) -> BaseProcess:
        """Start a driver; `place` has its photos, its log and the file of its delays."""
        arguments = ["score", "--photos", str(self.make_photos(place, command.photos))]
        arguments += ["--model", str(self.models[command.model]), "--output", output]
        arguments += ["--embedding_store", str(self.top / "store"), "--shard_size", str(SHARD_SIZE)]
        arguments += ["--run_id", command.run_id, *command.flags, "--", *self.cluster.beam_args]
        temporary = place / "tmp"
        temporary.mkdir(exist_ok=True)
        environment = {**self.cluster.environment, **delayed(place / "delays"), "TMPDIR": str(temporary)}
        return drivers.start(arguments, place / "log", environment)

    def run(self, command: Command, place: Path, output: str) -> None:
        """Run a command to its end, which must be a success."""
        assert_success(self.start(command, place, output), place)

    def expect(self, command: Command) -> list[Row]:
        """Return the rows of an undisturbed run."""
        key = command.model, command.photos
        if key not in self.expected:
            place = self.top / f"undisturbed-{command.model}-{command.photos}"
            self.run(Command(command.model, command.photos), place, str(place / "out"))
            self.expected[key] = read_rows(place / "out")
            assert len(self.expected[key]) == command.photos
        return self.expected[key]

    def count_running(self) -> int:
        """Return the number of jobs that the job server runs, also if it calls them cancelled."""
        log = (self.top / "jobs.log").read_text()
        return (
            log.count("Running job '") - log.count("Completed job in ") - log.count("Error running pipeline.")
        )

    def wait_for_orphans(self) -> None:
        """Wait until no job is running."""
        processes.eventually(lambda: self.count_running() == 0, "orphaned jobs", SECONDS)


@contextmanager
def run_scene(top: Path, environment: Mapping[str, str]) -> Iterator[Scene]:
    """Start a cluster and the server of drivers, both with these environment variables."""
    models = [
        make_bundle(top / "models" / "food" / str(version), scale=version, max_bytes=10_000)
        for version in (1, 2)
    ]
    drivers.start_server({**environment, **delayed(top / "no-delays")})
    with BeamCluster(top, dict(environment)).run() as cluster:
        yield Scene(top, cluster, models)


def assert_success(process: BaseProcess, place: Path) -> None:
    """Wait for a driver, which must succeed."""
    process.join(SECONDS)
    assert process.exitcode == 0, (process.exitcode, (place / "log").read_text())


def kill(process: BaseProcess, number: int = signal.SIGKILL) -> int:
    """Send a signal to a driver, and return its exit code, negative if the signal ended it."""
    if process.exitcode is None and process.pid:
        os.kill(process.pid, number)
    process.join(SECONDS)
    assert process.exitcode is not None, "it does not end"
    return int(process.exitcode)


def list_finished(output: str) -> list[str]:
    """Return the ids of the shards that attempts finished and did not publish."""
    top = f"{output}/_hubhead/attempts"
    return [name for token in files.list_names(top) for name in files.list_names(f"{top}/{token}/shards")]


def check_rows(output: str, expected: Sequence[Row], scratch: Path) -> None:
    """Check that pyarrow and DuckDB read each row once, and that run.json agrees."""
    local = Path(output)
    if files.is_remote(output):
        local = scratch / "copy"
        shutil.rmtree(local, ignore_errors=True)
        for path, _ in files.walk_files(output):
            (local / path).parent.mkdir(parents=True, exist_ok=True)
            (local / path).write_bytes(files.read(f"{output}/{path}"))
    assert read_rows(local) == expected
    assert query_rows(local) == [(row["uri"], row["label"], row["version"]) for row in expected]
    run = json.loads((local / "run.json").read_text())
    assert [model["version"] for model in run["models"]] == [expected[0]["version"]]
    if not run["settings"]["only_new"]:
        assert run["rows"] == len(expected), "run.json has another number of rows"
    assert [path.name for path in (local / "_hubhead").glob("attempts/*/plan")] == []


def read_rows(output: Path) -> list[Row]:
    """Return the rows that pyarrow finds below scores/, without what differs between undisturbed runs."""
    import pyarrow.parquet as pq

    rows = pq.read_table(output / "scores").to_pylist()
    keys = rows[0].keys() - {"scored_at", "date"}
    found = [{**{key: row[key] for key in sorted(keys)}, "uri": Path(row["uri"]).name} for row in rows]
    return sorted(found, key=lambda row: (row["uri"], row["version"]))


def query_rows(output: Path) -> list[tuple[Any, ...]]:
    """Return uri, label and version of the rows that DuckDB finds."""
    import duckdb

    pattern = str(output / "scores" / "**" / "*.parquet")
    query = f"select uri, label, version from read_parquet('{pattern}', hive_partitioning = true)"
    found = duckdb.connect().execute(query).fetchall()
    return sorted((Path(uri).name, label, version) for uri, label, version in found)


# --- Random attempts ----------------------------------------------------------------------------------


@dataclass
class Figures:
    """Result of random attempts, printed as JSON.

    Attributes:
        attempts: number of attempts.
        ended_by: attempts by the signal that ended them; "" for those that ended by themselves.
        killed_with: killed attempts by the number of finished shards at that time.
        outputs: number of completed outputs.
        orphans: orphaned jobs that were still running when an output was completed.
        problems: descriptions of what was wrong.
    """

    attempts: int = 0
    ended_by: Counter[str] = field(default_factory=Counter)
    killed_with: Counter[int] = field(default_factory=Counter)
    outputs: int = 0
    orphans: int = 0
    problems: list[str] = field(default_factory=list)


def attempt_at_random(scene: Scene, attempts: int, rng: random.Random) -> Figures:
    """Make attempts at outputs until there were as many as wanted and the last output is complete."""
    figures = Figures()
    while figures.attempts < attempts:
        place = scene.top / f"output-{figures.outputs}"
        place.mkdir()
        _complete(scene, place, figures, rng)
        figures.outputs += 1
        print(f"{figures.attempts} attempts, {figures.outputs} outputs", file=sys.stderr, flush=True)
    scene.wait_for_orphans()
    return figures


def _complete(scene: Scene, place: Path, figures: Figures, rng: random.Random) -> None:
    """Make attempts at an output until one is not killed, and check its rows."""
    output, history = str(place / "out"), [Command()]
    with ExitStack() as gates:
        for left in reversed(range(rng.randint(1, 6))):
            write_delays(place / "delays", *_random_delays(rng))
            worker_step = rng.choice(["Attempt.check", "create_if_absent", "Lease.check"])
            scene.cluster.delay(f"Attempt.commit ~{rng.choice([0, 0.05, 0.3])}", f"{worker_step} ~0.1")
            process = scene.start(history[-1], place, output)
            figures.attempts += 1
            code, number = _end(scene, process, place, gates, figures, rng, kills=left > 0)
            if code not in (0, -number, 128 + number):
                figures.problems.append(f"{place.name}: {history[-1]} exits with {code}")
                return
            figures.ended_by["" if code == 0 else signal.Signals(number).name] += 1
            if left:
                history.append(_change(history, rng))
        figures.orphans += scene.count_running()
        _check(scene, history[-1], place, figures, "after the run")
    scene.wait_for_orphans()
    _check(scene, history[-1], place, figures, "after the orphans")
    if "Traceback" in (place / "log").read_text():
        figures.problems.append(f"{place.name}: a traceback in its log")
    if left_over := [*(place / "tmp").iterdir()]:
        figures.problems.append(f"{place.name}: leftovers, {left_over[0]}")


def _end(
    scene: Scene,
    process: BaseProcess,
    place: Path,
    gates: ExitStack,
    figures: Figures,
    rng: random.Random,
    *,
    kills: bool,
) -> tuple[int, int]:
    """Kill a driver, or wait for its end; return its exit code and the signal.

    Often the workers of a killed driver wait at a gate, which opens during the next attempts, or when the
    output is complete.
    """
    if not kills:
        process.join(SECONDS)
        return process.exitcode if process.exitcode is not None else 1, 0
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    process.join(rng.uniform(0.3, 4))
    if rng.random() < 0.7 and process.is_alive():
        gate = place / f"gate-{figures.attempts}"
        scene.cluster.delay(f"Attempt.commit wait {gate}")
        process.join(rng.uniform(0, 0.5))
        gates.callback(gate.touch)
        if rng.random() < 0.5:
            timer = threading.Timer(rng.uniform(0, 4), gate.touch)
            timer.start()
            gates.callback(timer.cancel)
    figures.killed_with[len(list_finished(str(place / "out")))] += 1
    return kill(process, number), number


def _check(scene: Scene, command: Command, place: Path, figures: Figures, when: str) -> None:
    try:
        check_rows(str(place / "out"), scene.expect(command), place)
    except (AssertionError, OSError, ValueError) as error:
        figures.problems.append(f"{place.name}, {when}: {command}: {str(error)[:500]}")


def _random_delays(rng: random.Random) -> list[str]:
    """Return delays of some steps of a driver."""
    names = sorted(f"{step}" for steps in sitecustomize.STEPS.values() for step in steps)
    return [f"{step} ~{rng.choice([0.02, 0.3])}" for step in rng.sample(names, 4)]


def _change(history: Sequence[Command], rng: random.Random) -> Command:
    """Return the next command: the same, or another one that may follow."""
    last = history[-1]
    layouts = {(command.model, command.flags) for command in history}
    kinds = ["same", "same", "model", "photos", "partition"]
    # Rows are only added to those of the same model and partitions.
    kind = rng.choice([*kinds, "only_new", "only_new"] if len(layouts) == 1 else kinds)
    more = min(last.photos + ADDED, 200)
    if kind == "same":
        return last
    if kind == "only_new":
        return Command(last.model, more, ("--only_new",), rng.choice(["night", "day"]))
    partition: tuple[str, ...] = tuple(
        flag for flag in last.flags if flag not in ("--only_new", "--overwrite")
    )
    if kind == "partition":
        partition = rng.choice([(), ("--partition_by", "date"), ("--partition_by", "label")])
    model = 1 - last.model if kind == "model" else last.model
    return Command(model, more if kind == "photos" else last.photos, (*partition, "--overwrite"))


def main() -> None:
    """Make random attempts, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--attempts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="hubhead-orphans-"))
    start = time.monotonic()
    with run_scene(top, {}) as scene:
        figures = attempt_at_random(scene, given.attempts, random.Random(given.seed))
    print(json.dumps({**vars(figures), "seconds": round(time.monotonic() - start)}, indent=2))
    if figures.problems:
        sys.exit(1)
    shutil.rmtree(top)


if __name__ == "__main__":
    main()

"""Crash tests of the batch job: `python -m tests.support.crash_tests` kills runs and fills disks, repeatedly.

Every run is a fork of this process, so that TensorFlow and Beam are imported only once. Most forks kill
themselves with SIGKILL before their n-th change to a file of the output or the store, which an audit hook
counts. Some are killed from outside after a random time. Some cannot write files above a random size, which
looks like a full disk. The job itself has no code for these tests.

Runs of one output are repeated until one succeeds. Then its rows must equal those of an undisturbed run, and
files of shards that were finished before a kill must be unchanged.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch.jobs import score
from batch.jobs.score import ScoreSettings
from serving.errors import OutputError

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"only_new": True},
    {"partition_by": "label"},
    {"only_new": True, "partition_by": "date"},
)
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
_SUCCESS, _NO_SPACE = 0, 7
_TIMEOUT_SECONDS = 120.0


@dataclass
class Report:
    """Result of the crash tests, printed as JSON.

    Attributes:
        kills: number of killed runs.
        full_disks: number of runs that met a full disk.
        outputs: number of outputs that were completed.
        changes: number of file changes of an undisturbed run.
        problems: descriptions of wrong rows, leftovers and repeated work.
    """

    kills: int
    full_disks: int
    outputs: int
    changes: int
    problems: list[str]


def main() -> None:
    """Read {photos, model, top, kills, seed} from stdin and print the report."""
    import apache_beam  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import tensorflow  # noqa: F401

    given = json.load(sys.stdin)
    print(json.dumps(vars(_run_crash_tests(given, random.Random(given["seed"])))))


def _run_crash_tests(given: dict[str, Any], rng: random.Random) -> Report:
    top = Path(given["top"])
    count_file = top / "changes"
    start = time.monotonic()
    undisturbed = _settings(given, top / "undisturbed", {})
    assert _run_fork(undisturbed, lambda: _count_changes(top / "undisturbed", count_file)) == _SUCCESS
    seconds = time.monotonic() - start
    report = Report(0, 0, 0, int(count_file.read_text()), [])
    expected = _read_rows(top / "undisturbed")
    while report.kills < given["kills"]:
        variant = VARIANTS[report.outputs % len(VARIANTS)]
        place = top / f"output-{report.outputs}"
        _run_until_success(_settings(given, place, variant), place, report, rng, seconds)
        if (rows := _read_rows(place)) != expected:
            report.problems.append(
                f"{place.name}: rows differ from the undisturbed run ({len(rows)}, expected {len(expected)})"
            )
        # Temporary files in the store may belong to a running job; only `hubhead embeddings` removes them.
        if left := [*(place / "out").rglob(".tmp-*"), *(place / "out" / "_hubhead").glob("attempts/*")]:
            report.problems.append(f"{place.name}: leftovers, {left[0].relative_to(place)}")
        report.outputs += 1
    return report


def _run_until_success(
    settings: ScoreSettings, place: Path, report: Report, rng: random.Random, seconds: float
) -> None:
    """Run a job with crashes until a run succeeds.

    Args:
        settings: settings of the job.
        place: directory of its output and store.
        report: report to update.
        rng: source of randomness.
        seconds: time that an undisturbed run takes.
    """
    finished: dict[str, tuple[int, int]] = {}
    while True:
        crash = rng.choices(["inside", "outside", "full"], [6, 2, 2])[0]
        if crash == "inside":
            point = rng.randint(1, report.changes)
            code = _run_fork(settings, lambda: _kill_at(place, point))  # noqa: B023
        elif crash == "outside":
            code = _run_fork(settings, lambda: None, kill_after=rng.uniform(0.1, 1.0) * seconds)
        else:
            max_size = rng.randint(200, 4000)
            code = _run_fork(settings, lambda: _limit_file_size(max_size))  # noqa: B023
        now = _list_finished(place / "out")
        for name, state in finished.items():
            if now.get(name) != state:
                report.problems.append(f"{name} of a finished shard was written again")
        finished = now
        if code == _SUCCESS:
            return
        if code == -signal.SIGKILL:
            report.kills += 1
        elif code == _NO_SPACE:
            report.full_disks += 1
        else:
            report.problems.append(f"{place.name}, {crash}: exit code {code}")
            return


def _settings(given: dict[str, Any], place: Path, variant: dict[str, Any]) -> ScoreSettings:
    return ScoreSettings(
        model=(Path(given["model"]),),
        output=str(place / "out"),
        photos=given["photos"],
        embedding_store=str(place / "store"),
        shard_size=4,
        run_id="night",
        **variant,
    )


def _run_fork(settings: ScoreSettings, prepare: Callable[[], Any], kill_after: float | None = None) -> int:
    """Run a job in a fork, and return its exit code, or the negative signal.

    Args:
        settings: settings of the job.
        prepare: called in the fork before the job; may return a function to call after it.
        kill_after: seconds until the fork is killed.
    """
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            after = prepare()
            try:
                score.score(settings)
                code = _SUCCESS
                if after:
                    after()
            except OutputError as error:
                code = _NO_SPACE if "File too large" in str(error) else 1
                print(error, file=sys.stderr)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
        os._exit(code)
    timer = threading.Timer(kill_after or _TIMEOUT_SECONDS, os.kill, (child, signal.SIGKILL))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    timer.join()
    return os.waitstatus_to_exitcode(status)


def _watch_changes(top: Path, before_change: Callable[[], None]) -> None:
    """Call `before_change` before every change to a file below `top`."""
    prefix = str(top)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if not (writes or (isinstance(mode, str) and set(mode) & set("wxa+"))):
                return
        elif event in _CHANGES:
            path = arguments[0]
        else:
            return
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(prefix):
            before_change()

    sys.addaudithook(hook)


def _count_changes(top: Path, into: Path) -> Callable[[], None]:
    """Count file changes, and return a function that writes the count to a file."""
    changes = 0

    def count() -> None:
        nonlocal changes
        changes += 1

    _watch_changes(top, count)
    return lambda: Path(into).write_text(str(changes)) and None


def _kill_at(top: Path, point: int) -> None:
    """Make this process kill itself before its n-th file change."""
    left = point

    def count_down() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    _watch_changes(top, count_down)


def _limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _list_finished(output: Path) -> dict[str, tuple[int, int]]:
    """Return the files of rows of finished shards, published or not, with their inodes and times."""
    top, found = output / "_hubhead", [output / "scores"]
    for record in top.glob("attempts/*/shards/*.json"):
        with contextlib.suppress(ValueError):  # cut off by a full disk
            found += [output / name for name, _ in json.loads(record.read_text())["moves"]]
    paths = [path for place in found for path in (place.rglob("*.parquet") if place.is_dir() else [place])]
    stats = {path: path.stat() for path in paths if path.suffix == ".parquet" and path.exists()}
    # The file of a shard keeps its path below `scores/` when it is moved.
    return {
        str(path).rpartition("/scores/")[2]: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()
    }


def _read_rows(place: Path) -> list[dict[str, Any]]:
    """Return all rows by uri, whatever the partitions, without the columns that differ between runs."""
    import pyarrow.parquet as pq

    table = pq.read_table(place / "out" / "scores").drop_columns(["scored_at"])
    names = [name for name in sorted(table.column_names) if name != "date"]
    return [
        {name: row[name] for name in names}
        for row in sorted(table.to_pylist(), key=lambda row: (row["uri"], row["status"]))
    ]


if __name__ == "__main__":
    main()

"""Batch runs that are killed or meet a full disk, repeatedly: `python -m tests.support.crash_tests`.

Every run is a fork of this process, so that TensorFlow and Beam are imported once. Most forks
end themselves by SIGKILL before their n-th change to a file of the output or the store, which an
audit hook counts; some are killed from outside after a random time; some may not write files
above a random size, which is what a full disk looks like. The job knows nothing of it.

The runs of one output go on until one comes through. Then its rows are held against those of an
undisturbed run, and the files of shards that were finished before a kill against what they were.
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
from collections.abc import Callable, Iterator
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
_CAME_THROUGH, _NO_SPACE = 0, 7
_LONGEST = 120.0


@dataclass
class Report:
    """What is printed, as JSON."""

    kills: int
    full_disks: int
    outputs: int
    changes: int
    problems: list[str]


def main() -> None:
    """Read {photos, model, top, kills, seed} from stdin, print the report."""
    import apache_beam  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import tensorflow  # noqa: F401

    given = json.load(sys.stdin)
    print(json.dumps(vars(_torment(given, random.Random(given["seed"])))))


def _torment(given: dict[str, Any], chance: random.Random) -> Report:
    top = Path(given["top"])
    counted = top / "changes"
    start = time.monotonic()
    undisturbed = _settings(given, top / "undisturbed", {})
    assert _forked(undisturbed, lambda: _count(top / "undisturbed", counted)) == _CAME_THROUGH
    took = time.monotonic() - start
    report = Report(0, 0, 0, int(counted.read_text()), [])
    expected = _rows(top / "undisturbed")
    while report.kills < given["kills"]:
        variant = VARIANTS[report.outputs % len(VARIANTS)]
        place = top / f"output-{report.outputs}"
        _until_through(_settings(given, place, variant), place, report, chance, took)
        if (rows := _rows(place)) != expected:
            report.problems.append(f"{place.name}: {len(rows)} rows, {len(expected)} expected, or other ones")
        # One in the store may be of another run that is at work: only the upkeep of the store removes it.
        if left := [*(place / "out").rglob(".tmp-*"), *(place / "out" / "_hubhead").glob("plan/*")]:
            report.problems.append(f"{place.name}: leftovers, {left[0].relative_to(place)}")
        report.outputs += 1
    return report


def _until_through(
    settings: ScoreSettings, place: Path, report: Report, chance: random.Random, took: float
) -> None:
    finished: dict[Path, tuple[int, int]] = {}
    while True:
        way = chance.choices(["inside", "outside", "full"], [6, 2, 2])[0]
        if way == "inside":
            point = chance.randint(1, report.changes)
            code = _forked(settings, lambda: _die_at(place, point))  # noqa: B023
        elif way == "outside":
            code = _forked(settings, lambda: None, kill_after=chance.uniform(0.1, 1.0) * took)
        else:
            most = chance.randint(200, 4000)
            code = _forked(settings, lambda: _no_file_above(most))  # noqa: B023
        for path, state in finished.items():
            if not path.exists() or _state(path) != state:
                report.problems.append(f"{path.name} of a finished shard was made again")
        finished = {path: _state(path) for path in _finished(place / "out")}
        if code == _CAME_THROUGH:
            return
        if code == -signal.SIGKILL:
            report.kills += 1
        elif code == _NO_SPACE:
            report.full_disks += 1
        else:
            report.problems.append(f"{place.name}, {way}: ended with {code}")
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


def _forked(settings: ScoreSettings, prepare: Callable[[], Any], kill_after: float | None = None) -> int:
    """How a run in a process of its own ended: its exit code, or minus the signal."""
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            after = prepare()
            try:
                score.score(settings)
                code = _CAME_THROUGH
                if after:
                    after()
            except OutputError as error:
                code = _NO_SPACE if "File too large" in str(error) else 1
                print(error, file=sys.stderr)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
        os._exit(code)
    timer = threading.Timer(kill_after or _LONGEST, os.kill, (child, signal.SIGKILL))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    timer.join()
    return os.waitstatus_to_exitcode(status)


def _watch(top: Path, change: Callable[[], None]) -> None:
    """Call `change` before every change to a file below `top`."""
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
            change()

    sys.addaudithook(hook)


def _count(top: Path, into: Path) -> Callable[[], None]:
    changes = 0

    def change() -> None:
        nonlocal changes
        changes += 1

    _watch(top, change)
    return lambda: Path(into).write_text(str(changes)) and None


def _die_at(top: Path, point: int) -> None:
    left = point

    def change() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    _watch(top, change)


def _no_file_above(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _finished(output: Path) -> Iterator[Path]:
    """The files of the rows of finished shards, by their records."""
    for record in (output / "_hubhead" / "shards").glob("[0-9a-f]*.json"):
        for path in json.loads(record.read_text())["files"]:
            yield output / "scores" / path


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_ino, about.st_mtime_ns


def _rows(place: Path) -> list[dict[str, Any]]:
    """All rows by uri, in whatever directories they are, without the columns that tell runs apart."""
    import pyarrow.parquet as pq

    table = pq.read_table(place / "out" / "scores").drop_columns(["scored_at"])
    names = [name for name in sorted(table.column_names) if name != "date"]
    return [
        {name: row[name] for name in names}
        for row in sorted(table.to_pylist(), key=lambda row: (row["uri"], row["status"]))
    ]


if __name__ == "__main__":
    main()

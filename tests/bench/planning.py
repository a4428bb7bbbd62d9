"""Seconds and memory of planning, by the size of the input: `python -m tests.bench.planning`.

Each figure is of a separate process, with TensorFlow and Beam imported as in a job:

* plan: sort a dataset manifest of local photos, split it into shards, and write all of them to the plan. The
  photos do not exist, so each costs one look-up in the file system. 100,000 lines are also split into shards
  of 1,500 and of 15 photos.
* score: a whole `hubhead score` that finds nothing to do. The shards of all photos are committed beforehand,
  without running a model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZES = (10_000, 100_000, 1_000_000)


@dataclass(frozen=True)
class Measurement:
    """Cost of one process.

    Attributes:
        name: name of the case.
        seconds: wall time: without imports for `plan`, of the whole command for `score`.
        core_seconds: processor time, which depends less on other load of the machine.
        megabytes: peak resident memory.
        shards: number of shards.
    """

    name: str
    seconds: float
    core_seconds: float
    megabytes: float
    shards: int


def write_manifest(path: Path, lines: int) -> None:
    """Write a dataset manifest with that many photos and two more columns."""
    with path.open("w") as file:
        file.write("uri,shop,price\n")
        for number in range(lines):
            file.write(
                f"uploads/2026-05-{number % 28 + 1:02d}/{number:08d}.jpg,{number % 997},{number % 31}.5\n"
            )


def plan(manifest: str, output: str, shard_size: int) -> int:
    """Plan a run as a job does; return the number of shards."""
    planner = _make_planner(manifest, output, "digest")
    planner.check()
    return planner.plan(shard_size).shards


def _make_planner(manifest: str, output: str, digest: str) -> Any:
    from batch.inputs.sources import Source
    from batch.jobs.planner import RunPlanner
    from batch.output.dataset import Output

    models = [{"name": "food", "version": 1, "digest": digest, "fingerprint": "f"}]
    return RunPlanner(Output(output), "bench", Source(manifest=manifest), models)


def write_bundle(path: str) -> int:
    """Write a bundle, which never runs; return 0."""
    from tests.support.score_job import make_bundle

    make_bundle(Path(path))
    return 0


def commit_all_shards(manifest: str, output: str, model: str) -> int:
    """Write an output in which every shard is finished, with rows of addresses only; return their number."""
    import pyarrow as pa

    from batch.inputs.sources import Source
    from batch.jobs.planner import RunPlanner
    from batch.jobs.score import describe_model, read_models
    from batch.monitoring.drift import DecisionCounts
    from batch.monitoring.stats import Stats
    from batch.output.dataset import Output
    from batch.shards import shard as shards

    [bundle] = read_models([Path(model)])
    with Output(output).hold_lease() as held:
        planner = RunPlanner(held, "before", Source(manifest=manifest), [describe_model(bundle)])
        planner.check()
        planned = planner.plan(shards.DEFAULT_SIZE)
        for line in shards.read_plan(planned.path):
            shard = line.read_shard()
            stats = Stats(photos=len(shard.photos), rows=len(shard.photos))
            stats.statuses["ok"] = stats.photos
            stats.models["food/1"] = DecisionCounts(abstained=stats.photos)
            table = pa.table({"uri": [photo.uri for photo in shard.photos]})
            planner.publication.attempt.commit(shard.id, "before", table, stats, {}, date="2026-05-31")
        planner.finish(planned)
        held.remove_attempts()
    return planned.shards


def run_in_process(case: str, *arguments: str) -> tuple[int, float, float, float]:
    """Run a case in a separate process; return shards, seconds, processor seconds, and peak MB."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.planning", "--case", case, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    shards, seconds, core_seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return shards, seconds, core_seconds, megabytes


def run_case(case: str, arguments: list[str]) -> None:
    """Run a case in this process and print its cost as JSON, for `run_in_process`."""
    import apache_beam  # noqa: F401
    import tensorflow  # noqa: F401

    manifest, output, last = arguments
    work: dict[str, Callable[[], int]] = {
        "plan": lambda: plan(manifest, output, int(last)),
        "commit": lambda: commit_all_shards(manifest, output, last),
        "bundle": lambda: write_bundle(manifest),
    }
    start, core_start = time.perf_counter(), time.process_time()
    shards = work[case]()
    took = time.perf_counter() - start, time.process_time() - core_start
    print(json.dumps([shards, *took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def measure_score(manifest: Path, output: Path, model: Path) -> tuple[float, float, float]:
    """Run `hubhead score`; return its seconds, processor seconds, and peak MB."""
    command = [sys.executable, "-m", "batch", "--manifest", str(manifest), "--model", str(model)]
    command += ["--output", str(output), "--embedding_store", str(output.parent / "store")]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--run_id", "bench"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"hubhead score failed with exit code {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.planning", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        run_case(options.case, options.arguments)
        return
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-") as directory:
        for case in measure(Path(directory)):
            cost = f"{case.seconds:8.2f} s {case.core_seconds:8.2f} core s {case.megabytes:6.0f} MB"
            print(f"{cost} {case.shards:7d} shards  {case.name}", flush=True)


def measure(top: Path) -> Iterator[Measurement]:
    """Run all cases, one after another."""
    for lines in SIZES:
        write_manifest(top / f"{lines}.csv", lines)
        shards, *cost = run_in_process("plan", str(top / f"{lines}.csv"), str(top / f"plan-{lines}"), "8192")
        yield Measurement(f"plan {lines:,} lines", *cost, shards)
    for size in (1500, 15):
        shards, *cost = run_in_process(
            "plan", str(top / "100000.csv"), str(top / f"shards-{size}"), str(size)
        )
        yield Measurement(f"plan 100,000 lines in shards of {size}", *cost, shards)
    # In a separate process too: the memory of this one would count in the peak of its child processes.
    model = top / "models" / "food" / "1"
    run_in_process("bundle", str(model), "", "")
    for lines in SIZES:
        manifest, output = top / f"{lines}.csv", top / f"scored-{lines}"
        shards, *_ = run_in_process("commit", str(manifest), str(output), str(model))
        cost = [*measure_score(manifest, output, model)]
        yield Measurement(f"score, {lines:,} photos, nothing new", *cost, shards)


if __name__ == "__main__":
    main()

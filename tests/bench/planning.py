"""Seconds and memory of planning, by the size of the input: `python -m tests.bench.planning`.

* plan: sort a dataset manifest of local photos, split it into shards, and write all of them to the plan. The
  photos do not exist, so each costs one look-up in the file system. TensorFlow and Beam are imported, as in a
  job. 100,000 lines are also split into shards of 1,500 and of 15 photos.
* publish: in the same process, go on without a model: write a row and a key for every photo, shard by shard,
  and publish them. Its seconds are without those of the plan, its memory is the peak of both.
* score: a whole `hubhead score` as a separate process, which finds nothing new in that output, without and
  with `--only_new`.

`--photos 10000000` measures another size alone; it takes some 20 minutes and 5 GB of disk.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench import results

SIZES = (10_000, 100_000, 1_000_000)


@dataclass(frozen=True)
class Cost:
    """Cost of a part of a process, or of a whole one.

    Attributes:
        seconds: wall time: without imports for `plan` and `publish`, of the whole command for `score`.
        core_seconds: processor time, which depends less on other load of the machine.
        megabytes: peak resident memory of the process until the end of the part.
        disk: bytes of the files that it leaves; None if they are not counted.
    """

    seconds: float
    core_seconds: float
    megabytes: float
    disk: int | None = None


@dataclass(frozen=True)
class Measurement:
    """Cost of one case.

    Attributes:
        name: name of the case.
        shards: number of shards.
        cost: its cost.
    """

    name: str
    shards: int
    cost: Cost


def write_manifest(path: Path, lines: int) -> None:
    """Write a dataset manifest with that many photos and two more columns."""
    with path.open("w") as file:
        file.write("uri,shop,price\n")
        for number in range(lines):
            file.write(
                f"uploads/2026-05-{number % 28 + 1:02d}/{number:08d}.jpg,{number % 997},{number % 31}.5\n"
            )


class Clock:
    """Measures the parts of this process, each from the end of the part before."""

    def __init__(self) -> None:
        self._wall, self._core = time.perf_counter(), time.process_time()

    def split(self, directory: str | None = None) -> Cost:
        """Return the cost of the part that ends now, with the bytes below a directory."""
        wall, core = time.perf_counter(), time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        cost = Cost(wall - self._wall, core - self._core, peak, directory and count_bytes(Path(directory)))
        self._wall, self._core = time.perf_counter(), time.process_time()
        return cost


def plan(manifest: str, output: str, shard_size: str) -> tuple[int, list[Cost]]:
    """Plan a run as a job does; return the number of shards and the cost."""
    from batch.inputs.sources import Source
    from batch.jobs.planner import RunPlanner
    from batch.output.dataset import Output

    models = [{"name": "food", "version": 1, "digest": "digest", "fingerprint": "f"}]
    clock = Clock()
    with Output(output).hold_lease() as held:
        planner = RunPlanner(held, "bench", Source(manifest=manifest), models)
        planner.check()
        shards = planner.plan(int(shard_size)).shards
    return shards, [clock.split()]


def write_bundle(path: str) -> None:
    """Write a bundle, which never runs."""
    from tests.support.score_job import make_bundle

    make_bundle(Path(path))


def plan_and_publish(manifest: str, output: str, model: str) -> tuple[int, list[Cost]]:
    """Plan a run, finish every shard with rows of addresses only, and publish them.

    Returns:
        The number of shards, and the costs of the plan and of all that follows.
    """
    import pyarrow as pa

    from batch.inputs.sources import Source
    from batch.jobs.planner import RunPlanner
    from batch.jobs.score import describe_model, read_models
    from batch.monitoring.drift import DecisionCounts
    from batch.monitoring.stats import Stats
    from batch.output.dataset import Output
    from batch.output.shard_record import ScoredKeys
    from batch.shards import shard as shards
    from batch.shards.scored_index import scored_key

    [bundle] = read_models([Path(model)])
    model_digest = describe_model(bundle)["digest"]
    clock = Clock()
    with Output(output).hold_lease() as held:
        planner = RunPlanner(held, "before", Source(manifest=manifest), [describe_model(bundle)])
        planner.check()
        planned = planner.plan(shards.DEFAULT_SIZE)
        costs = [clock.split(output)]
        for line in shards.read_plan(planned.path):
            shard = line.read_shard()
            stats = Stats(photos=len(shard.photos), rows=len(shard.photos))
            stats.statuses["ok"] = stats.photos
            stats.models["food/1"] = DecisionCounts(abstained=stats.photos)
            table = pa.table({"uri": [photo.uri for photo in shard.photos]})
            keys = {model_digest: ScoredKeys([scored_key(photo) for photo in shard.photos], [])}
            planner.publication.attempt.commit(shard.id, "before", table, stats, keys, date="2026-05-31")
        planner.finish(planned)
        held.remove_attempts()
    return planned.shards, [*costs, clock.split(output)]


CASES: dict[str, Callable[[str, str, str], tuple[int, list[Cost]]]] = {
    "plan": plan,
    "publish": plan_and_publish,
}
"""Cases that run in a separate process of this module."""


def run_in_process(case: str, *arguments: str) -> tuple[int, list[Cost]]:
    """Run a case in a separate process; return the number of shards and the costs of its parts."""
    code = f"from tests.bench import planning; planning.run_case({case!r}, *{arguments!r})"
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=quiet, check=True, stdout=subprocess.PIPE, text=True
    )
    shards, costs = json.loads(done.stdout.splitlines()[-1])
    return shards, [Cost(**cost) for cost in costs]


def run_case(case: str, *arguments: str) -> None:
    """Run a case in this process and print its costs as JSON, for `run_in_process`."""
    import apache_beam  # noqa: F401
    import tensorflow  # noqa: F401

    shards, costs = CASES[case](*arguments)
    print(json.dumps([shards, [asdict(cost) for cost in costs]]))


def measure_score(manifest: Path, output: Path, model: Path, *flags: str) -> Cost:
    """Run `hubhead score` with more flags; return its cost."""
    command = [sys.executable, "-m", "batch", "--manifest", str(manifest), "--model", str(model)]
    command += ["--output", str(output), "--embedding_store", str(output.parent / "store")]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"hubhead score failed with exit code {os.waitstatus_to_exitcode(status)}")
    core_seconds = usage.ru_utime + usage.ru_stime
    return Cost(time.perf_counter() - start, core_seconds, usage.ru_maxrss / 1024)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.planning", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--photos", type=int, help="number of photos (default: 10,000 to 1,000,000)")
    parser.add_argument("--directory", type=Path, help="directory for the files (default: a temporary one)")
    results.add_output_option(parser)
    options = parser.parse_args()
    sizes = (options.photos,) if options.photos else SIZES
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-", dir=options.directory) as directory:
        for case in measure(Path(directory), sizes):
            print_case(case)
            results.write(options.output, "planning")  # of what is done, should it be interrupted


def print_case(case: Measurement) -> None:
    """Print a measurement, and add it to the results."""
    cost, disk = case.cost, case.cost.disk and case.cost.disk / 1e6
    print(
        f"{cost.seconds:8.2f} s {cost.core_seconds:8.2f} core s {cost.megabytes:6.0f} MB"
        f" {case.shards:7d} shards  {case.name}" + (f", {disk:.0f} MB on disk" if disk else ""),
        flush=True,
    )
    row = {"case": case.name, "seconds": cost.seconds, "core seconds": cost.core_seconds}
    row |= {"peak MB": cost.megabytes, "shards": case.shards}
    results.add_row("Planning", row | {"MB on disk": disk})


def measure(top: Path, sizes: Sequence[int]) -> Iterator[Measurement]:
    """Run all cases, one after another."""
    # In a separate process too: the memory of this one would count in the peak of its child processes.
    model = top / "models" / "food" / "1"
    code = f"from tests.bench import planning; planning.write_bundle({str(model)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    for lines in sizes:
        write_manifest(top / f"{lines}.csv", lines)
        yield from measure_runs(top / f"{lines}.csv", top / f"scored-{lines}", model)
    for size in ("1500", "15") if 100_000 in sizes else ():
        shards, [cost] = run_in_process("plan", str(top / "100000.csv"), str(top / f"shards-{size}"), size)
        yield Measurement(f"plan 100,000 lines in shards of {size}", shards, cost)


def measure_runs(manifest: Path, output: Path, model: Path) -> Iterator[Measurement]:
    """Plan and publish all photos of a manifest, and run `hubhead score`, which finds nothing new."""
    lines = f"{int(manifest.stem):,}"
    shards, [planned, published] = run_in_process("publish", str(manifest), str(output), str(model))
    yield Measurement(f"plan {lines} lines", shards, planned)
    yield Measurement(f"publish {lines} photos without a model", shards, published)
    for name, flags in {"": (), ", `--only_new`": ("--only_new",)}.items():
        cost = measure_score(manifest, output, model, "--run_id", f"bench{len(name)}", *flags)
        yield Measurement(f"score{name}, {lines} photos, nothing new", shards, cost)


def count_bytes(directory: Path) -> int:
    """Return the size of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()

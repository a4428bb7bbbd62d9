"""Seconds and memory of planning, by the size of the input: `python -m tests.bench.planning`.

Each figure is of a separate process, with TensorFlow and Beam imported as in a job:

* plan: sort a dataset manifest of local photos, split it into shards, and write all of them to the plan. The
  photos do not exist, so each costs one look-up in the file system. 100,000 lines are also split into shards
  of 1,500 and of 15 photos.
* score: a whole `hubhead score` that finds nothing to do, without and with `--only_new`. The shards of all
  photos are committed beforehand, without running a model.

`--photos 10000000` measures another size alone, and the bytes that it takes on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import results

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
        disk: bytes of the files that it leaves; 0 if they are not counted.
    """

    name: str
    seconds: float
    core_seconds: float
    megabytes: float
    shards: int
    disk: int = 0


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
    from batch.inputs.sources import Source
    from batch.jobs.planner import RunPlanner
    from batch.output.dataset import Output

    models = [{"name": "food", "version": 1, "digest": "digest", "fingerprint": "f"}]
    with Output(output).hold_lease() as held:
        planner = RunPlanner(held, "bench", Source(manifest=manifest), models)
        planner.check()
        return planner.plan(shard_size).shards


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
    from batch.output.shard_record import ScoredKeys
    from batch.shards import shard as shards
    from batch.shards.scored_index import scored_key

    [bundle] = read_models([Path(model)])
    model_digest = describe_model(bundle)["digest"]
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
            keys = {model_digest: ScoredKeys([scored_key(photo) for photo in shard.photos], [])}
            planner.publication.attempt.commit(shard.id, "before", table, stats, keys, date="2026-05-31")
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


def measure_score(manifest: Path, output: Path, model: Path, *flags: str) -> tuple[float, float, float]:
    """Run `hubhead score` with more flags; return its seconds, processor seconds, and peak MB."""
    command = [sys.executable, "-m", "batch", "--manifest", str(manifest), "--model", str(model)]
    command += ["--output", str(output), "--embedding_store", str(output.parent / "store")]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL)
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
    parser.add_argument("--photos", type=int, help="number of photos (default: 10,000 to 1,000,000)")
    parser.add_argument("--directory", type=Path, help="directory for the files (default: a temporary one)")
    results.add_output_option(parser)
    options = parser.parse_args()
    if options.case:
        run_case(options.case, options.arguments)
        return
    sizes = (options.photos,) if options.photos else SIZES
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-", dir=options.directory) as directory:
        for case in measure(Path(directory), sizes):
            cost = f"{case.seconds:8.2f} s {case.core_seconds:8.2f} core s {case.megabytes:6.0f} MB"
            disk = f", {case.disk / 1e6:.0f} MB on disk" if case.disk else ""
            print(f"{cost} {case.shards:7d} shards  {case.name}{disk}", flush=True)
            row = {"case": case.name, "seconds": case.seconds, "core seconds": case.core_seconds}
            row |= {"peak MB": case.megabytes, "shards": case.shards}
            results.add_row("Planning", row | {"MB on disk": case.disk / 1e6 if case.disk else None})
    results.write(options.output, "planning")


def measure(top: Path, sizes: Sequence[int]) -> Iterator[Measurement]:
    """Run all cases, one after another."""
    for lines in sizes:
        write_manifest(top / f"{lines}.csv", lines)
        manifest, planned = top / f"{lines}.csv", top / f"plan-{lines}"
        shards, *cost = run_in_process("plan", str(manifest), str(planned), "8192")
        yield Measurement(f"plan {lines:,} lines", *cost, shards, count_bytes(planned))
        shutil.rmtree(planned)
    for size in (1500, 15) if 100_000 in sizes else ():
        shards, *cost = run_in_process(
            "plan", str(top / "100000.csv"), str(top / f"shards-{size}"), str(size)
        )
        yield Measurement(f"plan 100,000 lines in shards of {size}", *cost, shards)
    # In a separate process too: the memory of this one would count in the peak of its child processes.
    model = top / "models" / "food" / "1"
    run_in_process("bundle", str(model), "", "")
    for lines in sizes:
        yield from measure_runs(top / f"{lines}.csv", top / f"scored-{lines}", model)


def measure_runs(manifest: Path, output: Path, model: Path) -> Iterator[Measurement]:
    """Write an output with all photos of a manifest, and run `hubhead score`, which finds nothing new."""
    photos = f"{int(manifest.stem):,} photos"
    shards, *cost = run_in_process("commit", str(manifest), str(output), str(model))
    yield Measurement(f"plan, write and publish {photos} without a model", *cost, shards, count_bytes(output))
    for name, flags in {"": (), ", --only_new": ("--only_new",)}.items():
        cost = [*measure_score(manifest, output, model, "--run_id", f"bench{len(name)}", *flags)]
        yield Measurement(f"score{name}, {photos}, nothing new", *cost, shards)


def count_bytes(directory: Path) -> int:
    """Return the size of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()

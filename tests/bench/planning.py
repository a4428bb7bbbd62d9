"""How planning grows with the input: `python -m tests.bench.planning`.

Each figure is of a process of its own. `plan` sorts a manifest of local photos (which do not
exist, so each costs the look that a file system takes for that) and cuts it into shards that are
all written to the plan, with TensorFlow and Beam imported as they are in a job. `shards` does so
for 100,000 lines cut into 100 and into 10,000 shards. `known` is a whole `hubhead score` that finds nothing
to do: the shards of so many photos are made finished beforehand, without a model.
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
class Figure:
    """What one process took.

    Attributes:
        name: of the case.
        seconds: wall time of the work, without imports for `plan`, from the command to its end for `score`.
        core_seconds: of the processor in it, which a busy machine does not lengthen as much.
        megabytes: peak resident memory.
        shards: how many there were.
    """

    name: str
    seconds: float
    core_seconds: float
    megabytes: float
    shards: int


def write_manifest(path: Path, lines: int) -> None:
    """A manifest of that many photos, with two more columns."""
    with path.open("w") as file:
        file.write("uri,shop,price\n")
        for number in range(lines):
            file.write(
                f"uploads/2026-05-{number % 28 + 1:02d}/{number:08d}.jpg,{number % 997},{number % 31}.5\n"
            )


def plan(manifest: str, output: str, shard_size: int) -> int:
    """Plan as a job does; the number of shards."""
    job = _job(manifest, output, "digest")
    job.check()
    return job.plan(shard_size).shards


def _job(manifest: str, output: str, digest: str) -> Any:
    from batch.inputs.sources import Source
    from batch.jobs.planner import RunPlanner
    from batch.output.dataset import Output

    models = [{"name": "food", "version": 1, "digest": digest, "fingerprint": "f"}]
    return RunPlanner(Output(output), "bench", Source(manifest=manifest), models)


def bundle(path: str) -> int:
    """Make the model; it is never asked."""
    from tests.support.score_job import make_bundle

    make_bundle(Path(path))
    return 0


def finish(manifest: str, output: str, model: str) -> int:
    """Make an output in which every shard is finished, with rows of nothing but addresses; their number."""
    import pyarrow as pa

    from batch.inputs.sources import Source
    from batch.jobs.planner import RunPlanner
    from batch.jobs.score import describe_model, read_models
    from batch.monitoring.drift import DecisionCounts
    from batch.monitoring.stats import Stats
    from batch.output.dataset import Output
    from batch.shards import shard as shards

    [bundle] = read_models([Path(model)])
    job = RunPlanner(Output(output), "before", Source(manifest=manifest), [describe_model(bundle)])
    job.check()
    planned = job.plan(shards.DEFAULT_SIZE)
    for line in shards.read_plan(planned.path):
        shard = line.read_shard()
        stats = Stats(photos=len(shard.photos), rows=len(shard.photos))
        stats.statuses["ok"] = stats.photos
        stats.models["food/1"] = DecisionCounts(abstained=stats.photos)
        table = pa.table({"uri": [photo.uri for photo in shard.photos]})
        job.output.commit(shard.id, "before", table, stats, {}, date="2026-05-31")
    shards.remove_plan(job.output.plan_directory)
    return planned.shards


def apart(case: str, *arguments: str) -> tuple[int, float, float, float]:
    """Run a case in a process of its own: shards, seconds, those of the processor, peak MB."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.planning", "--case", case, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    shards, seconds, core_seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return shards, seconds, core_seconds, megabytes


def run_case(case: str, arguments: list[str]) -> None:
    """What `apart` runs."""
    import apache_beam  # noqa: F401
    import tensorflow  # noqa: F401

    manifest, output, last = arguments
    work: dict[str, Callable[[], int]] = {
        "plan": lambda: plan(manifest, output, int(last)),
        "finish": lambda: finish(manifest, output, last),
        "bundle": lambda: bundle(manifest),
    }
    start, core_start = time.perf_counter(), time.process_time()
    shards = work[case]()
    took = time.perf_counter() - start, time.process_time() - core_start
    print(json.dumps([shards, *took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def known(manifest: Path, output: Path, model: Path) -> tuple[float, float, float]:
    """Seconds, those of the processor, and peak MB of `hubhead score` from the command to its end."""
    command = [sys.executable, "-m", "batch", "--manifest", str(manifest), "--model", str(model)]
    command += ["--output", str(output), "--embedding_store", str(output.parent / "store")]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--run_id", "bench"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"hubhead score ended with {status}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """The command."""
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
        for figure in measure(Path(directory)):
            took = f"{figure.seconds:8.2f} s {figure.core_seconds:8.2f} core s {figure.megabytes:6.0f} MB"
            took += f" {figure.shards:7d} shards"
            print(f"{took}  {figure.name}", flush=True)


def measure(top: Path) -> Iterator[Figure]:
    """All figures, one after the other."""
    for lines in SIZES:
        write_manifest(top / f"{lines}.csv", lines)
        shards, *took = apart("plan", str(top / f"{lines}.csv"), str(top / f"plan-{lines}"), "8192")
        yield Figure(f"plan {lines:,} lines", *took, shards)
    for size in (1500, 15):
        shards, *took = apart("plan", str(top / "100000.csv"), str(top / f"shards-{size}"), str(size))
        yield Figure(f"plan 100,000 lines in shards of {size}", *took, shards)
    # In a process of its own too: what this one holds would count as the peak of those that it starts.
    model = top / "models" / "food" / "1"
    apart("bundle", str(model), "", "")
    for lines in SIZES:
        shards, *_ = apart("finish", str(top / f"{lines}.csv"), str(top / f"known-{lines}"), str(model))
        took = [*known(top / f"{lines}.csv", top / f"known-{lines}", model)]
        yield Figure(f"score, {lines:,} photos, nothing new", *took, shards)


if __name__ == "__main__":
    main()

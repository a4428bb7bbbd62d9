"""hubhead beside the scripts and servers that users would write instead: `python -m tests.bench.peers`.

batch    whole commands on the same files, from a directory of photos to Parquet, in turns: photos/s of the
         whole command, photos/s without its start as it reports them, processor milliseconds per photo and
         peak memory of all its processes
online   servers that run at the same time and are called in turns: requests/s, latency and processor
         milliseconds of the server

The peers are in tests/bench/peers/scripts. Each must have hubhead's best label for 95 % of the photos. Those
whose package is not installed are skipped: `pip install 'hubhead[bench]'`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.process import get_cpu_model, get_package_versions
from tests.bench.peers import batch, online, photos, plot
from tests.bench.peers.model import LABELS
from tests.bench.processes import run_command

_PACKAGES = (
    "hubhead",
    "tensorflow",
    "onnxruntime",
    "openvino",
    "apache-beam",
    "ray",
    "fastapi",
    "litserve",
    "pillow",
)


_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def main() -> None:
    """Run the command."""
    options = _parse_options()
    record: dict[str, Any] = {
        "cpu": get_cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": get_package_versions(_PACKAGES),
        "load_before": os.getloadavg()[0],
        "rounds": options.rounds,
        "requests": options.requests,
        "photos": {},
    }
    print(f"{record['cpu']}, {record['cores']} cores, load before {record['load_before']:.1f}")
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-peers-") as directory:
        top = options.directory or Path(directory)
        if not (top / LABELS).is_file():
            run_command([sys.executable, "-m", "tests.bench.peers.model", str(top)], _QUIET)
        scored: list[batch.Row] = []
        for name in options.size if "batch" in options.part else ():
            size = photos.SIZES[name]
            size = replace(size, count=options.count or size.count)
            record["photos"][name] = size.count
            photos.write(size, top / name / "distinct", top / name / "repeated")
            bench = batch.Bench(top, top / name / "distinct", top / name / "repeated", top / name)
            scored += bench.compare(name, options.peer, options.rounds)
        served = _serve(options, top) if "online" in options.part else []
    record["load_after"] = os.getloadavg()[0]
    if scored:
        batch.print_table(scored)
    if served:
        online.print_table(served)
    print(f"load after {record['load_after']:.1f}")
    record |= {
        part: [dataclasses.asdict(row) for row in rows]
        for part, rows in (("batch", scored), ("online", served))
    }
    if options.output:
        options.output.write_text(json.dumps(record, indent=2) + "\n")
    if options.plot:
        options.plot.write_text(plot.draw(scored, served, record["cpu"]))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__.splitlines()[0])
    chosen: dict[str, tuple[Any, str]] = {
        "part": (("batch", "online"), "part of the comparison"),
        "size": (photos.SIZES, "size of the photos of the batch part"),
        "peer": (batch.PEERS, "peer of the batch part"),
        "server": (online.SERVERS, "server of the online part"),
    }
    for name, (choices, text) in chosen.items():
        parser.add_argument(
            f"--{name}",
            choices=list(choices),
            action="append",
            help=f"{text}; can be repeated (default: all)",
        )
    parser.add_argument(
        "--callers",
        type=int,
        action="append",
        help="number of callers; can be repeated (default: 1, 4 and 16)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of counted rounds (default 3)")
    parser.add_argument("--count", type=int, help="photos per turn (default: 1000, 600 and 300)")
    parser.add_argument("--requests", type=int, default=300, help="requests per turn (default 300)")
    parser.add_argument(
        "--directory", type=Path, help="directory for model and output, to use the model again"
    )
    parser.add_argument("--output", type=Path, help="file to write the figures to, as JSON")
    parser.add_argument("--plot", type=Path, help="file to write the plot to, as SVG")
    options = parser.parse_args()
    for name, (choices, _) in chosen.items():
        setattr(options, name, getattr(options, name) or list(choices))
    options.callers = options.callers or [1, 4, 16]
    return options


def _serve(options: argparse.Namespace, top: Path) -> list[online.Row]:
    """Compare the servers with small photos."""
    contents = photos.read_distinct(photos.SIZES["small"])
    return online.compare(top, contents, options.callers, options.rounds, options.requests, options.server)


if __name__ == "__main__":
    main()

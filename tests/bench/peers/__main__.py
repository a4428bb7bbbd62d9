"""hubhead beside the scripts and servers that users would write instead: `python -m tests.bench.peers`.

batch    whole commands on the same files, from a directory of photos to Parquet, in turns: photos/s of the
         whole command, photos/s without its start as it reports them, processor milliseconds per photo and
         peak memory of all its processes
online   servers that run at the same time and are called in turns: requests/s, latency and processor
         milliseconds of the server

The peers are in tests/bench/peers/scripts. Each must have hubhead's best label for 95 % of the photos. Those
whose package is not installed are skipped; `make bench-peers` installs `hubhead[bench]` into build/peers. All
takes about 25 minutes on two cores that do nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.process import get_cpu_model
from tests.bench import results
from tests.bench.peers import batch, online, photos, plot
from tests.bench.peers.model import LABELS
from tests.bench.processes import run_command

_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def main() -> None:
    """Run the command."""
    options = _parse_options()
    print(f"{get_cpu_model()}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-peers-") as directory:
        top = options.directory or Path(directory)
        if not (top / LABELS).is_file():
            run_command([sys.executable, "-m", "tests.bench.peers.model", str(top)], _QUIET)
        scored: list[batch.Row] = []
        for name in options.size if "batch" in options.part else ():
            size = photos.SIZES[name]
            size = replace(size, count=options.count or size.count)
            photos.write(size, top / name / "distinct", top / name / "repeated")
            bench = batch.Bench(top, top / name / "distinct", top / name / "repeated", top / name)
            scored += bench.compare(name, options.peer, options.rounds)
        served = _serve(options, top) if "online" in options.part else []
    if scored:
        batch.print_table(scored)
    if served:
        online.print_table(served)
    print(f"load after {os.getloadavg()[0]:.1f}")
    for row in scored:
        ratios = {"ratio": row.ratio, "ratio without start": row.steady_ratio} if row.figures else {}
        figures = _describe(row.name, row.figures, row.skipped) | ratios
        results.add_row(f"Scoring of {row.photos} photos", figures)
    for answered in served:
        title = f"{answered.callers} caller{'s' if answered.callers > 1 else ''} with one small photo each"
        results.add_row(title, _describe(answered.name, answered.figures, answered.skipped))
    results.add_note(f"Medians of {options.rounds} rounds, in which the peers took turns.")
    results.write(options.output, "peers")
    if options.plot:
        options.plot.write_text(plot.draw(scored, served, get_cpu_model()))


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
    parser.add_argument("--rounds", type=int, default=2, help="number of counted rounds (default 2)")
    parser.add_argument("--count", type=int, help="photos per turn (default: 1000, 240 and 120)")
    parser.add_argument("--requests", type=int, default=300, help="requests per turn (default 300)")
    parser.add_argument(
        "--directory", type=Path, help="directory for model and output, to use the model again"
    )
    results.add_output_option(parser)
    parser.add_argument("--plot", type=Path, help="file to write the plot to, as SVG")
    options = parser.parse_args()
    for name, (choices, _) in chosen.items():
        setattr(options, name, getattr(options, name) or list(choices))
    options.callers = options.callers or [1, 4, 16]
    return options


def _describe(name: str, figures: Any, skipped: str) -> dict[str, Any]:
    """Return a row of the record: the name, and the figures or why there are none."""
    found = {key.replace("_", " "): value for key, value in vars(figures).items()} if figures else {}
    return {"peer": name, **found} | ({"skipped": skipped} if skipped else {})


def _serve(options: argparse.Namespace, top: Path) -> list[online.Row]:
    """Compare the servers with small photos."""
    contents = photos.read_distinct(photos.SIZES["small"])
    return online.compare(top, contents, options.callers, options.rounds, options.requests, options.server)


if __name__ == "__main__":
    main()

"""Throughput of photos through a backbone in several ways, as a table: `python -m tests.bench`."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

from tests.bench.interleave import measure, print_table
from tests.bench.variants import BASE, VARIANTS, prepare


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="number of counted rounds (default 5)")
    parser.add_argument("--only", default="", help="run only variants whose name contains this text")
    parser.add_argument("--output", type=Path, help="file to write the figures to, as JSON")
    options = parser.parse_args()
    chosen = tuple(v for v in VARIANTS if options.only in v.name or v.name == BASE)
    rows = measure(chosen, options.rounds, BASE, prepare)
    print_table(rows)
    if options.output:
        record = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "rounds": options.rounds,
            "figures": [vars(row) for row in rows],
        }
        options.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

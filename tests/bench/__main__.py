"""Photos through a backbone in many ways, as a table; `--output FILE` keeps the figures as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

from tests.bench.interleave import measure, show
from tests.bench.variants import BASE, VARIANTS, prepare


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--output", type=Path, help="write the figures here, as JSON")
    options = parser.parse_args()
    chosen = tuple(v for v in VARIANTS if options.only in v.name or v.name == BASE)
    figures = measure(chosen, options.rounds, BASE, prepare)
    show(figures)
    if options.output:
        record = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "rounds": options.rounds,
            "figures": [vars(figure) for figure in figures],
        }
        options.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Throughput of photos through a backbone in several ways, as a table: `python -m tests.bench`."""

from __future__ import annotations

import argparse

from tests.bench import results
from tests.bench.interleave import measure, print_table
from tests.bench.variants import BASE, VARIANTS, prepare


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="number of counted rounds (default 5)")
    parser.add_argument("--only", default="", help="run only variants whose name contains this text")
    results.add_output_option(parser)
    options = parser.parse_args()
    chosen = tuple(v for v in VARIANTS if options.only in v.name or v.name == BASE)
    rows = measure(chosen, options.rounds, BASE, prepare)
    print_table(rows)
    for row in rows:
        figures = {"photos/s": row.photos_per_second, "lowest": row.lowest, "highest": row.highest}
        results.add_row(
            "EfficientNet-Lite0 on the sample photos", {"variant": row.name, "ratio": row.ratio} | figures
        )
    results.add_note(f"Median of {options.rounds} rounds, in which the variants took turns.")
    results.write(options.output, "bench")


if __name__ == "__main__":
    main()

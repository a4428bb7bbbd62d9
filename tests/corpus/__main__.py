"""The corpus as files to look at, its counts, or its golden file.

    python -m tests.corpus                      how many of which format and status
    python -m tests.corpus --directory DIR      also every case as a file of its own
    python -m tests.corpus --golden             write flips.json anew, by the present graph
    python -m tests.corpus --golden --photos    and the photos in it, by the present encoders
    python -m tests.corpus --check              the cases whose answer the present graph does not give

Look through the changes of flips.json before you commit them: they are answers that photos get.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from tests.corpus import Case, cases, golden


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__.splitlines()[0])
    parser.add_argument("--golden", action="store_true", help="write flips.json by the present graph")
    parser.add_argument("--photos", action="store_true", help="with --golden: make its photos anew")
    parser.add_argument("--check", action="store_true", help="ask the present graph about every case")
    parser.add_argument("--directory", type=Path, help="write every case to a file")
    options = parser.parse_args()
    if options.golden:
        golden.write(anew=options.photos)
    found = cases()
    if options.directory:
        write(found, options.directory)
    print(table(found))
    if options.check:
        check(found)


def write(found: list[Case], directory: Path) -> None:
    """Each case as a file that is named by its number and name."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(found):
        (directory / f"{number:04} {case.name.replace('/', ', ')}").write_bytes(case.content)


def table(found: list[Case]) -> str:
    """Counts by format and status."""
    counts = Counter((case.format, case.status) for case in found)
    lines = [f"{format_:6} {status:20} {count:5}" for (format_, status), count in sorted(counts.items())]
    size = sum(len(case.content) for case in found) / 2**20
    share = sum(case.golden for case in found) / len(found)
    return "\n".join([*lines, f"{len(found)} cases, {size:.1f} MiB, {share:.0%} by the golden file"])


def check(found: list[Case]) -> None:
    """Print where the graph answers otherwise."""
    told = golden.answers(found)
    for case in found:
        wanted = [str(case.status), case.height, case.width]
        if told[case.name] != wanted:
            print(f"{case.name}: {wanted} expected, {told[case.name]} found")


if __name__ == "__main__":
    main()

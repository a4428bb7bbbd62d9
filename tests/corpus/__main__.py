"""Statistics, files and golden file of the corpus.

    python -m tests.corpus                      print the number of cases by format and status
    python -m tests.corpus --directory DIR      also write every case to a file
    python -m tests.corpus --golden             regenerate flips.json with the current preprocessing
    python -m tests.corpus --golden --photos    and its photos with the current encoders
    python -m tests.corpus --check              print cases for which the preprocessing differs

Review the changes of flips.json before you commit them: they are results that users get.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from tests.corpus import Case, cases, golden


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--golden", action="store_true", help="regenerate flips.json with the current preprocessing"
    )
    parser.add_argument("--photos", action="store_true", help="with --golden: regenerate its photos too")
    parser.add_argument(
        "--check", action="store_true", help="compare every case with the current preprocessing"
    )
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
    """Write each case to a file with its number and name."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(found):
        (directory / f"{number:04} {case.name.replace('/', ', ')}").write_bytes(case.content)


def table(found: list[Case]) -> str:
    """Return the number of cases by format and status as text."""
    counts = Counter((case.format, case.status) for case in found)
    lines = [f"{format_:6} {status:20} {count:5}" for (format_, status), count in sorted(counts.items())]
    size = sum(len(case.content) for case in found) / 2**20
    share = sum(case.golden for case in found) / len(found)
    return "\n".join([*lines, f"{len(found)} cases, {size:.1f} MiB, {share:.0%} by the golden file"])


def check(found: list[Case]) -> None:
    """Print the cases for which the preprocessing returns another result than expected."""
    actual = golden.answers(found)
    for case in found:
        wanted = [str(case.status), case.height, case.width]
        if actual[case.name] != wanted:
            print(f"{case.name}: {wanted} expected, {actual[case.name]} found")


if __name__ == "__main__":
    main()

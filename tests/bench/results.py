"""Results of a benchmark as JSON, which docs/benchmarks.md is generated from.

A benchmark adds rows to tables while it prints them, and writes them at its end:

    results.add_row("Fit", {"photos": 1000, "seconds": 0.4})
    results.write(options.output, "head")

A record states when, where and by which command it was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.process import cores, get_cpu_model, get_package_versions

DIRECTORY = Path("docs") / "benchmarks"
"""Directory of the records, below the repository."""

PACKAGES = (
    *("hubhead", "tensorflow", "onnxruntime", "apache-beam", "pyarrow", "numpy", "scipy", "pillow", "grpcio"),
    *("openvino", "ray", "fastapi", "litserve"),
)

_PATHS = ("--output", "--directory", "--plot", "--cleanlab", "--model")
"""Options whose values are paths."""

Value = str | int | float | None


@dataclass
class Table:
    """Table of figures.

    Attributes:
        title: title of the table.
        columns: names of the columns, with their units.
        rows: values of each row; None where there is none.
    """

    title: str
    columns: list[str] = field(default_factory=list)
    rows: list[list[Value]] = field(default_factory=list)

    def add(self, row: Mapping[str, Value]) -> None:
        """Add a row by column; new columns are empty in earlier rows."""
        for column in row:
            if column not in self.columns:
                self.columns.append(column)
                for earlier in self.rows:
                    earlier.append(None)
        self.rows.append([row.get(column) for column in self.columns])


@dataclass
class Record:
    """Result of one run of a benchmark.

    Attributes:
        name: name of the benchmark, and of the file in DIRECTORY.
        date: day of the measurement, ISO 8601 in UTC.
        command: command line that measured it.
        cpu: model of the CPU.
        cores: cores that the benchmark could use.
        load: load average of the machine when it began.
        python: version of Python.
        packages: versions of the packages that are installed.
        tables: the figures.
        notes: sentences about the measurement.
    """

    name: str
    date: str
    command: str
    cpu: str
    cores: int
    load: float
    python: str
    packages: dict[str, str]
    tables: list[Table]
    notes: list[str] = field(default_factory=list)


_tables: dict[str, Table] = {}
_notes: list[str] = []
_load = os.getloadavg()[0]


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--output` to a benchmark."""
    parser.add_argument("--output", type=Path, help="file to write the figures to, as JSON")


def add_row(title: str, row: Mapping[str, Value]) -> None:
    """Add a row to the table with this title.

    Args:
        title: title of the table.
        row: value of each column, by its name with the unit.
    """
    _tables.setdefault(title, Table(title)).add(row)


def add_note(sentence: str) -> None:
    """Add a sentence about the measurement."""
    _notes.append(sentence)


def make_record(name: str) -> Record:
    """Return the record of the rows that were added in this process."""
    return Record(
        name=name,
        date=datetime.now(UTC).date().isoformat(),
        command=_format_command(),
        cpu=get_cpu_model(),
        cores=cores(),
        load=round(_load, 1),
        python=platform.python_version(),
        packages=get_package_versions(PACKAGES),
        tables=list(_tables.values()),
        notes=list(_notes),
    )


def write(path: Path | None, name: str) -> None:
    """Write the record of a benchmark; nothing without a path or without rows."""
    if path is not None and _tables:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = asdict(make_record(name))
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        ValueError: it has another form.
    """
    import msgspec

    return msgspec.json.decode(path.read_bytes(), type=Record)


def _format_command() -> str:
    """Return this process's command line without options for files, which say nothing about the figures."""
    spec: Any = sys.modules["__main__"].__spec__
    arguments = list(sys.argv[1:])
    for option in _PATHS:
        if option in arguments:
            place = arguments.index(option)
            del arguments[place : place + 2]
    module = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name
    return " ".join(["python -m", module, *arguments])

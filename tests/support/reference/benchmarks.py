"""Tables of docs/benchmarks.md, from the records that the benchmarks write (tests.bench.results)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tests.bench.results import DIRECTORY, Record, Value, read
from tests.support.reference.tables import format_table
from tests.support.repository import REPO

NAMES = (
    *("bench", "training", "fine-tune", "start", "client", "head", "peers", "planning", "planning-10m"),
    *("rescore", "similar", "server", "hostile", "heads", "aspect", "abstention", "gate", "backbones"),
    *("keras-resizing", "labelling", "label-errors", "labelling-million", "label-page", "decoding"),
    *("engines", "resident", "food-101"),
)
"""Names of the records."""

_PREFIX = "bench-"
"""Names of the generated parts begin with it."""

_PACKAGES = 4
"""Versions that are shown."""


def has_record(part: str) -> bool:
    """Return whether the record of a generated part exists."""
    return (REPO / DIRECTORY / f"{part.removeprefix(_PREFIX)}.json").exists()


def describe_benchmark(name: str) -> str:
    """Return the figures of a benchmark; a sentence if it has no record yet."""
    path = REPO / DIRECTORY / f"{name}.json"
    if not has_record(name):
        return "*No record of this version yet.*"
    record = read(path)
    parts = [_describe_measurement(record)]
    for table in record.tables:
        rows = [[_format(value) for value in row] for row in table.rows]
        parts.append(f"{table.title}:\n\n{format_table(_escape(table.columns), rows)}")
    plot = path.with_suffix(".svg")
    if plot.exists():
        parts.append(f"![The figures of {name} as bars]({DIRECTORY.name}/{plot.name})")
    return "\n\n".join(part.strip() for part in parts)


def _describe_measurement(record: Record) -> str:
    """Return where and when a benchmark ran, and the notes."""
    versions = ", ".join(f"{name} {version}" for name, version in list(record.packages.items())[:_PACKAGES])
    cores = f"{record.cores} core{'s' if record.cores != 1 else ''}"
    where = f"Measured on {record.date} on {cores} of {record.cpu} (load {record.load:g} at the start)"
    return " ".join([f"{where} by `{record.command}`; {versions}, Python {record.python}.", *record.notes])


def _escape(columns: Sequence[str]) -> list[str]:
    return [column.replace("|", "\\|") for column in columns]


def _format(value: Value) -> str:
    """Return a value with three significant digits; integers and large numbers in full."""
    if value is None:
        return ""
    if isinstance(value, float) and value and abs(value) < 0.001:
        return f"{value:.1e}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


GENERATORS = {f"{_PREFIX}{name}": partial(describe_benchmark, name) for name in NAMES}
"""Functions that return the generated parts of docs/benchmarks.md, by their names."""

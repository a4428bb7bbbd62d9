"""Generated parts of the pages in docs/reference, by their names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator

from batch.monitoring.drift import MomentsRecord
from batch.monitoring.engines import EngineRecord
from batch.output.run_record import ModelRecord, RunRecord, ThroughputRecord
from batch.output.schema import COLUMNS, scores_schema
from serving import contract, errors
from serving.bundle import BackboneRecord, BundleMetadata
from serving.bundle.sections import (
    CalibrationRecord,
    DataRecord,
    HeadRecord,
    ProvenanceRecord,
    SuspectRecord,
    SuspectsRecord,
)
from serving.contract import Status
from serving.errors import ExitCode, HubheadError
from serving.process import Variable
from serving.registry.verdict import Check, Verdict
from tests.support.reference import benchmarks, metrics, protocol
from tests.support.reference.records import describe_record
from tests.support.reference.tables import code, format_table
from trainer.evaluation.metrics import Evaluation
from trainer.preprocessing.settings import Preprocessing

SECTIONS = ("backbone", "preprocessing", "calibration", "head", "metrics", "data", "provenance")
"""Keys of hubhead.json whose tables are below a heading of bundle.md."""

RUN_LINKS = {
    ModelRecord: "#models",
    ThroughputRecord: "#throughput",
    EngineRecord: "#engines",
    MomentsRecord: "#embeddings",
}
"""Headings of run.md with the tables of nested records."""


def describe_signatures() -> str:
    """Return the table of the signatures of a bundle."""
    rows = re.findall(r"^\|(.*)\|$", contract.__doc__ or "", re.MULTILINE)
    parts = [[cell.strip() for cell in row.split("|")] for row in rows]
    shown = [[code(name), code(given), code(returned)] for name, given, returned in parts[2:]]
    return format_table(("signature", "inputs", "outputs"), shown)


def describe_statuses() -> str:
    """Return the table of the statuses of a photo."""
    rows = [
        (code(one), "yes" if one.usable else "no", f"{one.meaning[0].upper()}{one.meaning[1:]}.")
        for one in Status
    ]
    return format_table(("status", "embedding and scores", "meaning"), rows)


def describe_columns() -> str:
    """Return the table of the columns of the scores."""
    rows = [
        (
            code(field.name),
            code(str(field.type)),
            "yes" if field.nullable else "no",
            f"{_capital(COLUMNS[field.name])}.",
        )
        for field in scores_schema()
    ]
    return format_table(("column", "type", "null", "meaning"), rows)


def describe_exit_codes() -> str:
    """Return the table of the exit codes."""
    return format_table(("code", "meaning"), [(one.value, f"{_capital(one.meaning)}.") for one in ExitCode])


def describe_errors() -> str:
    """Return the table of the errors with their exit codes, each below its base class."""
    rows = [
        (
            f"{'– ' * depth}{code(kind.__name__)}",
            kind.exit_code + 0,
            (inspect.getdoc(kind) or "").partition("\n")[0],
        )
        for depth, kind in _list_errors(HubheadError, 0)
    ]
    return format_table(("class", "exit code", "meaning"), rows)


def describe_variables() -> str:
    """Return the table of the environment variables that hubhead defines."""
    return format_table(("variable", "meaning"), [(code(one), one.meaning) for one in Variable])


def _list_errors(kind: type[HubheadError], depth: int) -> Iterator[tuple[int, type[HubheadError]]]:
    """Yield a class of serving.errors and those below it, each once, with its depth."""
    yield depth, kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__ and (below.__bases__[0] is kind):
            yield from _list_errors(below, depth + 1)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


GENERATORS: dict[str, Callable[[], str]] = {
    "signatures": describe_signatures,
    "bundle": lambda: describe_record(BundleMetadata, {name: f"#{name}" for name in SECTIONS}),
    "backbone": lambda: describe_record(BackboneRecord),
    "preprocessing": lambda: describe_record(
        Preprocessing,
        stored_as={"version": ("integer", "version of the preprocessing, part of the fingerprint")},
    ),
    "calibration": lambda: describe_record(CalibrationRecord),
    "head": lambda: describe_record(HeadRecord),
    "evaluation": lambda: describe_record(
        Evaluation,
        without=("labels",),
        stored_as={"confusion": ("object of objects", "photos by label and best label, without zeros")},
    ),
    "suspects": lambda: describe_record(SuspectsRecord, {SuspectRecord: "#label-errors"}),
    "suspect": lambda: describe_record(SuspectRecord),
    "data": lambda: describe_record(DataRecord),
    "provenance": lambda: describe_record(ProvenanceRecord),
    "run": lambda: describe_record(RunRecord, RUN_LINKS),
    "run-model": lambda: describe_record(ModelRecord),
    "run-throughput": lambda: describe_record(ThroughputRecord, RUN_LINKS),
    "run-engine": lambda: describe_record(EngineRecord),
    "run-embeddings": lambda: describe_record(MomentsRecord),
    "verdict": lambda: describe_record(
        Verdict,
        {Check: "#checks"},
        stored_as={
            "blessed": ("boolean", "true if no check failed, or if the verdict was forced"),
            "failed": ("array of strings", "names of the checks that failed"),
        },
    ),
    "check": lambda: describe_record(Check),
    "scores": describe_columns,
    "statuses": describe_statuses,
    "exit-codes": describe_exit_codes,
    "errors-by-class": describe_errors,
    "environment": describe_variables,
    "metrics-server": metrics.describe_server_metrics,
    "metrics-client": metrics.describe_client_metrics,
    "metrics-job": metrics.describe_job_metrics,
    **protocol.GENERATORS,
    **benchmarks.GENERATORS,
}
"""Functions that return the generated parts, by their names."""

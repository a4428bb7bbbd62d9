"""What a run leaves beside its rows: report.html, its figures for Prometheus, and run.json last."""

from __future__ import annotations

from typing import Any, Protocol

from batch import report
from batch.jobs import metrics
from batch.output import run_diff, run_record
from batch.output.dataset import Output
from batch.output.run_diff import RunRecord
from batch.output.run_record import Summary


class RunArtifacts(Protocol):
    """What the user wants to be told, of the settings of a run."""

    @property
    def no_report(self) -> bool:
        """Write no report.html."""

    @property
    def metrics_textfile(self) -> str:
        """File for the node exporter, or ""."""

    @property
    def metrics_push(self) -> str:
        """Address of a Pushgateway, or ""."""


def check_dependencies(settings: RunArtifacts) -> None:
    """See that what is wanted can be had, before any work is done.

    Raises:
        InputError: it needs an extra.
    """
    if settings.metrics_textfile or settings.metrics_push:
        metrics.check_installed()


def publish_run(
    run: dict[str, Any], summary: Summary, place: Output, settings: RunArtifacts, before: RunRecord | None
) -> None:
    """Hold a run against the one before it, and write everything.

    Args:
        run: what run.json is to say, but for `changes`, which is added.
        summary: of the run.
        place: of its rows.
        settings: of the run.
        before: what run.json says of the run to compare with; None where there is none.

    Raises:
        OutputError: a place cannot be written.
    """
    found = run_diff.compare_runs(run, before) if before else None
    run["changes"] = found and found.to_json()
    if not settings.no_report:
        report.write(place.report_file, run, summary.total.examples, found)
    run_record.write_run(run, place)
    if settings.metrics_textfile or settings.metrics_push:
        made = metrics.build_registry(run, found)
        if settings.metrics_textfile:
            metrics.write_textfile(settings.metrics_textfile, made)
        if settings.metrics_push:
            metrics.push(settings.metrics_push, made)

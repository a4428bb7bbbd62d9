"""Artifacts that a run publishes beside its rows: report.html, run.json and Prometheus metrics."""

from __future__ import annotations

from batch import report
from batch.jobs import metrics
from batch.jobs.settings import RunSettings
from batch.output import run_diff, run_record
from batch.output.dataset import Output
from batch.output.run_record import RunRecord, Summary


def check_dependencies(settings: RunSettings) -> None:
    """Check that the packages for the wanted artifacts are installed; called before any work is done.

    Raises:
        InputError: a package is missing.
    """
    if settings.metrics_textfile or settings.metrics_push:
        metrics.check_installed()


def publish_run(
    run: RunRecord, summary: Summary, output: Output, settings: RunSettings, before: RunRecord | None
) -> None:
    """Compare a run with the previous one, and write its artifacts.

    run.json comes after the report, since it says that the run is complete.

    Args:
        run: content of run.json; `changes` is added here.
        summary: summary of the run.
        output: output directory of the run.
        settings: settings of the run.
        before: content of the previous run's run.json; None if there is none.

    Raises:
        LeaseLost: another run took over; nothing is published.
        OutputError: a file cannot be written.
    """
    changes = run_diff.compare_runs(run, before) if before else None
    run["changes"] = changes.to_json() if changes else None
    page = None if settings.no_report else report.build(run, summary.total.examples, changes)
    output.publish_run(run["run_id"], run_record.encode_run(run), page)
    if settings.metrics_textfile or settings.metrics_push:
        registry = metrics.build_registry(run, changes)
        if settings.metrics_textfile:
            metrics.write_textfile(settings.metrics_textfile, registry)
        if settings.metrics_push:
            metrics.push(settings.metrics_push, registry)

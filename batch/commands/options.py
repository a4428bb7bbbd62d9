"""Flags of every command that leaves a run of scores: `hubhead score` and `hubhead rescore`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Allowance:
    """How many photos may be rejected before the command ends with exit code 3.

    Attributes:
        limit: a count, or percent of all photos.
        percent: which of the two.
    """

    limit: float
    percent: bool

    def exceeded(self, rejected: int, photos: int) -> bool:
        """Whether that many rejected ones are too many."""
        return rejected > (self.limit * photos / 100 if self.percent else self.limit)

    def __str__(self) -> str:
        return f"{self.limit:g}{'%' if self.percent else ''}"


def allowance(_context: click.Context, _option: click.Parameter, text: str | None) -> Allowance | None:
    """Read `20` or `5%`."""
    if text is None:
        return None
    percent = text.endswith("%")
    try:
        limit = float(text[:-1]) if percent else int(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is neither a count such as 20 nor a share such as 5%.") from error
    if not 0 <= limit <= (100 if percent else sys.maxsize):
        raise click.BadParameter(f"{text} is out of range: a count from 0, or 0% to 100%.")
    return Allowance(limit, percent)


_FLAGS = (
    click.option(
        "--run_id",
        default="",
        show_default="the date, in UTC",
        help="Name of the run. Under the name of one that was cut off, run.json tells of both together.",
    ),
    click.option(
        "--partition_by",
        default="",
        type=click.Choice(["", "date", "label"]),
        show_default="no partitions",
        metavar="date|label",
        help="Divide the rows into scores/date=2026-05-31/ by the day of the run, or scores/label=.../.",
    ),
    click.option(
        "--max_rejected",
        callback=allowance,
        metavar="COUNT|PERCENT",
        help="Exit with code 3 if more photos than this were rejected: a count or, as in 5%, a share."
        " Everything is written all the same.",
    ),
    click.option(
        "--price_per_hour",
        type=click.FloatRange(min=0),
        help="What one machine costs an hour: run.json then says what a million photos cost.",
    ),
    click.option("--no_report", is_flag=True, help="Write no report.html beside run.json."),
    click.option(
        "--metrics_textfile",
        default="",
        metavar="FILE",
        help="Write the run's figures for Prometheus' node exporter (its textfile collector reads *.prom).",
    ),
    click.option(
        "--metrics_push",
        default="",
        metavar="URL",
        help="Push them to a Pushgateway; one that does not answer is a warning. Both need hubhead[metrics].",
    ),
    click.option("--overwrite", is_flag=True, help="Replace the scores of another model or of other photos."),
    click.option("--json", "as_json", is_flag=True, help="Print run.json on stdout instead of the summary."),
)


def run_flags(command: F) -> F:
    """Add them to a command, which takes them by their names; `--json` is `as_json`."""
    for flag in reversed(_FLAGS):
        command = flag(command)
    return command

"""Options shared by commands, above all by those that write scores: `hubhead score` and `hubhead rescore`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from serving.commands.engine_option import engine_flag
from serving.commands.server_options import option_group, read_secret
from serving.process import Variable


@dataclass(frozen=True)
class RejectionLimit:
    """Number of rejected photos above which a command ends with exit code 3.

    Attributes:
        limit: number of photos, or percentage of all photos.
        percent: True if the limit is a percentage.
    """

    limit: float
    percent: bool

    def exceeded(self, rejected: int, photos: int) -> bool:
        """Return whether more photos were rejected than the limit allows."""
        return rejected > (self.limit * photos / 100 if self.percent else self.limit)

    def __str__(self) -> str:
        return f"{self.limit:g}{'%' if self.percent else ''}"


def parse_limit(_context: click.Context, _option: click.Parameter, text: str | None) -> RejectionLimit | None:
    """Parse a count such as `20` or a percentage such as `5%`.

    Raises:
        click.BadParameter: the text is neither, or out of range.
    """
    if text is None:
        return None
    percent = text.endswith("%")
    try:
        limit = float(text[:-1]) if percent else int(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is neither a count such as 20 nor a percentage such as 5%."
        ) from error
    if not 0 <= limit <= (100 if percent else sys.maxsize):
        raise click.BadParameter(f"{text} is out of range. Give a count of at least 0, or 0% to 100%.")
    return RejectionLimit(limit, percent)


text_option = partial(click.option, default="", show_default=False)
"""An option with a text that is empty by default, which the help does not show."""

embedding_store_flag = text_option(
    "--embedding_store",
    show_default="embeddings below the cache directory",
    metavar="DIR",
    help="Directory of the embedding store, which all commands share. Unchanged photos whose embeddings are"
    " stored are not read again, whatever the head.",
)


@contextmanager
def open_models(
    models: Sequence[str], config: str | None = None, label: str = ""
) -> Iterator[tuple[Path, ...]]:
    """Provide models as local directories; those of an object store are downloaded for the time of the block.

    Args:
        models: values of --model.
        config: model.config that says which version has the label; None for each model's newest version.
        label: version label, if there is a `config`.

    Raises:
        BundleError: a model of an object store does not exist or is incomplete.
        InputError: an address is not valid, or no version has the label.
    """
    from serving.registry.labels import resolve_label
    from serving.registry.stores.download import fetch_bundle
    from serving.storage.address import parse_address

    found = [parse_address(model) for model in models]
    if config:
        found = [resolve_label(model, parse_address(config), label) for model in found]
    with ExitStack() as stack:
        yield tuple(
            model if isinstance(model, Path) else stack.enter_context(fetch_bundle(model)).path
            for model in found
        )


run_flags = option_group(
    click.option(
        "--model",
        required=True,
        multiple=True,
        metavar="DIR",
        help="Bundle to score with: a version's directory, or its parent for the newest version; also s3://,"
        " gs://. Repeat to score with several models of the same backbone, one row each.",
    ),
    click.option(
        "--output",
        required=True,
        metavar="DIR",
        help="Directory to write scores/*.parquet, report.html and run.json to. run.json is written last,"
        " when all rows are there.",
    ),
    embedding_store_flag,
    click.option(
        "--run_id",
        default="",
        show_default="the date, in UTC",
        help="Name of the run, up to 64 letters, digits, dots, dashes and underscores. Give the name of an"
        " interrupted run to continue it: run.json then covers both attempts.",
    ),
    click.option(
        "--partition_by",
        default="",
        type=click.Choice(["", "date", "label"]),
        show_default="no partitions",
        metavar="date|label",
        help="Partition the rows (Hive layout) by the day of the run or by the label, such as"
        " scores/date=2026-05-31/ or scores/label=apple/.",
    ),
    click.option(
        "--max_rejected",
        callback=parse_limit,
        metavar="COUNT|PERCENT",
        help="Exit with code 3 if more photos than this were rejected: a count such as 20, or a percentage"
        " such as 5%. All results are written nevertheless.",
    ),
    engine_flag,
    click.option(
        "--price_per_hour",
        type=click.FloatRange(min=0),
        help="Price of one machine per hour, in any currency. Used to report the cost per million photos.",
    ),
    click.option("--no_report", is_flag=True, help="Do not write report.html beside run.json."),
    text_option(
        "--metrics_textfile",
        metavar="FILE",
        help="Write the run's metrics to a file for the textfile collector of Prometheus' node exporter,"
        " which reads *.prom. Needs hubhead[metrics].",
    ),
    text_option(
        "--metrics_push",
        metavar="URL|@FILE",
        envvar=Variable.METRICS_PUSH,
        show_envvar=True,
        callback=read_secret,
        help="Push the run's metrics to a Prometheus Pushgateway; a failure is only a warning. Other users of"
        " the machine see command lines: give a URL with a password as @FILE or by the environment. Needs"
        " hubhead[metrics].",
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Replace the scores in --output if they are of another model or of other photos.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print run.json instead of the summary."),
)
"""Add the shared options to a command. The value of `--json` is passed as `as_json`."""

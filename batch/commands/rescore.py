"""`hubhead rescore`: score photos with a new head, from their stored embeddings."""

from __future__ import annotations

from typing import Any

import click

from batch.commands.options import RejectionLimit, open_models, run_flags
from batch.commands.score import print_result
from serving.commands.common.command import Command
from serving.commands.common.config_file import describe_configuration
from serving.commands.output import is_quiet


@click.command(
    cls=Command,
    context_settings={"show_default": True, "max_content_width": 100},
    short_help="Score photos with a new head, from their stored embeddings.",
)
@click.option(
    "--scores",
    required=True,
    metavar="DIR",
    help="Output directory of a previous hubhead score or rescore, other than --output. Its photos are scored"
    " again with heads on the same backbone, and its pass-through columns are kept.",
)
@run_flags
@click.pass_context
def rescore(
    ctx: click.Context,
    /,
    model: tuple[str, ...],
    max_rejected: RejectionLimit | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Score the photos of a previous run with a new head, from their stored embeddings.

    Give the --embedding_store of the previous scoring. The photos themselves are not needed, except for the
    thumbnails in report.html: a million photos take less than a minute. The rows are those that hubhead score
    would write. If a photo has rows of several runs or models, its newest row counts.

    The report and run.json compare the run with the previous one in --output, or else with --scores.

    Run the same command again after a crash, or after more photos were scored: only new and unfinished
    photos are processed. `hubhead score --only_new` can later add photos to the same --output.

    No backbone runs, so --engine changes nothing: it is accepted like the other options of hubhead score.

    Photos without an embedding are an error whose message says how to embed them; the scores of all other
    photos are kept.

    Exit codes: 0 success; 1 error; 2 wrong usage; 3 more photos were rejected than --max_rejected allows;
    5 another run is writing to the output.
    """
    from batch.jobs.rescore import RescoreSettings
    from batch.jobs.rescore import rescore as run
    from batch.monitoring.progress import progress_bar

    with open_models(model) as paths, progress_bar(not is_quiet()) as report:
        configuration = describe_configuration(ctx)
        summary = run(RescoreSettings(**settings, model=paths, configuration=configuration), report)
    print_result(ctx, summary, max_rejected, as_json=as_json)

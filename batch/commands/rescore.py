"""`hubhead rescore`: the head alone over stored embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from batch.commands.options import Allowance, run_flags
from batch.commands.score import finish


@click.command(
    context_settings={"show_default": True, "max_content_width": 100},
    short_help="Score known photos with a new head, without reading them.",
)
@click.option(
    "--scores",
    required=True,
    metavar="DIR",
    help="--output of an earlier hubhead score (or rescore): its photos are scored, and its columns of a"
    " manifest pass through. Of a photo with rows of several runs or models the newest counts.",
)
@click.option(
    "--model",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Bundle with the new head, on the backbone of the earlier ones: a version's directory, or the one"
    " above (its newest version). Given several times, each photo has a row for each.",
)
@click.option(
    "--output",
    required=True,
    help="Directory of the result, another one than --scores: scores/*.parquet, and report.html and"
    " run.json as soon as all rows are there. One run at a time.",
)
@click.option(
    "--embedding_store",
    default="",
    show_default="embeddings below the cache directory",
    help="Where the embeddings of the earlier scoring are kept.",
)
@run_flags
@click.pass_context
def rescore(
    ctx: click.Context,
    /,
    max_rejected: Allowance | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Score the photos of an earlier scoring with a new head, from their stored embeddings.

    No photo is read but the few that report.html shows, and they may be gone: a million takes less
    than a minute. The rows are those that hubhead score would write, and the report and run.json say
    what is different from the last run here, or else from the --scores. Run the same command again
    after a crash, or after more photos were scored: only what is new or open is done. Later
    `hubhead score --only_new` may go on in the same --output.

    The exit code is 0 when all is done, 1 on an error, 2 on wrong usage, 3 when there are more
    rejected photos than --max_rejected allows, 5 when another run is at work in the output. Photos
    without an embedding are an error (1) that says how to embed them; all others are kept.
    """
    from batch.jobs.rescore import RescoreSettings
    from batch.jobs.rescore import rescore as run
    from batch.monitoring.progress import progress_bar

    with progress_bar() as report:
        summary = run(RescoreSettings(**settings), report)
    finish(ctx, summary, max_rejected, as_json=as_json)

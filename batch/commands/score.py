"""`hubhead score`: photos in bulk into a Parquet dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batch.commands.options import Allowance, run_flags
from serving.commands.main import TOO_MANY_REJECTED
from serving.commands.server_options import forbid_server_flags, pop_client_config, server_flags
from serving.contract import Status

if TYPE_CHECKING:
    from batch.output.run_record import Summary
    from batch.shards.partition import Partition


SERVER_TIMEOUT = 300.0
"""Seconds that a request of `--server` may take with its retries: a server may restart in between."""


def share(_context: click.Context, _option: click.Parameter, text: str) -> Partition:
    """Read `2/8`."""
    from batch.shards.partition import Partition

    try:
        return Partition.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command(
    context_settings={
        "show_default": True,
        "max_content_width": 100,
        "default_map": {"timeout": SERVER_TIMEOUT},
    },
    short_help="Score any number of photos into Parquet.",
)
@click.option(
    "--photos",
    default="",
    show_default=False,
    help="File, directory or quoted glob ('photos/**/*.jpg'); or gs://...",
)
@click.option(
    "--manifest",
    default="",
    show_default=False,
    metavar="FILE",
    help="Instead of --photos: .txt with a photo a line, or .csv, .tsv, .jsonl or .parquet, whose other"
    " columns become columns of the scores; or a quoted glob of some. Relative paths are relative to it.",
)
@click.option("--uri_column", default="", show_default="uri, path, image, ...", help="Of the manifest.")
@click.option(
    "--model",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Bundle that hubhead train made: a version's directory, or the one above (its newest version)."
    " Given several times, all of one backbone, each photo has a row for each.",
)
@click.option(
    "--model_config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The servers' model.config: of a --model that is the directory above its versions the one with"
    " --label there (stable) is taken, in place of the newest, which may be a canary.",
)
@click.option(
    "--output",
    required=True,
    help="Directory of the result: scores/*.parquet, and run.json as soon as all rows are there."
    " One run at a time.",
)
@click.option(
    "--embedding_store",
    default="",
    show_default="embeddings below the cache directory",
    help="Where embeddings are kept. Photos in it are not read again, whatever head scores them.",
)
@run_flags
@click.option(
    "--only_new",
    is_flag=True,
    help="Add rows of photos that no run in this output has scored with this model, or that changed since;"
    " all rows that are there stay. Without it the rows follow --photos: what is gone from there goes.",
)
@click.option(
    "--shard_size",
    default=8192,
    type=click.IntRange(min=1),
    help="Photos a shard at most. A run that is cut off loses the open one; more machines need more.",
)
@click.option(
    "--share",
    default="0/1",
    callback=share,
    metavar="I/N",
    help="Only this of N shares of the photos, by a hash of their address: 0/8 to 7/8 on eight machines, each"
    " with an --output of its own and all with one --embedding_store.",
)
@server_flags
@click.argument("beam_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]")
@click.pass_context
def score(
    ctx: click.Context,
    /,
    model_config_file: Path | None,
    max_rejected: Allowance | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Score any number of photos into a Parquet dataset, one row a photo (and model).

    A photo that cannot be used is a row with its status and the reason. Run the same command
    again after new photos came, or after a crash: only what is new or open is done.

    The exit code is 0 when all is done, 1 on an error, 2 on wrong usage, 3 when more photos were
    rejected than --max_rejected allows, 5 when another run is at work in the output.

    With --server the photos are embedded by TensorFlow Serving or hubhead serve, which has to serve the
    --model (or one of them) under --model_name, by default the bundle's name and version; the head
    runs here, and the rows are the same. An overloaded server slows the job down; one that is away for
    longer than --timeout ends it, and the same command does the rest.

    Options of Apache Beam go after `--`, such as `-- --runner=FlinkRunner`. Without them
    the job runs in this process, on all cores.
    """
    if bool(settings["photos"]) == bool(settings["manifest"]):
        raise click.UsageError("Give one of --photos and --manifest.", ctx)
    if settings["uri_column"] and not settings["manifest"]:
        raise click.UsageError("--uri_column is of a --manifest.", ctx)
    server = pop_client_config(settings)
    if server is None:
        forbid_server_flags(ctx)
    if model_config_file:
        from serving.client.canary import STABLE
        from serving.registry.labels import resolve_label

        label = (server.label if server else None) or STABLE
        settings["model"] = tuple(
            resolve_label(model, model_config_file, label) for model in settings["model"]
        )
    from batch.jobs import score as pipeline
    from batch.monitoring.progress import progress_bar

    given = pipeline.ScoreSettings(**settings, server=server)
    with progress_bar() as report:
        summary = pipeline.score(given, report)
    finish(ctx, summary, max_rejected, as_json=as_json)


def finish(ctx: click.Context, summary: Summary, max_rejected: Allowance | None, *, as_json: bool) -> None:
    """Say what a run did, and end with the exit code for too many rejected photos."""
    from serving.storage import files

    if as_json:
        click.echo(files.read(summary.run_file).decode(), nl=False)
    else:
        click.echo(describe(summary))
    if max_rejected and max_rejected.exceeded(summary.rejected, summary.total.photos):
        click.echo(f"{summary.rejected} photos were rejected, more than {max_rejected}.", err=True)
        ctx.exit(TOO_MANY_REJECTED)


def describe(summary: Summary) -> str:
    """What a run did, for people."""
    total, run = summary.total, summary.this_run
    lines = [f"{total.rows} rows in {summary.path}"]
    if summary.known:
        lines = [f"{run.rows} new rows in {summary.path}"]
        lines.append(f"{summary.known} photos were scored by an earlier run")
    elif summary.skipped_shards:
        lines.append(f"{total.rows - run.rows} of them were there already")
    if run.photos:
        lines.append(
            f"{summary.photos_per_second:.1f} photos/s"
            f" ({run.embedded} embedded, {run.reused} from the embedding store or identical)"
        )
    if total.abstained:
        lines.append(f"{total.abstained} without a label: no probability reaches the model's threshold")
    for name, count in sorted(total.statuses.items()):
        if name != Status.OK:
            lines.append(f"{count} {name}: {Status(name).meaning}")
    return "\n".join(lines)

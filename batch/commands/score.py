"""`hubhead score`: score photos in bulk into a Parquet dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from batch.commands.options import RejectionLimit, open_models, run_flags, text_option
from serving.commands.common.command import Command
from serving.commands.common.config_file import describe_configuration
from serving.commands.output import echo, is_quiet, warn
from serving.commands.server_options import forbid_server_flags, pop_client_config, server_flags
from serving.contract import Status
from serving.errors import ExitCode

if TYPE_CHECKING:
    from batch.output.run_record import Summary
    from batch.shards.partition import Partition


SERVER_TIMEOUT = 300.0
"""Default of `--timeout` in seconds, retries included: long enough for a server to restart."""


def parse_share(_context: click.Context, _option: click.Parameter, text: str) -> Partition:
    """Parse a partition such as `2/8`.

    Raises:
        click.BadParameter: the text is not a partition.
    """
    from batch.shards.partition import Partition

    try:
        return Partition.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command(
    cls=Command,
    context_settings={
        "show_default": True,
        "max_content_width": 100,
        "default_map": {"timeout": SERVER_TIMEOUT},
    },
    short_help="Score any number of photos into Parquet.",
)
@text_option(
    "--photos",
    help="Photos to score: a file, a directory or a quoted glob such as 'photos/**/*.jpg'; local, s3://,"
    " gs://, az:// or https://.",
)
@text_option(
    "--manifest",
    metavar="FILE",
    help="Dataset manifest to use instead of --photos: .txt with one photo per line, or .csv, .tsv, .jsonl or"
    " .parquet, whose other columns are copied to the scores; or a quoted glob of such files. Relative"
    " paths are resolved from the manifest's directory.",
)
@text_option(
    "--uri_column",
    show_default="uri, path, image, ...",
    metavar="NAME",
    help="Name of the manifest's column that holds the path or address of the photo.",
)
@click.option(
    "--model_config_file",
    metavar="FILE",
    help="Model config file of the servers, a path or an address. Where --model is the parent of its"
    " versions, the version with the version label --label (default: stable) is used instead of the newest,"
    " which may be a canary.",
)
@run_flags
@click.option(
    "--only_new",
    is_flag=True,
    help="Score only photos that are new or changed since they were scored in this output, and keep all"
    " existing rows. Without it, rows of photos that are no longer in the input are deleted.",
)
@click.option(
    "--shard_size",
    default=8192,
    type=click.IntRange(min=1),
    help="Maximum number of photos per shard. Use smaller shards to lose less work when a run is interrupted,"
    " or to spread a small input over many machines.",
)
@click.option(
    "--share",
    default="0/1",
    callback=parse_share,
    metavar="I/N",
    help="Score only partition I of N, by a hash of the photo's address; 0/8 to 7/8 on eight machines. Give"
    " each machine its own --output, and all of them the same --embedding_store.",
)
@server_flags
@click.argument("beam_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]")
@click.pass_context
def score(
    ctx: click.Context,
    /,
    model: tuple[str, ...],
    model_config_file: str | None,
    max_rejected: RejectionLimit | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Score any number of photos into a Parquet dataset, one row per photo and model.

    A photo that cannot be used gets a row with its status and the reason. Run the same command again after
    new photos were added, or after a crash: only new and unfinished photos are processed.

    With --server, TensorFlow Serving or hubhead serve embeds the photos, and the heads run in this process;
    the rows are the same. The server must serve one of the --model bundles, by default under the bundle's
    name and version. An overloaded server slows the job down. A server that is unreachable for longer than
    --timeout ends the job, and the same command continues it.

    Put options of Apache Beam after `--`, such as `-- --runner=FlinkRunner`. Without them the job runs in
    this process, on all cores.

    Exit codes: 0 success; 1 error; 2 wrong usage; 3 more photos were rejected than --max_rejected allows;
    5 another run is writing to the output.
    """
    if bool(settings["photos"]) == bool(settings["manifest"]):
        raise click.UsageError("Give one of --photos and --manifest.", ctx)
    if settings["uri_column"] and not settings["manifest"]:
        raise click.UsageError("--uri_column goes with --manifest.", ctx)
    server = pop_client_config(settings)
    if server is None:
        forbid_server_flags(ctx)
    elif settings["engine"] != "auto":
        raise click.UsageError("--engine does not go with --server, which has an engine of its own.", ctx)
    # Imported here, so that --help stays fast; through the module, so that tests can replace the job.
    from batch.jobs import score as score_job
    from batch.monitoring.progress import progress_bar
    from serving.client.canary import STABLE

    label = (server.label if server else None) or STABLE
    with open_models(model, model_config_file, label) as paths, progress_bar(not is_quiet()) as report:
        configuration = describe_configuration(ctx)
        chosen = score_job.ScoreSettings(**settings, model=paths, server=server, configuration=configuration)
        summary = score_job.score(chosen, report)
    print_result(ctx, summary, max_rejected, as_json=as_json)


def print_result(
    ctx: click.Context, summary: Summary, max_rejected: RejectionLimit | None, *, as_json: bool
) -> None:
    """Print the summary of a run, and exit with code 3 if too many photos were rejected."""
    from serving.storage import files

    if as_json:
        echo(files.read(summary.run_file).decode(), nl=False)
    else:
        echo(format_summary(summary))
    if max_rejected and max_rejected.exceeded(summary.rejected, summary.total.photos):
        warn(f"{summary.rejected} photos were rejected, more than {max_rejected} (--max_rejected).")
        ctx.exit(ExitCode.TOO_MANY_REJECTED)


def format_summary(summary: Summary) -> str:
    """Format the summary of a run for the terminal."""
    total, run = summary.total, summary.this_run
    lines = [f"{total.rows} rows in {summary.path}"]
    if summary.known:
        lines = [f"{run.rows} new rows in {summary.path}"]
        lines.append(f"{summary.known} photos were already scored by a previous run")
    elif summary.skipped_shards:
        lines.append(f"{total.rows - run.rows} of them were written by a previous run")
    if run.photos:
        lines.append(
            f"{summary.photos_per_second:.1f} photos/s"
            f" ({run.embedded} embedded, {run.reused} from the embedding store or identical to another photo)"
        )
    if total.abstained:
        lines.append(f"{total.abstained} without a label: the model abstained")
    for name, count in sorted(total.statuses.items()):
        if name != Status.OK:
            lines.append(f"{count} {name}: {Status(name).meaning}")
    return "\n".join(lines)

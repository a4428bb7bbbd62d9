"""`hubhead query`."""

from __future__ import annotations

import click

FORMATS = ("table", "csv", "json", "parquet")


@click.command(
    context_settings={"show_default": True, "max_content_width": 100},
    short_help="Ask the scores in SQL.",
    epilog="""\b
Examples:
  hubhead query --scores out "select label, count(*), avg(score) from scores group by 1 order by 2 desc"
  hubhead query --scores out "select uri, detail from scores where status = 'corrupt'" --format csv
  hubhead query --scores out "select * from scores where score < 0.5" --output unsure.parquet
  hubhead query --scores out "select run_id, photos, photos / seconds from runs"
  hubhead query --scores out "describe scores"
""",
)
@click.argument("sql")
@click.option(
    "--scores", "directory", required=True, help="What hubhead score --output wrote; local, gs:// or s3://."
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    show_default="by the ending of --output, else table",
    help="How the answer is written; lists in CSV are JSON.",
)
@click.option("--output", default="", show_default="stdout", help="File of the answer.")
def query(sql: str, directory: str, kind: str | None, output: str) -> None:
    """Ask the scores in SQL, as DuckDB understands it.

    Two tables are there: scores, one row a photo and model (uri, sha256, status, detail, label,
    score, top_labels, top_scores, width, height, model, version, scored_at, and the columns of your
    manifest), and runs, one row a run (run_id, started, finished, photos, rejected, seconds, json: all
    of run.json). One statement that reads; nothing is changed. Needs hubhead[query].
    """
    from batch.query import formats
    from batch.query.sql import run_query

    ending = output.rpartition(".")[2].lower()
    kind = kind or (ending if ending in FORMATS else "table")
    if kind == "parquet" and not output:
        raise click.UsageError("Parquet is nothing for a terminal: give --output FILE.")
    count = formats.write_result(run_query(sql, directory), kind, output)
    if output:
        click.echo(f"{count:,} rows in {output}", err=True)

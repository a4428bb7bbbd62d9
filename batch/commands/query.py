"""`hubhead query`: query the scores with SQL."""

from __future__ import annotations

import click

from batch.query import FORMATS
from serving.commands.common.command import Command
from serving.commands.output import say


@click.command(
    cls=Command,
    context_settings={"show_default": True, "max_content_width": 100},
    short_help="Query the scores with SQL.",
    epilog="""\b
Examples:
  hubhead query --scores out "select label, count(*), avg(score) from scores group by 1 order by 2 desc"
  hubhead query --scores out "select uri, detail from scores where status = 'corrupt'" --format csv
  hubhead query --scores out "select * from scores where score < 0.5" --output unsure.parquet
  hubhead query --scores out "select run_id, photos, photos / seconds from runs"
  hubhead query --scores out --table shops=shops.csv "select uri, shop from scores join shops using (label)"
  hubhead query --scores out "describe scores"
""",
)
@click.argument("sql")
@click.option(
    "--scores",
    "directory",
    required=True,
    metavar="DIR",
    help="Output directory of hubhead score or rescore; a local path, s3://, gs:// or az://.",
)
@click.option(
    "--table",
    "tables",
    metavar="NAME=FILE",
    multiple=True,
    help="Further table to join with the scores: a local .csv, .tsv, .json, .jsonl or .parquet file."
    " May be given several times.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    show_default="by the ending of --output, else table",
    help="Format of the result. In CSV, lists are written as JSON.",
)
@click.option(
    "--output", default="", show_default="stdout", metavar="FILE", help="File to write the result to."
)
def query(sql: str, directory: str, tables: tuple[str, ...], kind: str | None, output: str) -> None:
    """Query the scores with SQL, in DuckDB's dialect.

    SQL is a single statement that reads; it cannot change the scores. Needs hubhead[query].

    Table scores has one row per photo and model: uri, sha256, status, detail, label, score, top_labels,
    top_scores, width, height, model, version, scored_at, and the other columns of the dataset manifest.

    Table runs has one row per run: run_id, started, finished, photos, rejected, seconds, and json with the
    whole run.json.
    """
    from batch.query.sql import run_query

    ending = output.rpartition(".")[2].lower()
    kind = kind or (ending if ending in FORMATS else "table")
    if kind == "parquet" and not output:
        raise click.UsageError("Parquet cannot be printed on a terminal. Give --output FILE.")
    count = run_query(sql, directory, kind, output, _parse_tables(tables))
    if output:
        say(f"{count:,} rows written to {output}")


def _parse_tables(tables: tuple[str, ...]) -> dict[str, str]:
    """Return the file of each table by its name."""
    parsed: dict[str, str] = {}
    for given in tables:
        name, equals, file = given.partition("=")
        if not equals or not file:
            raise click.UsageError(
                f"--table {given}: expected NAME=FILE, such as restaurants=restaurants.csv."
            )
        if name in parsed:
            raise click.UsageError(f"--table {name} is given twice.")
        parsed[name] = file
    return parsed

"""`hubhead loadtest`: how a model server answers under a stated load."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.predict import resolve_paths
from serving.commands.server_options import pop_required_client_config, server_flags
from serving.errors import InputError, OutputError

if TYPE_CHECKING:
    from rich.progress import Progress

    from serving.client import ClientConfig
    from serving.loadtest import Load, Result

MAX_BYTES = 512 << 20
"""Photos that are kept in memory to choose from."""


@click.command(
    short_help="Load a server with requests at a stated rate; latency percentiles.",
    epilog="\b\nExamples:\n"
    "  hubhead loadtest 'photos/*.jpg' --server localhost:8500 --model_name food --rate 50 --seconds 30\n"
    "  hubhead loadtest a.jpg --server localhost:8500 --model_name food --rate 20 --rate 40 --rate 80 "
    "--output load.html",
)
@click.argument("photos", nargs=-1, required=True, type=click.Path())
@click.option(
    "--rate",
    "rates",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    required=True,
    help="Requests a second, on average; repeat it to test several rates, one after the other.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="How long requests come, at each rate.",
)
@click.option(
    "--photos_per_request",
    type=click.IntRange(1, 32),
    default=1,
    show_default=True,
    help="Photos that each request carries.",
)
@click.option(
    "--max_under_way",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Requests without an answer at once; those beyond count as not sent.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the times and the photos chosen.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write a page of charts.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a rate on stdout, not a table.")
@server_flags
def loadtest(
    photos: tuple[str, ...],
    rates: tuple[float, ...],
    seconds: float,
    photos_per_request: int,
    max_under_way: int,
    seed: int,
    output: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Send PHOTOS (files or patterns, chosen at random) to a model server at a stated rate.

    Requests come at random times, independent of the answers, and nothing is retried. A latency counts
    from the time at which the request was to be sent, so that a server that falls behind cannot hide it.
    """
    from serving.loadtest import Load, page

    given = pop_required_client_config(flags)
    loads = [Load(rate, seconds, photos_per_request, max_under_way, seed) for rate in sorted(set(rates))]
    contents = _read(resolve_paths(photos))
    results = asyncio.run(_run(given, contents, loads))
    if output is not None:
        try:
            output.write_text(page(results, given.model, given.target), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"The page {output} cannot be written: {error.strerror}.") from error
    for result in results:
        _warn(result)
    if as_json:
        for result in results:
            click.echo(json.dumps(result.record()))
    else:
        _show(results)


def _read(names: Sequence[str]) -> list[bytes]:
    """The photos, as many as fit into memory.

    Raises:
        InputError: one cannot be read.
    """
    contents: list[bytes] = []
    left = MAX_BYTES
    for name in names:
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise InputError(f"The photo {name} cannot be read: {error.strerror}.") from error
        left -= len(content)
        if contents and left < 0:
            break
        contents.append(content)
    return contents


async def _run(server: ClientConfig, contents: Sequence[bytes], loads: Sequence[Load]) -> list[Result]:
    from rich.console import Console
    from rich.progress import Progress

    from serving.client import Retry
    from serving.loadtest import run

    results = []
    client = server.async_client(retry=Retry(attempts=1), convert=False)
    async with client:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            for load in loads:
                results.append(await run(client, contents, load, _teller(progress, load)))
    return results


def _teller(progress: Progress, load: Load) -> Any:
    task = progress.add_task(f"{load.rate:g} requests/s", total=load.seconds)

    def tell(passed: float, sent: int, failed: int) -> None:
        words = f"{load.rate:g} requests/s: {sent} sent, {failed} failed"
        progress.update(task, completed=passed, description=words)

    return tell


def _warn(result: Result) -> None:
    from serving.loadtest.figures import LATE_SECONDS

    if result.late > LATE_SECONDS:
        click.secho(
            f"At {result.rate:g} requests/s this machine was {1000 * result.late:.0f} ms late with one "
            "request in 100, which the latencies hold too. Test at a lower rate, or from several machines.",
            err=True,
            fg="yellow",
        )


def _show(results: Sequence[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    from serving.loadtest.figures import PERCENTILES, percentile

    table = Table("requests/s", "answered/s", *(f"p{p:g} ms" for p in PERCENTILES), "max ms", "not answered")
    for result in results:
        values = [percentile(result.latencies, number) for number in (*PERCENTILES, 100.0)]
        table.add_row(
            f"{result.rate:g}",
            f"{result.throughput:.1f}",
            *(f"{1000 * value:.1f}" for value in values),
            ", ".join(f"{count} {code}" for code, count in result.errors.items()) or "0",
        )
    Console().print(table)

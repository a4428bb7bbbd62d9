"""`hubhead loadtest`: open-loop load test of a model server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.common.command import Command
from serving.commands.output import echo, is_quiet, print_table, say, warn
from serving.commands.predict import resolve_paths
from serving.commands.server_options import pop_required_client_config, server_flags
from serving.errors import InputError, OutputError, ServerError
from serving.loadtest import Load, Result, render_page, run_load
from serving.loadtest.batching import (
    Capacity,
    choose,
    derive_parameters,
    format_file,
    measure_capacity,
    required_threads,
)
from serving.loadtest.figures import MAX_SEND_DELAY_SECONDS, PERCENTILES, percentile

if TYPE_CHECKING:
    from rich.progress import Progress

    from serving.client import ClientConfig
    from serving.protos import Message

MAX_BYTES = 512 << 20
"""Bytes of photos that are kept in memory to choose from."""


@click.command(
    cls=Command,
    short_help="Send requests at a fixed rate and report latency percentiles.",
    epilog="\b\nExamples:\n"
    "  hubhead loadtest 'photos/*.jpg' --server localhost:8500 --model_name food --rate 50 --seconds 30\n"
    "  hubhead loadtest a.jpg --server localhost:8500 --model_name food --rate 20 --rate 40 --rate 80 "
    "--output load.html\n"
    "  hubhead loadtest 'photos/*.jpg' --server localhost:8500 --model_name food --seconds 2 "
    "--batching_file batching_parameters.txt",
)
@click.argument("photos", nargs=-1, required=True, type=click.Path())
@click.option(
    "--rate",
    "rates",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    help="Arrival rate in requests per second. Repeat the option to test several rates, one after another.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    help="Duration of the test at each rate, and of each measurement of --batching_file, in seconds.",
)
@click.option(
    "--photos_per_request",
    type=click.IntRange(1, 32),
    default=1,
    help="Number of photos in each request.",
)
@click.option(
    "--max_under_way",
    type=click.IntRange(min=1),
    default=2000,
    help="Maximum number of requests in flight; requests beyond it are counted as NOT_SENT.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    help="Random seed of the arrival times and of the choice of photos.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write an HTML report with latency charts to this file.",
)
@click.option(
    "--batching_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Measure the server with batches of each size and number, and write the best batching parameters to "
    "this file. Start TensorFlow Serving without --enable_batching for it, hubhead serve with an empty "
    "--batching_parameters_file, and neither with other load.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per rate instead of a table.")
@server_flags
def loadtest(
    photos: tuple[str, ...],
    rates: tuple[float, ...],
    seconds: float,
    photos_per_request: int,
    max_under_way: int,
    seed: int,
    output: Path | None,
    batching_file: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Send PHOTOS to a model server at a fixed rate and report latency percentiles.

    PHOTOS are files or patterns, chosen from at random. The load is open-loop: requests arrive at random
    times, independent of earlier responses, and are not retried. Latency is measured from the intended
    send time, so that a server that falls behind cannot hide it.

    With --batching_file the command keeps 1, 2, 4, ... requests of 1, 2, 4, ... 32 photos in flight, and
    chooses the size and number of batches with the fastest response within 5 % of the best throughput.
    """
    if not rates and batching_file is None:
        raise click.UsageError("Give --rate, --batching_file, or both.")
    if output is not None and not rates:
        raise click.UsageError("--output needs --rate: the report shows the latencies at each rate.")
    config = pop_required_client_config(flags)
    loads = [Load(rate, seconds, photos_per_request, max_under_way, seed) for rate in sorted(set(rates))]
    contents = _read_photos(resolve_paths(photos))
    if loads:
        results = asyncio.run(_run_loads(config, contents, loads))
        if output is not None:
            _write(output, render_page(results, config.model, config.target), "--output")
        _print_results(results, as_json)
    if batching_file is not None:
        measured = asyncio.run(_measure_batches(config, contents, seconds))
        parameters = derive_parameters(measured)
        _write(
            batching_file,
            format_file(parameters, _describe_measurements(config, measured)),
            "--batching_file",
        )
        _print_batching(batching_file, parameters, measured, as_json)


def _write(path: Path, text: str, option: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"The file {path} cannot be written: {error.strerror}.",
            remedy=f"Give a file in an existing, writable directory to {option}.",
        ) from error


def _print_results(results: Sequence[Result], as_json: bool) -> None:
    for result in results:
        if result.send_delay_p99 > MAX_SEND_DELAY_SECONDS:
            warn(
                f"At {result.rate:g} requests/s this machine sent 1 % of the requests at least "
                f"{1000 * result.send_delay_p99:.0f} ms late; the latencies include that delay. Test at a "
                "lower rate, or from several machines."
            )
    if as_json:
        for result in results:
            echo(json.dumps(result.to_dict()))
    else:
        columns = ("requests/s", "responses/s", *(f"p{p:g} ms" for p in PERCENTILES), "max ms", "errors")
        print_table(columns, map(_format_row, results))
        if results[0].engine:
            echo(f"The server runs {results[0].engine} on {results[0].cpu}.")


async def _measure_batches(config: ClientConfig, contents: Sequence[bytes], seconds: float) -> list[Capacity]:
    from serving.client import AsyncClient, Retry

    def report(capacity: Capacity) -> None:
        shape = f"{capacity.batches} batches of {capacity.size} photos"
        say(f"{shape}: {capacity.throughput:.1f} photos/s")

    async with AsyncClient(replace(config, retry=Retry(attempts=1), convert=False)) as client:
        return await measure_capacity(client, contents, seconds, report)


def _describe_measurements(config: ClientConfig, measured: Sequence[Capacity]) -> list[str]:
    """Return the comments of a batching file: what was measured."""
    return [
        f"BatchingParameters from hubhead loadtest of model {config.model} on {config.target}.",
        "photos per batch, batches at once, ms per batch, photos/s:",
        *("  ".join(_format_capacity(one)) for one in measured),
    ]


def _format_capacity(one: Capacity) -> tuple[str, ...]:
    return str(one.size), str(one.batches), f"{1000 * one.seconds:.1f}", f"{one.throughput:.1f}"


def _print_batching(path: Path, parameters: Message, measured: Sequence[Capacity], as_json: bool) -> None:
    threads = required_threads(parameters)
    if as_json:
        record = {
            "batching_file": str(path),
            "grpc_max_threads": threads,
            "measured": list(map(asdict, measured)),
        }
        echo(json.dumps(record))
        return
    print_table(("photos per batch", "batches", "ms", "photos/s"), map(_format_capacity, measured))
    best = choose(measured)
    echo(f"{best.batches} batches of {best.size} photos at once: {best.throughput:.1f} photos/s.")
    echo(f"Set --enable_batching --batching_parameters_file={path} --grpc_max_threads={threads}")


def _read_photos(names: Sequence[str]) -> list[bytes]:
    """Read the photos, in order, up to MAX_BYTES; at least one.

    Raises:
        InputError: a photo cannot be read.
    """
    contents: list[bytes] = []
    left = MAX_BYTES
    for name in names:
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise InputError(
                f"The photo {name} cannot be read: {error.strerror}.", remedy="Give readable files."
            ) from error
        left -= len(content)
        if contents and left < 0:
            break
        contents.append(content)
    return contents


async def _run_loads(config: ClientConfig, contents: Sequence[bytes], loads: Sequence[Load]) -> list[Result]:
    from rich.console import Console
    from rich.progress import Progress

    from serving.client import AsyncClient, Retry

    async with AsyncClient(replace(config, retry=Retry(attempts=1), convert=False)) as client:
        with Progress(console=Console(stderr=True), transient=True, disable=is_quiet()) as progress:
            results = [
                await run_load(client, contents, load, _progress_callback(progress, load)) for load in loads
            ]
        with suppress(ServerError):  # a proxy may pass Predict alone
            served = await client.metadata()
            return [replace(result, engine=served.engine, cpu=served.cpu) for result in results]
        return results


def _progress_callback(progress: Progress, load: Load) -> Any:
    task = progress.add_task(f"{load.rate:g} requests/s", total=load.seconds)

    def update(passed: float, sent: int, failed: int) -> None:
        description = f"{load.rate:g} requests/s: {sent} sent, {failed} failed"
        progress.update(task, completed=passed, description=description)

    return update


def _format_row(result: Result) -> tuple[str, ...]:
    latencies = (percentile(result.latencies, number) for number in (*PERCENTILES, 100.0))
    return (
        f"{result.rate:g}",
        f"{result.throughput:.1f}",
        *(f"{1000 * latency:.1f}" for latency in latencies),
        ", ".join(f"{count} {code}" for code, count in result.errors.items()) or "0",
    )

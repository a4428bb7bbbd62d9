"""`hubhead predict`: photos in, labels out, by a server or by a bundle."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from serving.commands.server_options import (
    forbid_server_flags,
    pop_client_config,
    require_model_name,
    server_flags,
)
from serving.errors import InputError
from serving.runtime.tensorflow_import import require_tensorflow

if TYPE_CHECKING:
    from rich.table import Table

    from serving.client import ClientConfig, Photo
    from serving.contract import Prediction

BAR_WIDTH = 10
"""Characters that a probability of 1 takes in the table."""

STDIN = "-"

_BUNDLE_PHOTOS = 64
"""Photos that a bundle is asked for before the first is told."""

Answers = Iterable[tuple[str, "Prediction"]]


@click.command(
    short_help="Classify photos, by a server or by a bundle.",
    epilog="\b\nExamples:\n"
    "  hubhead predict a.jpg 'uploads/**/*.jpg' --server localhost:8500 --model_name food\n"
    "  hubhead predict a.jpg --server localhost:8500 --model_name food --label stable\n"
    "  curl -s https://example.org/a.jpg | hubhead predict - --model models/food --json\n"
    "  find uploads -name '*.jpg' | hubhead predict --from_file - --model models/food --json",
)
@click.argument("photos", nargs=-1, type=click.Path(allow_dash=True))
@click.option(
    "--from_file",
    type=click.File(encoding="utf-8"),
    help="Also the photos whose paths this file lists, one a line; - reads the list from stdin.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Load this bundle (models/food, or a version such as models/food/3) and answer without a server.",
)
@click.option(
    "--top_k", type=click.IntRange(min=1), default=5, show_default=True, help="Labels to show for each photo."
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a photo on stdout, as answered, not a table."
)
@click.option(
    "--downscale", is_flag=True, help="With --server: send large photos reduced to twice the model's input."
)
@server_flags
@click.pass_context
def predict(
    context: click.Context,
    /,
    photos: tuple[str, ...],
    from_file: TextIO | None,
    model: Path | None,
    top_k: int,
    as_json: bool,
    downscale: bool,
    **flags: Any,
) -> None:
    """Classify PHOTOS by a model server (--server) or by a bundle on disk (--model).

    A photo is a file, a pattern such as 'uploads/**/*.jpg', or - for the bytes on stdin. One that
    cannot be used is a row with the reason, not a failure. "none of these" (null in JSON) means that
    the model finds none of its labels likely enough.
    """
    given = pop_client_config(flags)
    if (given is None) == (model is None):
        raise click.UsageError("Give exactly one of --server HOST:PORT and --model BUNDLE.")
    if not photos and from_file is None:
        raise click.UsageError("Give photos, or a list of them with --from_file.")
    if STDIN in photos and (photos.count(STDIN) > 1 or (from_file and from_file is sys.stdin)):
        raise click.UsageError("stdin can be read once: as one photo or as the list of photos.")
    if model is not None:
        forbid_server_flags(context, "downscale")
    listed = (line.rstrip("\r\n") for line in from_file or ())
    names = [*resolve_paths(photos), *(name for name in listed if name.strip())]
    answers = (
        _by_bundle(model, names, top_k)
        if model
        else _by_server(require_model_name(given), names, top_k, downscale)
    )
    if as_json:
        for name, prediction in answers:
            click.echo(json.dumps(_as_record(name, prediction), ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(_as_table(answers))


def resolve_paths(photos: Sequence[str]) -> list[str]:
    """The paths that arguments and patterns name, in their order.

    Raises:
        InputError: no file matches a pattern.
    """
    names: list[str] = []
    for photo in photos:
        if not any(mark in photo for mark in "*?") or Path(photo).exists():
            names.append(photo)
            continue
        # Path.glob takes no absolute patterns.
        matches = glob.iglob(photo, recursive=True)  # noqa: PTH207
        found = sorted(path for path in matches if Path(path).is_file())
        if not found:
            raise InputError(f"No file matches {photo!r}.", remedy="Patterns: *, ?, and ** for directories.")
        names.extend(found)
    return names


def _photo(name: str) -> Photo:
    return sys.stdin.buffer.read() if name == STDIN else name


def _by_server(
    server: ClientConfig, names: Sequence[str], top_k: int, downscale: bool
) -> Iterator[tuple[str, Prediction]]:
    with server.client(downscale=downscale) as client:
        if len(names) <= client.max_photos:  # one request, in this thread
            yield from zip(names, client.classify(map(_photo, names), top_k), strict=True)
            return
        answers = client.iclassify(map(_photo, names), top_k)
        for name, (_, prediction) in zip(names, answers, strict=True):
            yield name, prediction


def _by_bundle(path: Path, names: Sequence[str], top_k: int) -> Iterator[tuple[str, Prediction]]:
    from serving import bundle, client, runtime

    directory = bundle.resolve(path)
    require_tensorflow()
    model = runtime.load(directory)
    left = iter(names)
    while chunk := list(islice(left, _BUNDLE_PHOTOS)):
        yield from zip(chunk, client.classify(map(_photo, chunk), model.classify, top_k=top_k), strict=True)


def _as_record(photo: str, prediction: Prediction) -> dict[str, object]:
    return {
        "photo": photo,
        "status": prediction.status.value,
        "detail": prediction.detail,
        "label": prediction.label,
        "score": prediction.score,
        "top": [{"label": label, "score": score} for label, score in prediction.top],
        "version": prediction.version,
    }


def _as_table(answers: Answers) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("photo", "label", "score", "next", "status")
    for photo, prediction in answers:
        status = prediction.status
        table.add_row(
            Text(photo),  # Text: a name may hold what rich takes for markup
            Text(prediction.label or ("none of these" if status.usable else "")),
            Text(_bar(prediction.score)),
            Text(", ".join(f"{label} {score:.2f}" for label, score in _next(prediction))),
            Text(_why(prediction)),
        )
    return table


def _why(prediction: Prediction) -> str:
    status = prediction.status
    reason = f" ({prediction.detail})" if prediction.detail else ""
    return "ok" if status == "ok" else f"{status}: {status.meaning}{reason}"


def _next(prediction: Prediction) -> Sequence[tuple[str, float]]:
    """The labels beside the one in the label column: all of them where the model abstains."""
    return prediction.top[1:] if prediction.label else prediction.top


def _bar(score: float | None) -> str:
    return "" if score is None else f"{score:.2f} {'█' * round(score * BAR_WIDTH)}"

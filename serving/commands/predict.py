"""`hubhead predict`: classify photos with a model server or with a bundle on disk."""

from __future__ import annotations

import glob
import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from serving.commands.common.label_image import LabelImageCommand
from serving.commands.engine_option import engine_flag
from serving.commands.main import require_extra
from serving.commands.output import echo, print_table
from serving.commands.server_options import (
    forbid_server_flags,
    pop_client_config,
    require_model_name,
    server_flags,
)
from serving.errors import InputError
from serving.storage.names import describe_system_directories, find_system_directory
from serving.storage.regular import read_regular
from serving.storage.text_lines import read_lines
from serving.text import escape_controls

if TYPE_CHECKING:
    from serving import runtime
    from serving.client import ClientConfig, Photo
    from serving.contract import Prediction

_log = logging.getLogger(__name__)

BAR_WIDTH = 10
"""Characters of the bar for a probability of 1 in the table."""

STDIN = "-"

_BUNDLE_PHOTOS = 64
"""Photos that a bundle classifies at a time, before their results are printed."""


@click.command(
    cls=LabelImageCommand,
    short_help="Classify photos with a model server or with a bundle.",
    epilog="\b\nExamples:\n"
    "  hubhead predict a.jpg 'uploads/**/*.jpg' --server localhost:8500 --model_name food\n"
    "  hubhead predict a.jpg --server localhost:8500 --model_name food --label stable\n"
    "  curl -s https://example.org/a.jpg | hubhead predict - --model models/food --json\n"
    "  find uploads -name '*.jpg' | hubhead predict --from_file - --model models/food --json",
)
@click.argument("photos", nargs=-1, type=click.Path(allow_dash=True))
@click.option(
    "--from_file",
    type=click.File("rb"),
    help="File with more photos to classify, one path per line; - reads the list from stdin.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Bundle to load, or one of its versions, such as models/food or models/food/3. Use it to classify "
    "without a server.",
)
@click.option(
    "--top_k",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of labels to show per photo.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object per photo instead of a table, each as soon as it is available.",
)
@click.option(
    "--downscale",
    is_flag=True,
    help="With --server: downscale large photos to twice the model's input size before they are sent. Use it "
    "on slow connections.",
)
@engine_flag
@server_flags
@click.pass_context
def predict(
    context: click.Context,
    /,
    photos: tuple[str, ...],
    from_file: BinaryIO | None,
    model: Path | None,
    top_k: int,
    as_json: bool,
    engine: str,
    downscale: bool,
    **flags: Any,
) -> None:
    """Classify PHOTOS with a model server (--server) or with a bundle on disk (--model).

    PHOTOS are files, patterns such as 'uploads/**/*.jpg', or - for the bytes of one photo on stdin. A
    photo that cannot be used gets a row with the reason; the command does not fail. "none of these"
    (null in JSON) means that the model abstains: no label is likely enough.
    """
    config = pop_client_config(flags)
    if (config is None) == (model is None):
        raise click.UsageError("Give exactly one of --server HOST:PORT and --model BUNDLE.")
    if not photos and from_file is None:
        raise click.UsageError("Give photos, or a file that lists them with --from_file.")
    if STDIN in photos and (photos.count(STDIN) > 1 or from_file is sys.stdin.buffer):
        raise click.UsageError("stdin can be read once, either as one photo or as the list of photos.")
    if model is not None:
        forbid_server_flags(context, "downscale")
    elif engine != "auto":
        raise click.UsageError("--engine goes with --model: a server has an engine of its own.")
    names = [*resolve_paths(photos), *(_read_list(from_file) if from_file else ())]
    run_by: dict[str, str | None] = {"engine": None, "cpu": None}  # a server's: hubhead status
    if model:
        loaded = _load_bundle(model, engine)
        run_by = {"engine": loaded.engine, "cpu": loaded.cpu}
        results = _classify_with_bundle(loaded, names, top_k)
    else:
        results = _classify_on_server(require_model_name(config), names, top_k, downscale)
    if as_json:
        for name, prediction in results:
            echo(json.dumps(_to_dict(name, prediction) | run_by, ensure_ascii=False))
    else:
        print_table(("photo", "label", "score", "other labels", "status"), starmap(_format_row, results))


@dataclass(frozen=True)
class _ListedPhoto:
    """A photo of a list, which may name anything: only files on a disk are read."""

    path: str

    def __str__(self) -> str:
        return self.path

    def read(self) -> bytes:
        return read_regular(self.path)


def _read_list(file: BinaryIO) -> Iterator[_ListedPhoto]:
    """Yield the photos of a list, one per line. Spaces around it count if a file has them."""
    for line in read_lines(io.BytesIO(file.read()), getattr(file, "name", "stdin")):
        path = line.rstrip("\r\n")
        if path.strip():
            yield _ListedPhoto(path if os.path.lexists(path) else path.strip())


def resolve_paths(photos: Sequence[str]) -> list[str]:
    """Return the paths of the arguments, in order, with patterns expanded.

    A pattern that is the name of an existing file means that file. Wildcards match no directories of
    operating systems.

    Raises:
        InputError: no file matches a pattern.
    """
    names: list[str] = []
    for photo in photos:
        if not any(wildcard in photo for wildcard in "*?") or Path(photo).exists():
            names.append(photo)
            continue
        # Path.glob does not accept absolute patterns.
        matches = glob.iglob(photo, recursive=True)  # noqa: PTH207
        found = sorted(path for path in matches if Path(path).is_file())
        systems = {path: find_system_directory(path, photo) for path in found}
        if left_out := set(filter(None, systems.values())):
            _log.warning("%s: %s", photo, describe_system_directories(left_out))
        files = [path for path in found if not systems[path]]
        if not files:
            raise InputError(
                f"No file matches {photo!r}.",
                remedy="Check the pattern; * and ? match within a directory, ** across directories.",
            )
        names.extend(files)
    return names


def _open_photo(name: str | _ListedPhoto) -> Photo:
    return sys.stdin.buffer.read() if name == STDIN else name


def _classify_on_server(
    server: ClientConfig, names: Sequence[str | _ListedPhoto], top_k: int, downscale: bool
) -> Iterator[tuple[str, Prediction]]:
    from serving.client import Client

    with Client(replace(server, downscale=downscale)) as client:
        if len(names) <= client.max_photos:  # one request, in this thread
            yield from zip(map(str, names), client.classify(map(_open_photo, names), top_k), strict=True)
            return
        results = client.iclassify(map(_open_photo, names), top_k)
        for name, (_, prediction) in zip(names, results, strict=True):
            yield str(name), prediction


def _load_bundle(path: Path, engine: str) -> runtime.Model:
    from serving import bundle, contract, runtime

    directory = bundle.resolve(path)
    if (directory / contract.METADATA_FILE).exists():
        bundle.read_metadata(directory)  # raises BundleError if it is malformed; other SavedModels have none
    require_extra("serve", "tensorflow")
    return runtime.load(directory, engine=engine)


def _classify_with_bundle(
    model: runtime.Model, names: Sequence[str | _ListedPhoto], top_k: int
) -> Iterator[tuple[str, Prediction]]:
    from serving import client

    remaining = iter(names)
    while chunk := list(islice(remaining, _BUNDLE_PHOTOS)):
        predictions = client.classify(map(_open_photo, chunk), model.classify, top_k=top_k)
        yield from zip(map(str, chunk), predictions, strict=True)


def _to_dict(photo: str, prediction: Prediction) -> dict[str, object]:
    return {
        "photo": photo,
        "status": prediction.status.value,
        "detail": prediction.detail,
        "label": prediction.label,
        "score": prediction.score,
        "top": [{"label": label, "score": score} for label, score in prediction.top],
        "version": prediction.version,
    }


def _format_row(photo: str, prediction: Prediction) -> tuple[str, ...]:
    status, score = prediction.status, prediction.score
    # All labels are listed beside the label column if the model abstains.
    others = prediction.top[1:] if prediction.label else prediction.top
    reason = f" ({prediction.detail})" if prediction.detail else ""
    return (
        escape_controls(photo, newlines=True),
        prediction.label or ("none of these" if status.usable else ""),
        "" if score is None else f"{score:.2f} {'█' * round(score * BAR_WIDTH)}",
        ", ".join(f"{label} {score:.2f}" for label, score in others),
        "ok" if status == "ok" else f"{status}: {status.meaning}{reason}",
    )

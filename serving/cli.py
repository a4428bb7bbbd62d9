"""The commands `serve` and `predict`. Everything heavy is imported by the one that needs it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.errors import HubheadError

if TYPE_CHECKING:
    from rich.table import Table

    from serving.contract import Prediction
    from serving.server import RunningServer

BAR_WIDTH = 10
"""Characters that a probability of 1 takes in the table."""


@click.command(
    short_help="Serve a model over TensorFlow Serving's protocol.",
    epilog="\b\nExample:\n"
    "  hubhead serve --model_base_path models/food\n"
    "  hubhead predict photo.jpg --server localhost:8500 --model_name food",
)
@click.option(
    "--model_base_path",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory whose numbered children are the versions, such as models/food. The newest that loads is "
    "served; a new one takes over without a pause, and removing it rolls back.",
)
@click.option(
    "--model_name",
    default="",
    help="Name that callers use.  [default: the name of the base path's directory]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8500,
    show_default=True,
    help="gRPC port; 0 takes a free one and prints it.",
)
@click.option(
    "--file_system_poll_wait_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Seconds between two looks for new versions.",
)
def serve(model_base_path: Path, model_name: str, port: int, file_system_poll_wait_seconds: float) -> None:
    """Serve a model over TensorFlow Serving's gRPC protocol.

    One line on stdout says when it is ready, and where. Stop it with Ctrl-C or SIGTERM: requests
    in flight are finished first.
    """
    from serving.server import ServerSettings, serve_until_signalled

    _require_tensorflow()
    serve_until_signalled(
        ServerSettings(
            model_base_path=model_base_path,
            model_name=model_name,
            port=port,
            file_system_poll_wait_seconds=file_system_poll_wait_seconds,
        ),
        _say_ready,
    )


@click.command(
    short_help="Classify photos, by a server or by a bundle.",
    epilog="\b\nExamples:\n"
    "  hubhead predict a.jpg b.jpg --server localhost:8500 --model_name food\n"
    "  hubhead predict a.jpg --model models/food --json",
)
@click.argument("photos", nargs=-1, required=True, type=click.Path())
@click.option("--server", metavar="HOST:PORT", help="Ask the model server there, over gRPC.")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Load this bundle (models/food, or a version such as models/food/3) and answer without a server.",
)
@click.option(
    "--model_name", envvar="HUBHEAD_MODEL", show_envvar=True, help="With --server: the model's name there."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="With --server: seconds that each request of up to 32 photos may take.",
)
@click.option(
    "--top_k", type=click.IntRange(min=1), default=5, show_default=True, help="Labels to show for each photo."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a photo on stdout, not a table.")
@click.pass_context
def predict(
    context: click.Context,
    photos: tuple[str, ...],
    server: str | None,
    model: Path | None,
    model_name: str | None,
    timeout: float,
    top_k: int,
    as_json: bool,
) -> None:
    """Classify PHOTOS by a model server (--server) or by a bundle on disk (--model).

    A photo that cannot be used is a row with the reason, not a failure. "none of these" (null in
    JSON) means that the model finds none of its labels likely enough.
    """
    if (server is None) == (model is None):
        raise click.UsageError("Give exactly one of --server HOST:PORT and --model BUNDLE.")
    if server is not None:
        if not model_name:
            raise click.UsageError("--server needs --model_name NAME (or HUBHEAD_MODEL in the environment).")
        predictions = _ask_server(server, model_name, timeout, photos, top_k)
    else:
        assert model is not None
        for flag in ("model_name", "timeout"):
            if context.get_parameter_source(flag) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{flag} goes with --server, not with --model.")
        predictions = _ask_bundle(model, photos, top_k)
    if as_json:
        for photo, prediction in zip(photos, predictions, strict=True):
            click.echo(json.dumps(_as_record(photo, prediction), ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(_as_table(photos, predictions))


def _say_ready(server: RunningServer) -> None:
    click.echo(f"Serving model {server.name}, version {server.version}, at localhost:{server.port} (gRPC).")


def _ask_server(
    target: str, model_name: str, timeout: float, photos: Sequence[str], top_k: int
) -> list[Prediction]:
    from serving.client import Client

    with Client(target, model=model_name, timeout=timeout) as client:
        return client.classify(photos, top_k)


def _ask_bundle(path: Path, photos: Sequence[str], top_k: int) -> list[Prediction]:
    from serving import bundle, client, runtime

    directory = bundle.resolve(path)
    _require_tensorflow()
    model = runtime.load(directory)
    return client.classify(photos, model.classify, top_k=top_k)


def _require_tensorflow() -> None:
    import importlib.util

    if importlib.util.find_spec("tensorflow") is None:
        raise HubheadError(
            "Running a model needs TensorFlow, which is not installed.",
            remedy="Install it with: pip install 'hubhead[serve]'",
        )


def _as_record(photo: str, prediction: Prediction) -> dict[str, object]:
    return {
        "photo": photo,
        "status": prediction.status.value,
        "detail": prediction.detail,
        "label": prediction.label,
        "score": prediction.score,
        "top": [{"label": label, "score": score} for label, score in prediction.top],
    }


def _as_table(photos: Sequence[str], predictions: Sequence[Prediction]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("photo", "label", "score", "next", "status")
    for photo, prediction in zip(photos, predictions, strict=True):
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

"""The command `serve`. Everything heavy is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from serving.commands.predict import predict as predict
from serving.commands.predict import require_tensorflow

if TYPE_CHECKING:
    from serving.server import RunningServer


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

    require_tensorflow()
    serve_until_signalled(
        ServerSettings(
            model_base_path=model_base_path,
            model_name=model_name,
            port=port,
            file_system_poll_wait_seconds=file_system_poll_wait_seconds,
        ),
        _say_ready,
    )


def _say_ready(server: RunningServer) -> None:
    click.echo(f"Serving model {server.name}, version {server.version}, at localhost:{server.port} (gRPC).")

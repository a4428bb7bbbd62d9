"""`hubhead serve`: run a model server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.common.command import Command
from serving.commands.engine_option import engine_flag
from serving.commands.main import require_extra
from serving.commands.output import echo
from serving.commands.server_options import is_given
from serving.server.config.flags import FLAGS, build_settings, describe_ignored_flags

if TYPE_CHECKING:
    from serving.server import RunningServer


def _model_server_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add every flag of tensorflow_model_server; ignored flags are hidden from --help."""
    for name, flag in reversed(FLAGS.items()):
        attributes: dict[str, Any] = {"default": flag.default, "hidden": bool(flag.ignored_because)}
        attributes["help"] = flag.help
        if flag.kind is bool:
            attributes |= {"type": bool, "is_flag": False, "flag_value": "true", "metavar": "[BOOLEAN]"}
        elif flag.kind is Path:
            attributes["type"] = click.Path(path_type=Path)
        elif name.endswith("port"):
            attributes["type"] = click.IntRange(-1 if name == "rest_api_port" else 0, 65535)
        elif name.endswith("wait_seconds"):
            attributes["type"] = click.FloatRange(min=0, min_open=name.startswith("file_system"))
        elif flag.kind is int and not flag.ignored_because:
            attributes["type"] = click.IntRange(min=1)
        else:
            attributes["type"] = flag.kind
        attributes["show_default"] = flag.default not in (None, "")
        command = click.option(f"--{name}", **attributes)(command)
    return command


@click.command(
    cls=Command,
    short_help="Serve models over TensorFlow Serving's protocol.",
    epilog="\b\nExamples:\n"
    "  hubhead serve --model_base_path models/food --rest_api_port 8501\n"
    "  hubhead predict photo.jpg --server localhost:8500 --model_name food",
)
@_model_server_flags
@engine_flag
@click.option("--version", is_flag=True, help="Print the version of hubhead and exit.")
@click.pass_context
def serve(context: click.Context, /, version: bool, engine: str, **values: Any) -> None:
    """Serve models over TensorFlow Serving's gRPC and REST protocols.

    Prints one line with the ports once the server is ready. Ctrl-C or SIGTERM stops it gracefully:
    requests in flight are completed. All flags of tensorflow_model_server are accepted; those that do not
    apply are ignored with a message.
    """
    if version:
        echo(f"hubhead {metadata.version('hubhead')}")
        return
    given = [name for name in values if is_given(context, name)]
    for message in describe_ignored_flags(given):
        echo(message, err=True)
    settings = build_settings(values)
    require_extra("serve", "tensorflow")
    from serving import runtime
    from serving.server import serve_until_signalled

    serve_until_signalled(settings, _print_ready, loader=partial(runtime.load, engine=engine))


def _print_ready(server: RunningServer) -> None:
    models = ", ".join(
        f"{name}, {format_versions(filter(versions.is_available, versions.states()))}"
        for name, versions in server.manager.models.items()
    )
    ports = f"localhost:{server.port} (gRPC)"
    if server.rest_port:
        ports += f" and http://localhost:{server.rest_port} (REST)"
    echo(f"Serving model {models}, at {ports}.")


def format_versions(numbers: Iterable[int]) -> str:
    """Return version numbers as words, such as "version 5" or "versions 3, 4 and 5"."""
    *others, last = [str(number) for number in sorted(numbers)] or ["none"]
    return f"versions {', '.join(others)} and {last}" if others else f"version {last}"

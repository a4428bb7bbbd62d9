"""The local model server: TensorFlow Serving's protocols over serving.runtime.

    with start(ServerSettings(Path("models/food"), port=0)) as server:
        print(server.port)

Nothing is imported before it is used, so that the command's --help answers at once.

    settings, config, flags   what is served and how, from files and command lines
    versions, manager         which versions of which models serve; labels; reload
    servable, warmup          one version, and how it is warmed
    services, rest            the protocols
    metrics, health           what the server says of itself
    app                       start, run, stop
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.server.app import RunningServer, serve_until_signalled, start
    from serving.server.config.settings import ServerSettings

__all__ = ["RunningServer", "ServerSettings", "serve_until_signalled", "start"]

if not TYPE_CHECKING:  # to mypy it would make every name one of the package's

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = "config.settings" if name == "ServerSettings" else "app"
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)

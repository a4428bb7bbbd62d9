"""The local model server: TensorFlow Serving's protocols on top of serving.runtime.

    with start(ServerSettings(Path("models/food"), port=0)) as server:
        print(server.port)

Modules are imported on first use, so that `hubhead serve --help` is fast.

    config     settings, from flags and configuration files
    models     versions, version labels, reload, warm-up, inference
    batching   the queue, admission control, batch threads
    grpc, rest the two protocols; rest also has the demo page
    event_loop the thread of each protocol's event loop
    metrics, health
               Prometheus metrics, the health service
    app        start, run, stop
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.server.app import RunningServer, serve_until_signalled, start
    from serving.server.config.settings import ServerSettings

__all__ = ["RunningServer", "ServerSettings", "serve_until_signalled", "start"]

if not TYPE_CHECKING:  # mypy would accept every attribute of the package

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = "config.settings" if name == "ServerSettings" else "app"
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)

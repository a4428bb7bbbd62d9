"""The server of the conformance model as a process; its argument is an empty directory."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

CONFORMANCE_SERVER = [sys.executable, "-m", "tests.support.conformance_process"]
"""Command of the server, without its directory."""


def main(directory: Path) -> None:
    """Serve the model toy, and print the ports as `hubhead serve` does."""
    from tests.conformance.conformance_model import write_conformance_model
    from tests.conformance.conformance_server import start_conformance_server

    write_conformance_model(directory / "toy" / "3")
    with start_conformance_server(("toy", directory / "toy"), metrics_path="/metrics") as server:
        running = server.running
        print(f"localhost:{running.port} (gRPC) localhost:{running.rest_port}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

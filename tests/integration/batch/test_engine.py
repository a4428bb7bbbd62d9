"""The job of a cluster's engine: found and cancelled by Flink's REST API and by Beam's job service."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from batch.beam.engine import EngineJob

pytestmark = [pytest.mark.beam, pytest.mark.server]

NAME = "hubhead-score-0011223344556677"


@contextmanager
def flink(*jobs: dict[str, Any], content: bytes = b"") -> Iterator[tuple[str, list[str]]]:
    """Serve Flink's REST API with these jobs; yield its address and the requests that changed something."""
    changes: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, content or json.dumps({"jobs": jobs}).encode())

        def do_PATCH(self) -> None:
            changes.append(self.path)
            self._answer(202, b"{}")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", changes
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def job(**values: str) -> EngineJob:
    return EngineJob(**{"name": NAME, "runner": "FlinkRunner", **values})


def test_a_running_job_is_cancelled_by_flinks_rest_api_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    jobs = [
        {"jid": "a1", "name": f"{NAME}-x", "state": "RUNNING"},
        {"jid": "b2", "name": "hubhead-score-other", "state": "RUNNING"},
        {"jid": "c3", "name": NAME, "state": "FINISHED"},
    ]
    with flink(*jobs) as (address, changes):
        assert job(flink=address).cancel() == "It was RUNNING and has been cancelled."
        assert changes == ["/jobs/a1?mode=cancel"]


def test_a_job_that_ended_is_left_alone() -> None:
    with flink({"jid": "a1", "name": NAME, "state": "CANCELED"}) as (address, changes):
        assert not job(flink=f"http://{address}").cancel()
        assert not changes


def test_an_engine_that_cannot_be_asked_is_an_error_that_names_it() -> None:
    with pytest.raises(OSError, match="refused"):
        job(flink="127.0.0.1:9").cancel()
    with (
        flink(content=b"<html>") as (address, _),
        pytest.raises(OSError, match="is not the REST API of Flink"),
    ):
        job(flink=address).cancel()
    with pytest.raises(OSError, match="answers UNAVAILABLE"):
        job(endpoint="127.0.0.1:9", id="job-1").cancel()
    with pytest.raises(OSError, match="cannot be asked"):
        job(runner="DataflowRunner").cancel()


def test_the_place_of_a_job_is_described_in_words() -> None:
    described = job(flink="flink:8081", id="job-1", endpoint="jobs:8099", pool="localhost:50000").where
    assert described == (
        "job job-1, runner FlinkRunner, Flink at http://flink:8081, job server jobs:8099,"
        " worker pool localhost:50000"
    )

"""The job of a cluster's engine: found and cancelled by Flink's REST API and by Beam's job service."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from batch.beam.engine import EngineJob
from batch.beam.failure import describe_failure

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


@contextmanager
def job_service(*found: tuple[str, str, str]) -> Iterator[tuple[str, list[str]]]:
    """Serve Beam's Job API with jobs (id, name, state); yield its address and the ids of cancelled jobs."""
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2 as messages
    from apache_beam.portability.api import beam_job_api_pb2_grpc as services

    cancelled: list[str] = []

    class Service(services.JobServiceServicer):
        def GetJobs(self, request: Any, context: Any) -> Any:
            jobs = [
                messages.JobInfo(job_id=job_id, job_name="job", state=messages.JobState.Enum.Value(state))
                for job_id, _, state in found
            ]
            for info, (_, name, _) in zip(jobs, found, strict=True):
                info.pipeline_options["beam:option:job_name:v1"] = name
            return messages.GetJobsResponse(job_info=jobs)

        def Cancel(self, request: Any, context: Any) -> Any:
            cancelled.append(request.job_id)
            return messages.CancelJobResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    services.add_JobServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", cancelled
    finally:
        server.stop(None)


def test_a_job_is_cancelled_by_its_id_or_by_its_name_where_the_driver_was_killed_before_it_knew_the_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    jobs = [("a", NAME, "RUNNING"), ("b", "other", "RUNNING"), ("c", "ended", "DONE")]
    with job_service(*jobs) as (address, cancelled):
        assert job(endpoint=address, id="b").cancel() == "It was RUNNING and has been cancelled."
        assert job(endpoint=address).cancel() == "It was RUNNING and has been cancelled."
        assert not job(endpoint=address, id="c").cancel()
        assert not job(endpoint=address, name="never submitted").cancel()
        with pytest.raises(OSError, match="does not know it"):
            job(endpoint=address, id="of an earlier job server").cancel()
    assert cancelled == ["b", "a"]


def test_flink_is_asked_where_the_job_server_is_new_or_gone() -> None:
    running = {"jid": "a1", "name": f"{NAME}-x", "state": "RUNNING"}
    with flink(running) as (address, changes), job_service() as (endpoint, _):
        assert job(endpoint=endpoint, id="old", flink=address).cancel()
        assert job(endpoint="127.0.0.1:9", id="old", flink=address).cancel()
        assert job(endpoint=endpoint, flink=address).cancel()
    assert len(changes) == 3


def test_jobs_that_the_user_named_are_not_cancelled_by_name_since_others_may_have_it() -> None:
    running = {"jid": "a1", "name": "nightly", "state": "RUNNING"}
    with flink(running) as (address, changes), job_service(("a", "nightly", "RUNNING")) as (endpoint, ids):
        for place in ({"flink": address}, {"endpoint": endpoint}):
            named = EngineJob("nightly", "FlinkRunner", is_named=True, **place)
            with pytest.raises(OSError, match="cannot be asked"):
                named.cancel()
    assert not changes
    assert not ids


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        (
            "java.lang.RuntimeException: Error received from SDK harness for instruction 3: Traceback (most"
            ' recent call last):\n  File "x.py", line 3, in f\n    f()\n    ^^^\nValueError: wrong'
            " [while running 'embed and score']\n\n\tat org.apache.beam.X(X.java:1)\n\t... 6 more\n",
            "ValueError: wrong.",
            "Correct the cause",
        ),
        (
            "java.lang.Exception: no\n\tat X.y(X.java:1)\nCaused by: io.grpc.StatusRuntimeException:"
            " UNAVAILABLE: io exception: Connection refused: pools/10.0.0.7:50000\n\tat z(X.java:2)",
            "the worker pool pools:50000 does not answer (io.grpc.StatusRuntimeException: UNAVAILABLE",
            "Start a pool",
        ),
        (">", "RuntimeError.", "Correct the cause"),
        ("ModuleNotFoundError: No module named 'batch'", "ModuleNotFoundError", "Install the same version"),
    ],
)
def test_a_failure_is_described_by_the_line_that_says_what_happened(
    text: str, cause: str, remedy: str
) -> None:
    described = str(describe_failure(RuntimeError(text), job(pool="pools:50000", id="job-1")))
    assert described.startswith(f"The Beam job failed: {cause}")
    assert remedy in described
    assert "worker pool pools:50000" in described


def test_the_place_of_a_job_is_described_in_words() -> None:
    described = job(flink="flink:8081", id="job-1", endpoint="jobs:8099", pool="localhost:50000").where
    assert described == (
        "job job-1, runner FlinkRunner, Flink at http://flink:8081, job server jobs:8099,"
        " worker pool localhost:50000"
    )

"""Metrics of a run pushed to a Pushgateway, and metrics in Beam."""

from __future__ import annotations

import base64
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from batch.jobs import metrics
from batch.monitoring.stats import Stats
from tests.support.metrics import make_run, parse_samples


class Gateway(HTTPServer):
    """Pushgateway that records what is pushed and answers with a fixed status code."""

    def __init__(self, code: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.code = code
        self.got: list[tuple[str, str, str]] = []
        self.authorization: str | None = None


class _Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.got.append((self.command, self.path, body))
        self.server.authorization = self.headers["Authorization"]
        self.send_response(self.server.code)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(params=[200, 503])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    with Gateway(request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.server
def test_push_replaces_the_previous_one_and_logs_a_warning_on_failure(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{gateway.server_port}"
    with caplog.at_level(logging.WARNING):
        metrics.push(url, metrics.build_registry(make_run({"apple": 5})))
    ((command, path, body),) = gateway.got
    assert (command, path) == ("PUT", "/metrics/job/hubhead_score")
    assert parse_samples(body)[("photos",)] == 12
    assert [record.getMessage() for record in caplog.records if url in record.getMessage()] == [
        record.getMessage() for record in caplog.records
    ]
    assert bool(caplog.records) == (gateway.code != 200)


@pytest.mark.server
def test_gateway_on_this_machine_is_reached_without_a_proxy(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    metrics.push(f"localhost:{gateway.server_port}", metrics.build_registry(make_run({"apple": 5})))
    assert len(gateway.got) == 1


def test_push_to_an_unreachable_gateway_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        metrics.push("http://127.0.0.1:9", metrics.build_registry(make_run({"apple": 5})))
        metrics.push("no address", metrics.build_registry(make_run({"apple": 5})))
    assert len(caplog.records) == 2


@pytest.mark.server
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_password_of_the_gateway_is_sent_and_never_logged(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    registry = metrics.build_registry(make_run({"apple": 5}))
    with caplog.at_level(logging.WARNING):
        metrics.push(f"{scheme}user:s%40cret@127.0.0.1:{gateway.server_port}", registry)
        metrics.push(f"{scheme}user:s%40cret@127.0.0.1:9", registry)
        metrics.push(f"{scheme}user:s%40cret@host:port", registry)
    assert gateway.authorization == f"Basic {base64.b64encode(b'user:s@cret').decode()}"
    assert len(caplog.records) == (2 if gateway.code == 200 else 3)
    assert "cret" not in caplog.text


@pytest.mark.beam
def test_beam_metrics_cover_every_stage() -> None:
    import apache_beam as beam

    from batch.beam import runner

    stages = ("start", "store", "read", "convert", "embed", "classify", "rows", "sketch", "write")
    stats = Stats(
        photos=10,
        rows=20,
        embedded=7,
        reused=2,
        read_bytes=5000,
        statuses=Counter({"ok": 9, "corrupt": 1}),
        seconds={stage: 0.5 + number for number, stage in enumerate(stages)},
        elapsed=12.0,
    )
    pipeline = beam.Pipeline(runner="FnApiRunner")
    _ = pipeline | beam.Create([0, 1]) | beam.Map(lambda _: runner._record_metrics(stats))
    result = pipeline.run()
    result.wait_until_finish()
    recorded = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("hubhead"))
    counts = {found.key.metric.name: found.committed for found in recorded["counters"]}
    assert counts == {
        "shards": 2,
        "photos": 20,
        "rows": 40,
        "bytes_read": 10_000,
        "photos_embedded": 14,
        "embeddings_reused": 4,
        "rejected_corrupt": 2,
    }
    distributions = {found.key.metric.name: found.committed for found in recorded["distributions"]}
    names = {"shard_photos", "shard_milliseconds", *(f"{stage}_milliseconds" for stage in stages)}
    assert distributions.keys() == names
    write = distributions["write_milliseconds"]
    assert (write.count, write.sum) == (2, 17_000)

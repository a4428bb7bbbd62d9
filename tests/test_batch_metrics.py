"""A run's figures as Prometheus reads them."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from batch.jobs import metrics
from batch.monitoring.drift import Counts, Moments
from batch.monitoring.stats import Stats
from batch.output.run_diff import between
from batch.output.run_record import Summary, describe
from serving.errors import InputError, OutputError


def run_of(labels: dict[str, int]) -> dict[str, Any]:
    count = sum(labels.values())
    random = np.random.default_rng(0)
    stats = Stats(
        photos=count + 7,
        rows=count + 7,
        statuses=Counter({"ok": count + 2, "corrupt": 5}),
        models={"food/3": Counts(Counter(labels), 2, [count + 2] + [0] * 19)},
        embeddings=Moments.of(random.normal(size=(count, 16))),
        elapsed=2.0,
    )
    summary = Summary("out", stats, stats, stats, 0, 1, 12.5, run_id="b", lines=count + 7)
    model = {"name": "food", "version": 3, "digest": "d", "fingerprint": "f"}
    return describe(summary, started=datetime.now(UTC), models=[model], settings={})


def values(text: str) -> dict[tuple[str, ...], float]:
    """Each sample by its name and what labels it has beside model and version, which are looked at here."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            labels = dict(sample.labels)
            assert (labels.pop("model"), labels.pop("version")) == ("food", "3")
            found[(sample.name.removeprefix("hubhead_score_"), *labels.values())] = sample.value
    return found


def test_the_textfile_has_what_the_docs_name(tmp_path: Path) -> None:
    run = run_of({"apple": 60, "bread": 33})
    found = between(run, {**run_of({"apple": 30, "bread": 63}), "run_id": "a"})
    metrics.write_textfile(str(tmp_path / "deep" / "score.prom"), metrics.registry(run, found))
    (path,) = (tmp_path / "deep").iterdir()
    told = values(path.read_text())
    assert told[("photos",)] == told[("worked_photos",)] == 100
    assert told[("rejected_photos", "corrupt")] == 5
    assert told[("rejected_photos", "unreadable")] == 0
    assert told[("rows",)] == 95
    assert told[("unlabelled_rows",)] == 2
    assert told[("photos_per_second",)] == 50
    assert told[("duration_seconds",)] == 12.5
    assert told[("change", "labels")] > 0.25
    assert told[("change", "scores")] == 0
    assert told[("embedding_shift",)] == 0
    assert time.time() - told[("success_timestamp_seconds",)] < 60
    documented = {
        line.split("|")[1].strip() for line in (metrics.__doc__ or "").splitlines() if "| hubhead_" in line
    }
    assert documented == {f"hubhead_score_{name[0]}" for name in told}


def test_a_first_run_and_one_with_nothing_to_do_have_fewer() -> None:
    from prometheus_client import generate_latest

    told = values(generate_latest(metrics.registry(run_of({}) | {"this_run": NOTHING})).decode())
    assert ("photos_per_second",) not in told
    assert ("embedding_shift",) not in told
    assert told[("worked_photos",)] == 0


NOTHING = {"photos": 0, "photos_per_second": None}


class Gateway(HTTPServer):
    """Keeps what is pushed, and answers with a code."""

    def __init__(self, code: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.code = code
        self.got: list[tuple[str, str, str]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.got.append((self.command, self.path, body))
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


def test_a_push_replaces_the_last_and_its_failure_is_a_warning(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{gateway.server_port}"
    with caplog.at_level(logging.WARNING):
        metrics.push(url, metrics.registry(run_of({"apple": 5})))
    ((command, path, body),) = gateway.got
    assert (command, path) == ("PUT", "/metrics/job/hubhead_score")
    assert values(body)[("photos",)] == 12
    assert [record.getMessage() for record in caplog.records if url in record.getMessage()] == [
        record.getMessage() for record in caplog.records
    ]
    assert bool(caplog.records) == (gateway.code != 200)


def test_nobody_there_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        metrics.push("http://127.0.0.1:9", metrics.registry(run_of({"apple": 5})))
        metrics.push("no address", metrics.registry(run_of({"apple": 5})))
    assert len(caplog.records) == 2


def test_a_place_that_cannot_be_written_and_a_missing_extra_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        metrics.write_textfile(str(tmp_path / "file" / "x.prom"), metrics.registry(run_of({})))
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InputError, match=r"hubhead\[metrics\]"):
        metrics.check()


@pytest.mark.beam
def test_beam_is_told_of_every_stage() -> None:
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
    _ = pipeline | beam.Create([0, 1]) | beam.Map(lambda _: runner._record(stats))
    result = pipeline.run()
    result.wait_until_finish()
    told = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("hubhead"))
    counts = {found.key.metric.name: found.committed for found in told["counters"]}
    assert counts == {
        "shards": 2,
        "photos": 20,
        "rows": 40,
        "bytes_read": 10_000,
        "photos_embedded": 14,
        "embeddings_reused": 4,
        "rejected_corrupt": 2,
    }
    spread = {found.key.metric.name: found.committed for found in told["distributions"]}
    assert spread.keys() == {"shard_photos", "shard_milliseconds", *(f"{s}_milliseconds" for s in stages)}
    assert (spread["write_milliseconds"].count, spread["write_milliseconds"].sum) == (2, 17_000)

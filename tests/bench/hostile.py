"""Latency of a good caller beside hostile ones: `python -m tests.bench.hostile`.

The good caller sends one photo after another on a connection of its own, alone and then beside each kind of
hostile callers, by the protocol that these use. The goal is a p99 of less than ten times its usual.

many rows         requests of 16,000 empty photos, over gRPC in some 40 bytes, without a deadline
cancelled         such requests, cancelled at once
garbage           bytes that are not a message
many fields       messages of more than a million empty fields
large             photos of 64 MiB
REST half-sent    bodies that stop half-way
REST many rows    the many rows, as JSON
REST garbage      bytes that are not JSON
REST many values  bodies of four million empty lists
REST large        photos of 64 MiB, as JSON
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np

from serving import protos
from tests.bench import results
from tests.bench.callers import MODEL, quantile, serialize_requests
from tests.bench.hostile_callers import KINDS, OPTIONS, REST_PATH
from tests.bench.processes import read_line, resident_mib, start_process
from tests.bench.server import PEERS
from tests.support.processes import READY

CALL_SECONDS = 30.0
"""Time limit of a good call."""

_TITLE = "Calls of the good caller, one after another"

Measure = Callable[[float], list[float]]
"""Sends good calls for a number of seconds; returns the sorted seconds of each, infinite if it failed."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15, help="duration of each part (default 15)")
    parser.add_argument(
        "--kind", action="append", choices=KINDS, help="kind of hostile callers (default all)"
    )
    results.add_output_option(parser)
    options = parser.parse_args()
    from trainer.dataset.download import cache_directory
    from trainer.dataset.samples import fetch_sample_photos

    paths = sorted(fetch_sample_photos(cache_directory()).directory.glob("*/*"))[:64]
    photos = [path.read_bytes() for path in paths]
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-hostile-") as top:
        base = Path(top) / MODEL
        with start_process("-m", PEERS, "bundle", str(base)) as writer:
            read_line(writer)
            writer.wait()
        flags = ("--model_base_path", str(base), "--port", "0", "--rest_api_port", "-1")
        with start_process("-m", "serving", "serve", *flags) as server:
            found = READY.search(read_line(server))
            assert found
            measure_kinds(
                options.kind or list(KINDS), found[1], found[2], photos, options.seconds, server.pid
            )
    results.write(options.output, "hostile")


def measure_kinds(
    kinds: list[str], port: str, rest_port: str, photos: list[bytes], seconds: float, pid: int
) -> None:
    """Measure the good caller alone, by both protocols, and then beside each kind; print the results."""
    measures = (make_grpc_measure(int(port), photos), make_rest_measure(int(rest_port), photos))
    usual: list[float] = []
    for name, measure in zip(("gRPC", "REST"), measures, strict=True):
        measure(2)
        alone = measure(seconds)
        usual.append(quantile(alone, 0.99))
        print(f"{name + ' alone':16} p99 {1000 * usual[-1]:6.0f} ms, {len(alone)} calls", flush=True)
        results.add_row(
            _TITLE, {"beside": f"nobody, {name}", "p99 ms": 1000 * usual[-1], "calls": len(alone)}
        )
    for name in kinds:
        rest = KINDS[name].rest
        with start_process("-m", "tests.bench.hostile_callers", name, port, rest_port) as callers:
            read_line(callers)
            time.sleep(2)
            beside = measures[rest](seconds)
        p99, failed = quantile(beside, 0.99), int(np.isinf(beside).sum())
        print(
            f"{name:16} p99 {1000 * p99:6.0f} ms, {p99 / usual[rest]:.1f} times the usual, "
            f"{len(beside)} calls, {failed} failed; server {resident_mib(pid):.0f} MiB",
            flush=True,
        )
        figures = {"p99 ms": 1000 * p99, "calls": len(beside), "times the usual": p99 / usual[rest]}
        results.add_row(
            _TITLE, {"beside": name} | figures | {"failed": failed, "server MiB": resident_mib(pid)}
        )


def make_grpc_measure(port: int, photos: list[bytes]) -> Measure:
    """Return the good caller over gRPC."""
    requests = serialize_requests(photos)

    def measure(seconds: float) -> list[float]:
        with grpc.insecure_channel(f"localhost:{port}", OPTIONS) as channel:
            call = channel.unary_unary(protos.PREDICT)

            def predict(number: int) -> bool:
                try:
                    call(requests[number % len(requests)], timeout=CALL_SECONDS)
                except grpc.RpcError:
                    return False
                return True

            return measure_calls(predict, seconds)

    return measure


def make_rest_measure(port: int, photos: list[bytes]) -> Measure:
    """Return the good caller over REST."""
    bodies = [
        json.dumps({"instances": [{"b64": base64.b64encode(photo).decode()}]}).encode() for photo in photos
    ]

    def measure(seconds: float) -> list[float]:
        connection = http.client.HTTPConnection("localhost", port, timeout=CALL_SECONDS)

        def predict(number: int) -> bool:
            try:
                connection.request("POST", REST_PATH, bodies[number % len(bodies)])
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                return False
            return response.status == 200

        return measure_calls(predict, seconds)

    return measure


def measure_calls(predict: Callable[[int], bool], seconds: float) -> list[float]:
    """Make one call after another; return the sorted seconds of each, infinite if it returned False."""
    found: list[float] = []
    until = time.perf_counter() + seconds
    while (start := time.perf_counter()) < until:
        answered = predict(len(found))
        found.append(time.perf_counter() - start if answered else float("inf"))
    return sorted(found)


if __name__ == "__main__":
    main()

"""Callers of model servers that use little processor time: their requests are serialized beforehand.

Each is a function from a number to the body of the response; threads can share it.
"""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from serving import contract, protos
from serving.protos import tensors

MODEL = "bench"
"""Name of the model on the servers of hubhead."""

Call = Callable[[int], bytes]
"""Sends the request of a number, modulo the number of requests; returns the body of the response."""


def serialize_requests(photos: Sequence[bytes]) -> list[bytes]:
    """Serialize a PredictRequest per photo."""
    found = []
    for photo in photos:
        request = protos.PredictRequest(model_spec={"name": MODEL})
        request.inputs[contract.IMAGE_BYTES].CopyFrom(tensors.encode([photo]))
        found.append(request.SerializeToString())
    return found


def make_grpc_caller(port: int, method: str, requests: Sequence[bytes]) -> Call:
    """Return the caller of a gRPC method."""
    call = grpc.insecure_channel(f"localhost:{port}").unary_unary(method)
    return lambda number: bytes(call(requests[number % len(requests)], timeout=60))


def make_http_caller(port: int, path: str, bodies: Sequence[bytes]) -> Call:
    """Return a caller that POSTs JSON or anything else, with one connection per thread.

    The caller raises RuntimeError for a status other than 200, and OSError if the server cannot be reached.
    """
    local = threading.local()

    def call(number: int) -> bytes:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("localhost", port, timeout=60)
        try:
            local.connection.request(
                "POST", path, bodies[number % len(bodies)], {"Content-Type": "application/json"}
            )
            response = local.connection.getresponse()
            body = response.read()
        except OSError:
            local.connection.close()  # the next call connects again
            raise
        if response.status != 200:
            raise RuntimeError(f"{path} returned {response.status}: {body[:200]!r}")
        return bytes(body)

    return call


def measure_calls(call: Call, count: int, callers: int) -> tuple[float, list[float]]:
    """Make calls from threads, each the next one as soon as its last one is answered.

    Returns:
        Seconds from the first request to the last response, and the sorted seconds of each call.
    """
    latencies: list[float] = []
    numbers = itertools.count()

    def work(_: int) -> None:
        while (number := next(numbers)) < count:
            start = time.perf_counter()
            call(number)
            latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(work, range(callers)))
    return time.perf_counter() - start, sorted(latencies)


def quantile(values: Sequence[float], fraction: float) -> float:
    """Return a quantile of sorted values; NaN without values."""
    return values[min(len(values) - 1, int(fraction * len(values)))] if values else float("nan")

"""Latency of a good caller beside hostile ones: `python -m tests.bench.hostile`.

The good caller sends one photo after another on a connection of its own, first alone and then beside each
kind of hostile caller. The goal is a p99 of less than ten times its usual.

many rows    requests of 16,000 empty photos in some 40 bytes, without a deadline
cancelled    such requests, cancelled at once
garbage      bytes that are not a message, and messages of very many fields
large        requests of 64 MiB
half-sent    REST bodies that stop half-way
"""

from __future__ import annotations

import argparse
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np

from serving import contract, protos
from serving.protos import tensors
from tests.bench.server import (
    MODEL,
    PEERS,
    quantile,
    read_line,
    resident_mib,
    serialize_requests,
    start_process,
)
from tests.support.processes import READY

CALLERS = 4
"""Hostile callers, each with a connection of its own."""

OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))

Call = Callable[[int, threading.Event], None]
"""Sends hostile requests until the event is set; its argument is the gRPC port or the REST port."""


def make_tensor_request(tensor: protos.Message) -> bytes:
    """Return a serialized PredictRequest of the model."""
    request = protos.PredictRequest(model_spec={"name": MODEL})
    request.inputs[contract.IMAGE_BYTES].CopyFrom(tensor)
    return bytes(request.SerializeToString())


MANY_ROWS = protos.TensorProto(dtype=tensors.DT_STRING, tensor_shape={"dim": [{"size": 16_000}]})
LARGE = protos.TensorProto(
    dtype=tensors.DT_STRING, string_val=[bytes(64 << 20)], tensor_shape={"dim": [{"size": 1}]}
)


def send_repeatedly(*bodies: bytes, cancel: bool = False) -> Call:
    """Return a hostile caller of Predict."""

    def send(port: int, stop: threading.Event) -> None:
        with grpc.insecure_channel(f"localhost:{port}", OPTIONS) as channel:
            call = channel.unary_unary(protos.PREDICT)
            number = 0
            while not stop.is_set():
                future = call.future(bodies[number % len(bodies)])
                number += 1
                if cancel:
                    time.sleep(0.005)
                    future.cancel()
                    continue
                while not future.done() and not stop.wait(0.01):
                    pass

    return send


def send_half(port: int, stop: threading.Event) -> None:
    """Open REST requests whose bodies stop half-way."""
    head = f"POST /v1/models/{MODEL}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{"
    opened: list[socket.socket] = []
    while not stop.wait(0.01):
        if len(opened) < 300:
            opened.append(socket.create_connection(("localhost", port)))
            opened[-1].sendall(head.encode())
    for connection in opened:
        connection.close()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15, help="duration of each part (default 15)")
    seconds = parser.parse_args().seconds
    from trainer.dataset.download import cache_directory
    from trainer.dataset.samples import fetch_sample_photos

    paths = sorted(fetch_sample_photos(cache_directory()).directory.glob("*/*"))[:64]
    hostile: dict[str, tuple[Call, bool]] = {
        "many rows": (send_repeatedly(make_tensor_request(MANY_ROWS)), False),
        "cancelled": (send_repeatedly(make_tensor_request(MANY_ROWS), cancel=True), False),
        "garbage": (send_repeatedly(b"\xff" * 100, b"\x12\x00" * 1_100_000), False),
        "large": (send_repeatedly(make_tensor_request(LARGE)), False),
        "half-sent": (send_half, True),
    }
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-hostile-") as top:
        base = Path(top) / MODEL
        with start_process("-m", PEERS, "bundle", str(base)) as writer:
            read_line(writer)
            writer.wait()
        flags = ("--model_base_path", str(base), "--port", "0", "--rest_api_port", "-1")
        with start_process("-m", "serving", "serve", *flags) as server:
            found = READY.search(read_line(server))
            assert found
            port, rest_port = int(found[1]), int(found[2])
            requests = serialize_requests([path.read_bytes() for path in paths])
            measure_good(port, requests, 2)
            usual = measure_good(port, requests, seconds)
            print(f"{'alone':10} p99 {1000 * quantile(usual, 0.99):6.0f} ms, {len(usual)} calls", flush=True)
            for name, (send, rest) in hostile.items():
                stop = threading.Event()
                target = rest_port if rest else port
                threads = [threading.Thread(target=send, args=(target, stop)) for _ in range(CALLERS)]
                for thread in threads:
                    thread.start()
                time.sleep(1)
                beside = measure_good(port, requests, seconds)
                stop.set()
                for thread in threads:
                    thread.join()
                ratio = quantile(beside, 0.99) / quantile(usual, 0.99)
                failed = int(np.isinf(beside).sum())
                print(
                    f"{name:10} p99 {1000 * quantile(beside, 0.99):6.0f} ms, {ratio:.1f} times the usual, "
                    f"{len(beside)} calls, {failed} failed; server {resident_mib(server.pid):.0f} MiB",
                    flush=True,
                )


def measure_good(port: int, requests: list[bytes], seconds: float) -> list[float]:
    """Send one photo after another; return the sorted seconds of each call, infinite if it failed."""
    found: list[float] = []
    with grpc.insecure_channel(f"localhost:{port}", OPTIONS) as channel:
        call = channel.unary_unary(protos.PREDICT)
        until = time.perf_counter() + seconds
        while (start := time.perf_counter()) < until:
            try:
                call(requests[len(found) % len(requests)], timeout=30)
            except grpc.RpcError:
                found.append(float("inf"))
            else:
                found.append(time.perf_counter() - start)
    return sorted(found)


if __name__ == "__main__":
    main()

"""Process of hostile callers that tests.bench.hostile measures beside: `... KIND GRPC_PORT REST_PORT`.

The callers have a process of their own, or they would hold the interpreter lock of the good caller.
"""

from __future__ import annotations

import base64
import http.client
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc

from serving import contract, protos
from serving.protos import tensors
from tests.bench.callers import MODEL

CALLERS = 4
"""Number of hostile callers, each with a connection of its own."""

OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))

REST_PATH = f"/v1/models/{MODEL}:predict"

LARGE_BYTES = 64 << 20
"""Size of a large photo."""


@dataclass(frozen=True)
class Kind:
    """A kind of hostile requests.

    Attributes:
        rest: whether they are sent over REST.
        send: function that sends to a port until the process ends.
    """

    rest: bool
    send: Callable[[int], None]


def _serialize(**tensor: Any) -> bytes:
    """Return a serialized PredictRequest of the model with a string tensor."""
    request = protos.PredictRequest(model_spec={"name": MODEL})
    request.inputs[contract.IMAGE_BYTES].CopyFrom(protos.TensorProto(dtype=tensors.DT_STRING, **tensor))
    return bytes(request.SerializeToString())


def _many_rows() -> bytes:
    return _serialize(tensor_shape={"dim": [{"size": 16_000}]})


def _send_grpc(make_bodies: Callable[[], list[bytes]], cancel_after: float | None = None) -> Kind:
    """Return callers of Predict that send one body after another.

    Args:
        make_bodies: function that returns the bodies.
        cancel_after: seconds after which each call is cancelled; None: wait for the response.
    """

    def send(port: int) -> None:
        bodies = make_bodies()
        with grpc.insecure_channel(f"localhost:{port}", OPTIONS) as channel:
            call, number = channel.unary_unary(protos.PREDICT), 0
            while True:
                number += 1
                with suppress(grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError):
                    future = call.future(bodies[number % len(bodies)])
                    try:
                        future.result(cancel_after)
                    finally:
                        future.cancel()

    return Kind(False, send)


def _send_rest(make_bodies: Callable[[], list[bytes]]) -> Kind:
    """Return callers of the REST API that send one body after another."""

    def send(port: int) -> None:
        bodies, number = make_bodies(), 0
        connection = http.client.HTTPConnection("localhost", port)
        while True:
            number += 1
            try:
                connection.request("POST", REST_PATH, bodies[number % len(bodies)])
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()  # the next request opens it again

    return Kind(True, send)


def _send_half(port: int) -> None:
    """Open REST requests whose bodies stop half-way."""
    head = f"POST {REST_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{"
    opened: list[socket.socket] = []
    while True:
        time.sleep(0.01)
        if len(opened) < 300:
            opened.append(socket.create_connection(("localhost", port)))
            opened[-1].sendall(head.encode())


KINDS: Mapping[str, Kind] = {
    "many rows": _send_grpc(lambda: [_many_rows()]),
    "cancelled": _send_grpc(lambda: [_many_rows()], cancel_after=0.005),
    "garbage": _send_grpc(lambda: [b"\xff" * 100]),
    "many fields": _send_grpc(lambda: [b"\x12\x00" * 1_100_000]),
    "large": _send_grpc(
        lambda: [_serialize(tensor_shape={"dim": [{"size": 1}]}, string_val=[bytes(LARGE_BYTES)])]
    ),
    "REST half-sent": Kind(True, _send_half),
    "REST many rows": _send_rest(lambda: [b'{"instances": [' + b", ".join([b'""'] * 16_000) + b"]}"]),
    "REST garbage": _send_rest(lambda: [b"\xff" * 100, b"{" * 100]),
    "REST many values": _send_rest(lambda: [b'{"instances": [' + b"[]," * 4_000_000 + b"0]}"]),
    "REST large": _send_rest(
        lambda: [b'{"instances": [{"b64": "' + base64.b64encode(bytes(LARGE_BYTES)) + b'"}]}']
    ),
}


def main() -> None:
    """Send requests of a kind until the process ends."""
    kind, ports = KINDS[sys.argv[1]], sys.argv[2:]
    for _ in range(CALLERS):
        threading.Thread(target=kind.send, args=(int(ports[kind.rest]),), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

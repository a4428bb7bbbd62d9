"""A gRPC server without a model, whose responses a test defines."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from serving import protos
from serving.protos import tensors

Answer = Callable[[Any, grpc.ServicerContext], Any]


@contextmanager
def fake_grpc_server(
    answers: Mapping[str, Answer],
    port: int = 0,
    *,
    options: Sequence[tuple[str, Any]] = (("grpc.max_receive_message_length", -1),),
    threads: int = 4,
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[str]:
    """Run a gRPC server and yield its address.

    Args:
        answers: function that answers each method, by its path.
        port: port to listen on; 0 picks a free one.
        options: gRPC server options.
        threads: number of requests that are answered at a time.
        credentials: TLS credentials; None for plain text.
    """
    requests = {
        protos.PREDICT: protos.PredictRequest,
        protos.GET_MODEL_METADATA: protos.GetModelMetadataRequest,
        protos.GET_MODEL_STATUS: protos.GetModelStatusRequest,
    }
    with futures.ThreadPoolExecutor(threads) as pool:
        server = grpc.server(pool, options=options)
        for path, answer in answers.items():
            _, service, method = path.split("/")
            handler = grpc.unary_unary_rpc_method_handler(
                answer, requests[path].FromString, lambda response: response.SerializeToString()
            )
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, {method: handler}),)
            )
        if credentials is None:
            bound = server.add_insecure_port(f"localhost:{port}")
        else:
            bound = server.add_secure_port(f"localhost:{port}", credentials)
        server.start()
        try:
            yield f"localhost:{bound}"
        finally:
            server.stop(None).wait(10)


def free_port() -> int:
    """Return a TCP port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def answer_for(images: list[bytes]) -> protos.Message:
    """Return the response of a model with two labels.

    It rejects photos that begin with "bad" as corrupt, and abstains on those that begin with "odd".
    """
    response = protos.PredictResponse()
    rows = [(b"corrupt" if image.startswith(b"bad") else b"ok") for image in images]
    labels = [b"" if image[:3] in (b"bad", b"odd") else b"apple" for image in images]
    classes = np.array([[b"apple", b"pear"]] * len(images), dtype=object)
    scores = np.array([[0.75, 0.25]] * len(images), np.float32)
    for name, values in (("label", labels), ("classes", classes), ("scores", scores), ("status", rows)):
        response.outputs[name].CopyFrom(tensors.encode(values, typed_fields=name == "scores"))
    return response

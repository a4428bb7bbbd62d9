"""gRPC calls from an event loop to threads and back: how many may be there, and what they answer.

The loop only moves bytes: messages are parsed, answered and serialized on a thread. A caller that sends
slowly, or stops half-way, therefore costs no thread, and what finds no room is refused before it is read.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving import protos
from serving.server.metrics import Metrics
from serving.server.status_error import Refusal, queue_full

MAX_BYTES = 1 << 29
"""Requests that are held at once; a larger one is taken where it is the only one."""

_SERVICE_THREADS = 8
"""For calls that run no model, so that those are answered however many wait for one."""

_ENDLESS_SECONDS = 1e8
"""gRPC gives a caller without a deadline centuries."""

_COUNTED = ("Predict", "Classify", "Regress")
"""TensorFlow Serving counts no other over gRPC."""

_INFERENCE = (*_COUNTED, "MultiInference")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """Who waits for an answer.

    Attributes:
        deadline: of time.monotonic; None: none.
        gone: set once nobody waits any longer.
    """

    deadline: float | None
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def seconds(self) -> float | None:
        """How long the caller still waits; None: for ever."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)


Answer = Callable[[protos.Message, Caller], protos.Message]
"""From a request to its response, or a Refusal."""


class Calls:
    """The threads on which calls are answered; for one event loop."""

    def __init__(self, threads: int, metrics: Metrics, *, max_bytes: int = MAX_BYTES) -> None:
        """Without a thread yet.

        Args:
            threads: calls of models at once; beyond them callers get UNAVAILABLE.
            metrics: where to count.
            max_bytes: of requests held at once.
        """
        self._limit, self._max_bytes, self._metrics = threads, max_bytes, metrics
        self._models = ThreadPoolExecutor(threads, thread_name_prefix="hubhead-grpc")
        self._others = ThreadPoolExecutor(_SERVICE_THREADS, thread_name_prefix="hubhead-grpc-service")
        self._lock = threading.Lock()
        self._held = self._bytes = 0

    def close(self) -> None:
        """Take no more."""
        self._models.shutdown(wait=False, cancel_futures=True)
        self._others.shutdown(wait=False, cancel_futures=True)

    def handler(
        self, api: str, answer: Answer, request_class: protos.Message
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """What to register for a method.

        Args:
            api: the method's name, such as "Predict".
            answer: answers a parsed request, on a thread.
            request_class: of its request.
        """

        async def handle(_: Any, context: Any) -> bytes:
            start, left = time.monotonic(), context.time_remaining()
            caller = Caller(None if left is None or left > _ENDLESS_SECONDS else start + left)
            body = await context.read()
            if not isinstance(body, bytes):  # the stream ended
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Exactly one request message is expected.")
            try:
                return await asyncio.wrap_future(self._submit(api, answer, request_class, body, caller))
            except Refusal as refusal:
                await context.abort(refusal.code, refusal.details)
                raise
            except asyncio.CancelledError:
                caller.gone.set()
                raise

        # As a stream: of a unary call whose message never comes grpc.aio forgets to tell the caller.
        return grpc.stream_unary_rpc_method_handler(handle)

    def _submit(
        self, api: str, answer: Answer, request_class: protos.Message, body: bytes, caller: Caller
    ) -> Future[bytes]:
        pool = self._models if api in _INFERENCE else self._others
        weight = 1 if api in _INFERENCE else 0
        with self._lock:
            no_room = self._held + weight > self._limit or (
                self._bytes and self._bytes + len(body) > self._max_bytes
            )
            if not no_room:
                self._held += weight
                self._bytes += len(body)
        if no_room:
            if api in _COUNTED:
                self._metrics.request("", api, "GRPC", grpc.StatusCode.UNAVAILABLE.name, 0.0)
            raise queue_full(self._held, self._limit)
        work = pool.submit(self._answered, api, answer, request_class, body, caller)

        def leave(_: Future[bytes]) -> None:
            with self._lock:
                self._held -= weight
                self._bytes -= len(body)

        work.add_done_callback(leave)
        return work

    def _answered(
        self, api: str, answer: Answer, request_class: protos.Message, body: bytes, caller: Caller
    ) -> bytes:
        start, status, model = time.perf_counter(), grpc.StatusCode.OK, ""
        try:
            request = request_class.FromString(body)
            if api in _COUNTED:
                model = request.model_spec.name
            return bytes(answer(request, caller).SerializeToString())
        except DecodeError as error:
            status = grpc.StatusCode.INTERNAL  # as gRPC's own servers answer what they cannot parse
            raise Refusal(status, f"The request is no {request_class.DESCRIPTOR.full_name}.") from error
        except Refusal as refusal:
            status = refusal.code
            raise
        except Exception as error:  # a fault of ours is this caller's INTERNAL, and in the log
            status = grpc.StatusCode.INTERNAL
            _log.exception("%s of model %s failed", api, model or "?")
            raise Refusal(status, f"{type(error).__name__}: {error}") from error
        finally:
            if api in _COUNTED:
                self._metrics.request(model, api, "GRPC", status.name, time.perf_counter() - start)

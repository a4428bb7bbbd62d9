"""Dispatch of gRPC calls from the event loop to threads: admission, parsing, error statuses.

The event loop only moves bytes; messages are parsed, answered and serialized on a thread. A client that sends
slowly, or stops half-way, therefore occupies no thread, and a call beyond the limits is rejected before its
message is parsed.
"""

from __future__ import annotations

import asyncio
import functools
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
from serving.server.status_error import StatusError, queue_full

MAX_BYTES = 1 << 29
"""Maximum bytes of requests held at once; a larger request is accepted while no other is held."""

_SERVICE_THREADS = 8
"""Threads for RPCs that run no model, so that status and reload work while inference is overloaded."""

_ENDLESS_SECONDS = 1e8
"""Time from which a deadline counts as none; gRPC reports centuries for calls without a deadline."""

_COUNTED = ("Predict", "Classify", "Regress")
"""RPCs that appear in the metrics; TensorFlow Serving counts no others over gRPC."""

_INFERENCE = (*_COUNTED, "MultiInference")
"""RPCs that run a model."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CallContext:
    """Deadline and cancellation of one call.

    Attributes:
        deadline: time.monotonic() at which the caller stops waiting; None: no deadline.
        cancelled: event that is set when the caller cancels or disconnects.
    """

    deadline: float | None
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline; None: no deadline."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)


Handler = Callable[[protos.Message, CallContext], protos.Message]
"""Answers a request with a response, or raises a StatusError."""


class Dispatcher:
    """Thread pools that answer the calls of one event loop, and their admission limits."""

    def __init__(self, threads: int, metrics: Metrics) -> None:
        """Create a dispatcher without starting threads.

        Args:
            threads: maximum number of inference calls in flight; calls beyond it get UNAVAILABLE.
            metrics: registry that counts requests.
        """
        self._limit, self._metrics = threads, metrics
        self._inference_pool = ThreadPoolExecutor(threads, thread_name_prefix="hubhead-grpc")
        self._service_pool = ThreadPoolExecutor(_SERVICE_THREADS, thread_name_prefix="hubhead-grpc-service")
        self._lock = threading.Lock()
        self._in_flight = self._held_bytes = 0

    def close(self) -> None:
        """Reject new calls, and drop those that have not started."""
        self._inference_pool.shutdown(wait=False, cancel_futures=True)
        self._service_pool.shutdown(wait=False, cancel_futures=True)

    def make_rpc_handler(
        self, api: str, handler: Handler, request_class: protos.Message
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return the handler to register for an RPC.

        Args:
            api: name of the RPC, such as "Predict".
            handler: function that answers a parsed request; it runs on a thread.
            request_class: message class of the request.
        """

        async def handle(_: Any, grpc_context: Any) -> bytes:
            start, left = time.monotonic(), grpc_context.time_remaining()
            context = CallContext(None if left is None or left > _ENDLESS_SECONDS else start + left)
            body = await grpc_context.read()
            if not isinstance(body, bytes):  # the stream ended
                await grpc_context.abort(
                    grpc.StatusCode.UNIMPLEMENTED, "Exactly one request message is expected."
                )
            answer = functools.partial(self._answer, api, handler, request_class, body, context)
            try:
                return await asyncio.wrap_future(self._submit(api, len(body), answer))
            except StatusError as error:
                await grpc_context.abort(error.code, error.details)
                raise
            except asyncio.CancelledError:
                context.cancelled.set()
                raise

        # Registered as a client stream, because grpc.aio never ends a unary call whose client closes the
        # stream without sending its message.
        return grpc.stream_unary_rpc_method_handler(handle)

    def _submit(self, api: str, size: int, answer: Callable[[], bytes]) -> Future[bytes]:
        """Hand a call to a thread; return the future of its serialized response.

        Raises:
            StatusError: too many inference calls are in flight, or too many bytes are held.
        """
        pool = self._inference_pool if api in _INFERENCE else self._service_pool
        weight = 1 if api in _INFERENCE else 0
        with self._lock:
            holds_too_much = self._held_bytes and self._held_bytes + size > MAX_BYTES
            is_full = self._in_flight + weight > self._limit or holds_too_much
            if not is_full:
                self._in_flight += weight
                self._held_bytes += size
        if is_full:
            if api in _COUNTED:
                self._metrics.count_request("", api, "GRPC", grpc.StatusCode.UNAVAILABLE.name, 0.0)
            raise queue_full(self._in_flight, self._limit)
        future = pool.submit(answer)

        def release(_: Future[bytes]) -> None:
            with self._lock:
                self._in_flight -= weight
                self._held_bytes -= size

        future.add_done_callback(release)
        return future

    def _answer(
        self, api: str, handler: Handler, request_class: protos.Message, body: bytes, context: CallContext
    ) -> bytes:
        """Parse a request, answer it, and return the serialized response; runs on a thread."""
        start, status, model = time.perf_counter(), grpc.StatusCode.OK, ""
        try:
            request = request_class.FromString(body)
            if api in _COUNTED:
                model = request.model_spec.name
            return bytes(handler(request, context).SerializeToString())
        except DecodeError as error:
            status = grpc.StatusCode.INTERNAL  # as gRPC's own servers do for a message that does not parse
            raise StatusError(
                status, f"The request is not a valid {request_class.DESCRIPTOR.full_name}."
            ) from error
        except StatusError as error:
            status = error.code
            raise
        except Exception as error:  # a bug here: INTERNAL for this caller, and a traceback in the log
            status = grpc.StatusCode.INTERNAL
            _log.exception("%s of model %s failed", api, model or "?")
            raise StatusError(status, f"{type(error).__name__}: {error}") from error
        finally:
            if api in _COUNTED:
                self._metrics.count_request(model, api, "GRPC", status.name, time.perf_counter() - start)

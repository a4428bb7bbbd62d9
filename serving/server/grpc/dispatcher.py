"""Dispatch of gRPC calls from the event loop to threads: admission, parsing, error statuses.

The event loop only moves bytes; messages are parsed, answered and serialized on a thread. A client that sends
slowly, or stops half-way, therefore occupies no thread, and a call beyond the limits is rejected before its
message is parsed. Each connection is a caller, and the callers share the limits.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving import protos
from serving.errors import InputError
from serving.protos import wire
from serving.server import memory
from serving.server.callers import Caller, FairLimit, Pacer, TurnLock
from serving.server.grpc import compression
from serving.server.grpc.arrivals import Arrivals
from serving.server.metrics import Metrics
from serving.server.status_error import (
    StatusError,
    cancelled,
    free_frames,
    invalid_argument,
    queue_full,
    queue_timeout,
    resource_exhausted,
)

MAX_BYTES = 1 << 29
"""Maximum bytes that the requests of one caller take at once, parsed and serialized."""

MAX_MESSAGE_BYTES = 1 << 27
"""Maximum size of a request; gRPC rejects a larger one when its first bytes arrive."""

MAX_OPEN_CALLS = 4096
"""Maximum number of calls whose message one caller has not sent yet."""

_LARGE_BYTES_PER_SECOND = 64 << 20
"""Rate of messages of at least memory.LARGE bytes. gRPC copies each on the event loop, with the
interpreter lock held: about 0.1 s for 64 MiB, so that the others have nine tenths of the time."""

_PAUSE_RATIO = 8.0
"""Time until the next large message is read, relative to the parsing of the last one, which copies it once.

Until a message reaches the model it is copied about four times, so half of the time is left for the others.
"""

_LIGHT_FIELDS = 2_000
"""Maximum fields of a message that is parsed beside others; some milliseconds of work."""

_LIGHT_BYTES = 1 << 16
"""Maximum content of a compressed message that is decompressed beside others."""

_TRIM_SECONDS = 0.5
"""Time from the end of a large call until its memory is returned to the operating system."""

_SERVICE_THREADS = 8
"""Threads for RPCs that run no model, so that status and reload work while inference is overloaded."""

_ENDLESS_SECONDS = 1e8
"""Time from which a deadline counts as none; gRPC reports centuries for calls without a deadline."""

_COUNTED = ("Predict", "Classify", "Regress")
"""RPCs that appear in the metrics; TensorFlow Serving counts no others over gRPC."""

_INFERENCE = (*_COUNTED, "MultiInference")
"""RPCs that run a model."""

_log = logging.getLogger(__name__)


@dataclass
class CallContext:
    """Deadline and sender of one call.

    Attributes:
        deadline: time.monotonic() at which the caller stops waiting; None: no deadline.
        caller: sender of the call, which leaves when it cancels or disconnects.
        nbytes: memory of its message, as far as known; a message of many fields takes much more when parsed.
    """

    deadline: float | None
    caller: Caller
    nbytes: int = 0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline; None: no deadline."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)


Handler = Callable[[protos.Message, CallContext], protos.Message]
"""Answers a request with a response, or raises a StatusError."""


class Dispatcher:
    """Thread pools that answer the calls of one event loop, and their admission limits.

    Attributes:
        open_calls: calls whose message has not arrived yet.
        in_flight: inference calls whose message has arrived.
        held_bytes: memory of the messages that have arrived, as `serving.protos.wire` estimates it.
    """

    def __init__(self, threads: int, metrics: Metrics, is_model: Callable[[str], bool]) -> None:
        """Create a dispatcher without starting threads.

        Args:
            threads: maximum number of inference calls in flight; calls beyond it get UNAVAILABLE.
            metrics: registry that counts requests.
            is_model: function that returns whether a model of that name is configured.
        """
        self._metrics, self._is_model = metrics, is_model
        self.open_calls = FairLimit(MAX_OPEN_CALLS)
        self.in_flight = FairLimit(threads)
        self.held_bytes = FairLimit(MAX_BYTES)
        self._pacer = Pacer(_LARGE_BYTES_PER_SECOND, memory.LARGE)
        self._arrivals = Arrivals(self._trim_later)
        self._heavy_turn = TurnLock()
        # Twice as many threads, since in_flight admits some calls beside a caller that has reached the limit.
        self._inference_pool = ThreadPoolExecutor(2 * threads, thread_name_prefix="hubhead-grpc")
        self._service_pool = ThreadPoolExecutor(_SERVICE_THREADS, thread_name_prefix="hubhead-grpc-service")

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
            deadline = None if left is None or left > _ENDLESS_SECONDS else start + left
            context = CallContext(deadline, Caller(grpc_context.peer()))
            try:
                await self._pacer.wait(context.caller.name)
                # The body is kept in a list, from which the thread takes it: no reference may outlive it.
                body = [await self._read(grpc_context, context.caller)]
                context.nbytes = size = len(body[0])
                self._pacer.record(context.caller.name, size)
                self._arrivals.record(context.caller.name, size)
                answer = functools.partial(self._answer, api, handler, request_class, body, context)
                return await asyncio.wrap_future(self._submit(api, context.caller, size, answer))
            except StatusError as error:
                await grpc_context.abort(error.code, error.details)
                raise
            except asyncio.CancelledError:
                context.caller.leave()
                raise
            finally:
                # Later, as the traceback of an error still refers to the request.
                if context.nbytes >= memory.LARGE:
                    self._trim_later()

        # Registered as a client stream, because grpc.aio never ends a unary call whose client closes the
        # stream without sending its message.
        return grpc.stream_unary_rpc_method_handler(handle)

    def _trim_later(self) -> None:
        asyncio.get_running_loop().call_later(_TRIM_SECONDS, self._trim_memory)

    def _trim_memory(self) -> None:
        with suppress(RuntimeError):  # the server has stopped meanwhile
            self._service_pool.submit(memory.trim)

    async def _read(self, grpc_context: Any, caller: Caller) -> bytes:
        """Wait for the message of a call.

        Raises:
            StatusError: it does not arrive in time, the caller has too many open calls, or messages take too
                much memory.
        """
        if not self.open_calls.take(caller.name, 1):
            raise resource_exhausted(f"More than {MAX_OPEN_CALLS} calls without a message are open.")
        try:
            async with self._arrivals.limit(caller.name):
                body = await grpc_context.read()
        finally:
            self.open_calls.give_back(caller.name, 1)
        if not isinstance(body, bytes):  # the stream ended
            raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "Exactly one request message is expected.")
        return body

    def _submit(self, api: str, caller: Caller, size: int, answer: Callable[[], bytes]) -> Future[bytes]:
        """Hand a call to a thread; return the future of its serialized response.

        Raises:
            StatusError: too many inference calls are in flight, or too many bytes are held.
        """
        weight = 1 if api in _INFERENCE else 0
        try:
            if not self.in_flight.take(caller.name, weight):
                raise queue_full(self.in_flight.total, self.in_flight.limit)
            if not self.held_bytes.take(caller.name, size):
                self.in_flight.give_back(caller.name, weight)
                raise _too_many_bytes()
        except StatusError as error:
            if api in _COUNTED:
                self._metrics.count_request("", api, "GRPC", error.code.name, 0.0)
            raise

        def release(_: Future[bytes]) -> None:
            self.in_flight.give_back(caller.name, weight)
            self.held_bytes.give_back(caller.name, size)

        future = (self._inference_pool if weight else self._service_pool).submit(_run, answer)
        future.add_done_callback(release)
        return future

    def _answer(
        self,
        api: str,
        handler: Handler,
        request_class: protos.Message,
        body: list[bytes],
        context: CallContext,
    ) -> bytes:
        """Parse a request, answer it, and return the serialized response; runs on a thread."""
        start, status, model = time.perf_counter(), grpc.StatusCode.OK, ""
        try:
            with self._parse(request_class, body, context) as request:
                if api in _COUNTED and self._is_model(request.model_spec.name):
                    model = request.model_spec.name  # callers can invent names, which are counted as ""
                return bytes(handler(request, context).SerializeToString())
        except StatusError as error:
            status = error.code
            raise
        except MemoryError as error:
            status = grpc.StatusCode.RESOURCE_EXHAUSTED
            raise resource_exhausted("The server has not enough memory for the request.") from error
        except Exception as error:  # a bug here: INTERNAL for this caller, and a traceback in the log
            status = grpc.StatusCode.INTERNAL
            _log.exception("%s of model %s failed", api, model or "?")
            raise StatusError(status, f"{type(error).__name__}: {error}") from error
        finally:
            if api in _COUNTED:
                self._metrics.count_request(model, api, "GRPC", status.name, time.perf_counter() - start)

    @contextmanager
    def _parse(
        self, request_class: protos.Message, body: list[bytes], context: CallContext
    ) -> Iterator[protos.Message]:
        """Yield the parsed request, and count its memory meanwhile.

        Raises:
            StatusError: it is not such a message, takes too much memory, or the caller has left.
        """
        caller = context.caller
        if caller.has_left:
            raise cancelled()
        size = unpacked = 0
        try:
            if compression.is_compressed(body[0]):
                unpacked = self._decompress(body, context)
            # Parsing holds the interpreter lock, so heavy messages are parsed one after another.
            with self._wait_if_heavy(request_class, body[0], context) as is_heavy:
                estimated = wire.estimate_memory(body[0], request_class.DESCRIPTOR)
                if not self.held_bytes.take(caller.name, estimated):
                    raise _too_many_bytes()
                size, start = estimated, time.monotonic()
                context.nbytes = max(context.nbytes, estimated)
                request = request_class.FromString(body.pop())
                if is_heavy:  # a steady flow of light messages would keep the large ones out for ever
                    # A machine that is slow or busy gets less to do.
                    self._pacer.pause(_PAUSE_RATIO * (time.monotonic() - start))
            yield request
        except InputError as error:
            raise resource_exhausted(error.what) from error
        except DecodeError as error:
            name = request_class.DESCRIPTOR.full_name
            raise invalid_argument(f"The request is not a valid {name}.") from error
        finally:
            self.held_bytes.give_back(caller.name, size + unpacked)

    def _decompress(self, body: list[bytes], context: CallContext) -> int:
        """Replace a compressed body by its content; return the bytes of it that are counted as held.

        Raises:
            StatusError: the requests in flight take too much memory, or as `_hold_heavy_turn`.
            InputError: the content is too large.
            DecodeError: the body is damaged.
        """
        try:
            body[0] = compression.decompress(body[0], _LIGHT_BYTES)
            return 0
        except InputError:
            pass
        # In turns, since it is not known before how large the content is; what it takes is then held.
        with self._hold_heavy_turn(context):
            body[0] = compression.decompress(body[0], MAX_MESSAGE_BYTES)
            size = len(body[0])
            if not self.held_bytes.take(context.caller.name, size):
                raise _too_many_bytes()
        context.nbytes = max(context.nbytes, size)
        return size

    @contextmanager
    def _wait_if_heavy(
        self, request_class: protos.Message, body: bytes, context: CallContext
    ) -> Iterator[bool]:
        """Hold the turn of heavy messages within a `with` block, and yield True, if this is one.

        A message is heavy if it is large, or has many fields.

        Raises:
            StatusError: the deadline has passed meanwhile, or the caller has left.
        """
        if len(body) < memory.LARGE:
            try:
                wire.estimate_memory(body, request_class.DESCRIPTOR, _LIGHT_FIELDS)
            except InputError:
                pass
            else:
                yield False
                return
        with self._hold_heavy_turn(context):
            yield True

    @contextmanager
    def _hold_heavy_turn(self, context: CallContext) -> Iterator[None]:
        """Hold the turn of heavy messages within a `with` block.

        Raises:
            StatusError: the deadline has passed meanwhile, or the caller has left.
        """
        with self._heavy_turn.hold(context.caller.name, context.seconds_left) as held:
            if not held:
                raise queue_timeout()
            if context.caller.has_left:
                raise cancelled()
            yield


def _run(answer: Callable[[], bytes]) -> bytes:
    """Answer a call; of one that fails nothing but the error stays in memory."""
    try:
        return answer()
    except Exception as error:
        free_frames(error)
        raise


def _too_many_bytes() -> StatusError:
    return resource_exhausted(
        f"The requests in flight take more than {MAX_BYTES >> 20} MiB. Retry later, or send smaller requests."
    )

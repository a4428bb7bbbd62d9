"""Routes of the HTTP port: REST API, metrics, demo page. Models run on threads, never on the event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from http import HTTPStatus

import grpc
from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from serving.server.callers import Caller
from serving.server.config.settings import ServerSettings
from serving.server.metrics import CONTENT_TYPE, Metrics
from serving.server.models.manager import Manager
from serving.server.rest import messages, page, paths
from serving.server.rest.admission import (
    BODY_GRACE_SECONDS,
    MIN_BYTES_PER_SECOND,
    BodyTooLargeError,
    InFlight,
    Reservation,
)
from serving.server.rest.body_parser import BodyParser
from serving.server.rest.content_encoding import Decompression
from serving.server.rest.endpoints import JsonResponse, answer_in_turn, answer_request, timeout_error
from serving.server.status_error import StatusError, free_frames, invalid_argument, resource_exhausted

VERSION_HEADER = "X-Model-Version"
"""Header with the version that answered; the JSON bodies of this API have no field for it."""

_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
    "Access-Control-Expose-Headers": VERSION_HEADER,
}

_HTTP_STATUSES: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.ABORTED: HTTPStatus.CONFLICT,
    grpc.StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.CANCELLED: 499,  # "client closed request", a status of nginx
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}

_RPC_NAMES = {"predict": "Predict", "classify": "Classify", "regress": "Regress"}
"""Endpoints that appear in the metrics, and the names of the corresponding RPCs."""

_GRACE_SECONDS = 0.5
"""Extra time for a thread to report itself that the deadline has passed."""

_log = logging.getLogger(__name__)


def http_status(code: grpc.StatusCode) -> int:
    """Return the HTTP status for a gRPC code (ToHTTPStatusCode in model_servers/http_server.cc)."""
    return _HTTP_STATUSES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)


def make_application(
    settings: ServerSettings, manager: Manager, metrics: Metrics, threads: Executor
) -> web.Application:
    """Return the application with all routes.

    Args:
        settings: settings of the server.
        manager: models of the server.
        metrics: metrics of the server.
        threads: executor that runs the models.
    """
    api = _RestApi(settings, manager, metrics, threads)
    app = web.Application()

    async def handle_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def handle_page(_: web.Request) -> web.Response:
        names = [model.name for model in manager.settings]
        return web.Response(body=page.render(names), headers=page.make_headers())

    if settings.metrics_path:
        app.router.add_get(settings.metrics_path, handle_metrics)
    app.router.add_get("/", handle_page)
    app.on_cleanup.append(api.close)
    app.router.add_route("*", r"/{path:[\s\S]*}", api.handle)
    return app


class _RestApi:
    """The REST API below /v1/, and its requests in flight."""

    def __init__(
        self, settings: ServerSettings, manager: Manager, metrics: Metrics, threads: Executor
    ) -> None:
        self._manager, self._metrics, self._threads = manager, metrics, threads
        self._seconds = settings.rest_api_timeout_in_ms / 1000
        self._headers = _CORS if settings.rest_api_enable_cors_support else {}
        self._in_flight, self._parser = InFlight(), BodyParser()
        self._decompressing = asyncio.Lock()

    async def close(self, _: web.Application) -> None:
        """End the process that parses heavy bodies."""
        self._parser.close()

    async def handle(self, request: web.Request) -> web.Response:
        """Answer any request that is neither for the metrics nor for the demo page."""
        path = request.rel_url.raw_path
        if not paths.PREFIX.fullmatch(path):
            return web.Response(status=HTTPStatus.NOT_FOUND)
        if request.method == "OPTIONS" and self._headers:
            return web.Response(headers=self._headers)
        try:
            api_request = paths.parse_path(request.method, path)
        except StatusError as error:
            return self._error_response(error)
        start, code = time.monotonic(), "CANCELLED"  # unless this returns or raises an error
        try:
            text, version = await self._dispatch(request, api_request, start)
            code = "OK"
        except StatusError as error:
            code = error.code.name
            free_frames(error)
            return self._error_response(error)
        finally:
            if api_request.verb in _RPC_NAMES:
                # Unknown names are counted as "", or callers could create any number of time series.
                name = api_request.spec.name if self._manager.has_model(api_request.spec.name) else ""
                api, seconds = _RPC_NAMES[api_request.verb], time.monotonic() - start
                self._metrics.count_request(name, api, "REST", code, seconds)
        response = self._json_response(text)
        if version is not None:
            response.headers[VERSION_HEADER] = str(version)
        return response

    async def _dispatch(
        self, request: web.Request, api_request: paths.ApiRequest, start: float
    ) -> JsonResponse:
        """Read the body, answer the request on a thread, and return the response.

        Raises:
            StatusError: the request is rejected, timed out, or failed.
        """
        caller = Caller(_get_peer(request))
        reservation, work = Reservation(self._in_flight, caller), None
        try:
            async with asyncio.timeout(self._seconds) as timeout:
                encoding = request.headers.get("Content-Encoding", "")
                decompression = Decompression(encoding, self._decompressing)
                body = await _read_body(request, reservation, decompression)
                reservation.start()
                deadline = start + self._seconds
                answer = answer_request
                if reservation.is_heavy:
                    answer = functools.partial(answer_in_turn, self._in_flight.heavy_turn, self._parser)
                work = asyncio.get_running_loop().run_in_executor(
                    self._threads, answer, self._manager, api_request, body, deadline, caller
                )
                # The thread checks the same deadline and its error is more specific, so let it answer first.
                timeout.reschedule((timeout.when() or 0) + _GRACE_SECONDS)
                return await asyncio.shield(work)
        except TimeoutError as error:
            raise timeout_error() from error
        except StatusError:
            raise
        except MemoryError as error:
            raise resource_exhausted("The server has not enough memory for the request.") from error
        except Exception as error:  # a bug here: INTERNAL for this caller, and a traceback in the log
            _log.exception("a REST request failed")
            raise StatusError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}") from error
        finally:
            if work and not work.done():  # the caller disconnected, or the time is over
                caller.leave()
                work.cancel()
            reservation.release(work)

    def _error_response(self, error: StatusError) -> web.Response:
        too_large = isinstance(error, BodyTooLargeError)
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if too_large else http_status(error.code)
        return self._json_response(messages.format_error(error.text), status)

    def _json_response(self, text: str, status: int = HTTPStatus.OK) -> web.Response:
        headers = {"Content-Type": "application/json", **self._headers}
        # A lone surrogate, which a request can escape and an error quotes, is escaped again.
        return web.Response(body=text.encode(errors="backslashreplace"), status=status, headers=headers)


def _get_peer(request: web.Request) -> str:
    """Return the address of the connection of a request."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return str(peer)


async def _read_body(
    request: web.Request, reservation: Reservation, decompression: Decompression
) -> bytearray:
    """Read the body; the limits apply to the decompressed bytes.

    Raises:
        StatusError: the body is corrupt, too large or too slow, or too many bytes are in flight.
    """
    body = bytearray()
    begun = asyncio.get_running_loop().time() + BODY_GRACE_SECONDS
    try:
        async with asyncio.timeout_at(begun) as timeout:
            async for chunk in request.content.iter_any():
                async for part in decompression.unpack(chunk):
                    reservation.add(part)
                    body += part
                    timeout.reschedule(begun + len(body) / MIN_BYTES_PER_SECOND)
            decompression.check_end()
    except (ClientError, HttpProcessingError, web.RequestPayloadError) as error:
        raise invalid_argument(f"The body cannot be read: {error}") from error
    except TimeoutError as error:
        details = f"The body arrives at less than {MIN_BYTES_PER_SECOND} bytes per second."
        raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, details) from error
    return body

"""The routes on the HTTP port: the API, the metrics, the demo page. Models are asked in threads."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from http import HTTPStatus

import grpc
from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from serving.server.config.settings import ServerSettings
from serving.server.metrics import CONTENT_TYPE, Metrics
from serving.server.models.manager import Manager
from serving.server.rest import messages, page, paths
from serving.server.rest.admission import Held, Limits, TooLargeError
from serving.server.rest.answers import Answer, answer, late
from serving.server.status_error import Refusal, invalid

VERSION_HEADER = "X-Model-Version"
"""The version that answered: the bodies of this API have no place for it."""

_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
    "Access-Control-Expose-Headers": VERSION_HEADER,
}

_HTTP: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.ABORTED: HTTPStatus.CONFLICT,
    grpc.StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.CANCELLED: 499,  # "client closed request", nginx's
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}

_API = {"predict": "Predict", "classify": "Classify", "regress": "Regress"}
"""What is counted, under the names of gRPC's methods."""

_GRACE_SECONDS = 0.5
"""What a thread may take to say that it is late."""

_log = logging.getLogger(__name__)


def http_status(code: grpc.StatusCode) -> int:
    """The HTTP status of a gRPC code (ToHTTPStatusCode in model_servers/http_server.cc)."""
    return _HTTP.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)


def application(
    settings: ServerSettings, manager: Manager, metrics: Metrics, threads: Executor
) -> web.Application:
    """The routes.

    Args:
        settings: paths, time limits, other origins.
        manager: the models.
        metrics: what is counted.
        threads: where models are asked.
    """
    api = _Api(settings, manager, metrics, threads)
    app = web.Application()

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def show_page(_: web.Request) -> web.Response:
        names = [model.name for model in manager.settings]
        return web.Response(body=page.render(names), headers=page.headers())

    if settings.metrics_path:
        app.router.add_get(settings.metrics_path, show_metrics)
    app.router.add_get("/", show_page)
    app.router.add_route("*", r"/{path:[\s\S]*}", api.handle)
    return app


class _Api:
    """/v1/ and what is in flight there."""

    def __init__(
        self, settings: ServerSettings, manager: Manager, metrics: Metrics, threads: Executor
    ) -> None:
        self._manager, self._metrics, self._threads = manager, metrics, threads
        self._seconds = settings.rest_api_timeout_in_ms / 1000
        self._headers = _CORS if settings.rest_api_enable_cors_support else {}
        self._limits = Limits()

    async def handle(self, request: web.Request) -> web.Response:
        """Answer any request that is neither for the metrics nor for the page."""
        path = request.rel_url.raw_path
        if not paths.PREFIX.fullmatch(path):
            return web.Response(status=HTTPStatus.NOT_FOUND)
        if request.method == "OPTIONS" and self._headers:
            return web.Response(headers=self._headers)
        try:
            asked = paths.parse(request.method, path)
        except Refusal as refusal:
            return self._refused(refusal)
        start, code = time.monotonic(), "OK"
        try:
            found = await self._answer(request, asked, start)
        except Refusal as refusal:
            code = refusal.code.name
            return self._refused(refusal)
        except TooLargeError as error:
            code = "INVALID_ARGUMENT"
            return self._json(messages.error(str(error)), HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        finally:
            if asked.verb in _API:
                name = asked.spec.name if asked.spec.name in self._manager.models else ""
                self._metrics.request(name, _API[asked.verb], "REST", code, time.monotonic() - start)
        response = self._json(found.text)
        if found.version is not None:
            response.headers[VERSION_HEADER] = str(found.version)
        return response

    async def _answer(self, request: web.Request, asked: paths.Asked, start: float) -> Answer:
        held = Held(self._limits)
        try:
            async with asyncio.timeout(self._seconds) as clock:
                body = await _read(request, held)
                work = asyncio.get_running_loop().run_in_executor(
                    self._threads, answer, self._manager, asked, body, start + self._seconds
                )
                held.until(work)
                # The thread has the same deadline, and better words for what became late.
                clock.reschedule((clock.when() or 0) + _GRACE_SECONDS)
                return await asyncio.shield(work)
        except TimeoutError as error:
            raise late() from error
        except (Refusal, TooLargeError):
            raise
        except Exception as error:  # a fault of ours is this caller's INTERNAL, and in the log
            _log.exception("a REST request failed")
            raise Refusal(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}") from error
        finally:
            held.leave()

    def _refused(self, refusal: Refusal) -> web.Response:
        return self._json(messages.error(refusal.text), http_status(refusal.code))

    def _json(self, text: str, status: int = HTTPStatus.OK) -> web.Response:
        headers = {"Content-Type": "application/json", **self._headers}
        return web.Response(body=text.encode(), status=status, headers=headers)


async def _read(request: web.Request, held: Held) -> bytearray:
    """The body, unpacked where it came as gzip."""
    body = bytearray()
    try:
        async for chunk in request.content.iter_any():
            held.add(len(chunk))
            body += chunk
    except (ClientError, HttpProcessingError, web.RequestPayloadError) as error:
        raise invalid(f"The body cannot be read: {error}") from error
    return body

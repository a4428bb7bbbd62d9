"""HTTP server of the labelling page: its files, the photos, and the session's methods as JSON.

    GET  /TOKEN/                     the page; its scripts, style and icon beside it
    GET  /TOKEN/photo/ID/SIZE        a JPEG; SIZE is small, medium or full
    GET  /TOKEN/state                State
    POST /TOKEN/next                 Batch and State: the photos that the browser holds
    POST /TOKEN/answer, skip, undo, label, release

Photos are named by their numbers alone. An error is {"error": sentence}; after one, nothing was changed.
The event loop runs in a thread of its own, and calls the session from other threads.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import msgspec
from aiohttp import web

from serving.errors import HubheadError, InputError, OutputError
from serving.server.event_loop import EventLoopThread
from trainer.labelling import access
from trainer.labelling.access import PageSettings
from trainer.labelling.photos import PhotoCache, PhotoUnavailable
from trainer.labelling.session import LabellingSession
from trainer.labelling.types import Answer, AnswerConflict, AnswerNotKept, Mode, Strategy

MAX_BODY_BYTES = 256 << 10

_DIRECTORY = Path(__file__).with_name("page")
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_INDEX = "index.html"

_THREADS = 4
"""Threads that call the session. Photos have their own, so that no answer waits for a photo."""

_GRACE_SECONDS = 5.0
"""Time that answers in flight have to reach the journal once the server stops."""

_log = logging.getLogger(__name__)

Browser = Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
Ids = Annotated[tuple[int, ...], msgspec.Meta(max_length=1000)]


class _Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of a request.

    Attributes:
        browser: name of the browser.
    """

    browser: Browser


class _Next(_Request):
    mode: Mode = "single"
    count: Annotated[int, msgspec.Meta(ge=1, le=50)] = 1
    label: str = ""
    strategy: Strategy | None = None


class _Answers(_Request):
    answers: Annotated[tuple[Answer, ...], msgspec.Meta(max_length=1000)]
    rejected: Ids = ()


class _Photos(_Request):
    photos: Ids


class _Label(_Request):
    name: Annotated[str, msgspec.Meta(max_length=1000)]


class LabellingServer:
    """The server of one session; open the page at `url`. Use it in a with statement, or call `stop`.

    Attributes:
        url: address of the page, with its token.
    """

    def __init__(self, session: LabellingSession, settings: PageSettings | None = None) -> None:
        """Open the port; requests are answered after `start`.

        Args:
            session: session whose photos are labelled. The caller closes it after the server.
            settings: address of the page; by default a free port on 127.0.0.1.

        Raises:
            OutputError: the port cannot be opened.
            InputError: the certificate cannot be used.
        """
        settings = settings or PageSettings()
        self._tls = settings.load_certificate()
        self._listener = _open_socket(settings)
        self.url = settings.make_url(int(self._listener.getsockname()[1]))
        self._photos = PhotoCache(session.photo_uri)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="hubhead-label")
        app = make_application(session, self._photos, settings, self._threads)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=_GRACE_SECONDS
        )
        self._loop = EventLoopThread("hubhead-label")
        self._stopped = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start to answer requests."""
        self._loop.run(self._start())

    def stop(self) -> None:
        """Answer the requests in flight, for up to 5 seconds, and close the port. May be called twice."""
        if self._stopped:
            return
        self._stopped = True
        self._loop.run(self._runner.cleanup())
        self._listener.close()
        self._loop.close()
        self._threads.shutdown()  # an answer that has arrived is kept
        self._photos.close()

    async def _start(self) -> None:
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener, ssl_context=self._tls).start()


def make_application(
    session: LabellingSession, photos: PhotoCache, settings: PageSettings, threads: ThreadPoolExecutor
) -> web.Application:
    """Return the application with all routes.

    Args:
        session: session whose methods are called.
        photos: photos of the session.
        settings: token and address.
        threads: executor that calls the session.
    """
    api = _Api(session, photos, threads)
    app = web.Application(middlewares=[_make_guard(settings)], client_max_size=MAX_BODY_BYTES)
    routes = app.router
    for name, content in _read_page().items():
        path = "" if name == _INDEX else name
        routes.add_get(f"/{{token}}/{path}", functools.partial(_send_file, name, content))
    routes.add_get(r"/{token}/photo/{id:\d{1,15}}/{size:[a-z]+}", api.send_photo)
    routes.add_get("/{token}/state", api.send_state)
    actions: list[tuple[Callable[[Any], object], type[_Request]]] = [
        (api.next, _Next),
        (api.answer, _Answers),
        (api.skip, _Photos),
        (api.undo, _Request),
        (api.label, _Label),
        (api.release, _Request),
    ]
    for action, kind in actions:
        routes.add_post(f"/{{token}}/{action.__name__}", functools.partial(api.act, action, kind))
    return app


class _Api:
    """The session's methods as handlers. Those without async run in a thread."""

    def __init__(self, session: LabellingSession, photos: PhotoCache, threads: ThreadPoolExecutor) -> None:
        self._session, self._photos, self._threads = session, photos, threads

    async def act(
        self, action: Callable[[Any], object], kind: type[_Request], request: web.Request
    ) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=kind)
        # Not cancelled if the browser disconnects: an answer that has arrived is kept.
        result = asyncio.get_running_loop().run_in_executor(self._threads, action, body)
        return _send_json(await asyncio.shield(result))

    async def send_state(self, _: web.Request) -> web.Response:
        state = asyncio.get_running_loop().run_in_executor(self._threads, self._session.state)
        return _send_json(await state)

    async def send_photo(self, request: web.Request) -> web.Response:
        photo, size = int(request.match_info["id"]), request.match_info["size"]
        try:
            content = await self._photos.load(photo, size)
        except PhotoUnavailable as error:
            return _send_error(422, f"This photo cannot be shown: {error}.")
        return web.Response(body=content, content_type="image/jpeg")

    def next(self, body: _Next) -> object:
        batch = self._session.next_photos(
            body.browser, body.mode, count=body.count, label=body.label, strategy=body.strategy
        )
        return {"batch": batch, "state": self._session.state()}

    def answer(self, body: _Answers) -> object:
        return self._session.answer(body.browser, body.answers, rejected=body.rejected)

    def skip(self, body: _Photos) -> object:
        return self._session.skip(body.browser, body.photos)

    def undo(self, body: _Request) -> object:
        return {"photos": self._session.undo(body.browser), "state": self._session.state()}

    def label(self, body: _Label) -> object:
        return {"labels": self._session.add_label(body.browser, body.name)}

    def release(self, body: _Request) -> object:
        self._session.release(body.browser)
        return {}


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _make_guard(settings: PageSettings) -> Any:
    """Return the middleware that rejects requests of others, and turns errors into responses."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = _refuse(request, settings) or await _answer(request, handler)
        response.headers.update(access.HEADERS)
        response.headers.setdefault("Content-Security-Policy", "default-src 'none'")
        return response

    return guard


def _refuse(request: web.Request, settings: PageSettings) -> web.Response | None:
    # Also for paths without a route, so that they tell nothing.
    token, _, rest = request.rel_url.path.removeprefix("/").partition("/")
    is_page = request.method in ("GET", "HEAD") and not rest
    refused = access.find_refusal(
        settings,
        token=token,
        host=request.headers.get("Host", ""),
        origin=request.headers.get("Origin"),
        site=None if is_page else request.headers.get("Sec-Fetch-Site"),
        content_type=None if request.method in ("GET", "HEAD") else request.content_type,
    )
    return _send_error(*refused) if refused else None


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Return the response of a handler, or the one for its error."""
    try:
        return await handler(request)
    except web.HTTPException as error:  # no route, or a body that is too large
        return _send_error(error.status, f"{error.reason}.")
    except KeyError:
        return _send_error(404, "There is no such photo.")
    except AnswerConflict as error:
        return _send_error(409, str(error))
    except AnswerNotKept as error:
        return _send_error(507, str(error))
    except (InputError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        return _send_error(400, str(error))
    except HubheadError as error:
        return _send_error(500, str(error))
    except Exception as error:  # a bug here: a traceback in the log
        _log.exception("a request of the labelling page failed")
        return _send_error(500, f"hubhead failed: {type(error).__name__}. Its output has the details.")


async def _send_file(name: str, content: bytes, _: web.Request) -> web.Response:
    response = web.Response(body=content, content_type=_TYPES[Path(name).suffix], charset="utf-8")
    response.headers["Content-Security-Policy"] = access.PAGE_POLICY
    return response


def _send_json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _send_error(status: int, text: str) -> web.Response:
    # A lone surrogate, which a request can escape and an error quotes, cannot be encoded.
    text = text.encode(errors="backslashreplace").decode()
    response = _send_json({"error": text})
    response.set_status(status)
    return response


@functools.cache
def _read_page() -> dict[str, bytes]:
    """Return the files of the page by their names."""
    return {file.name: file.read_bytes() for file in _DIRECTORY.iterdir() if file.suffix in _TYPES}


def _open_socket(settings: PageSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise OutputError(
            f"Port {settings.port} of {settings.host or 'this machine'} cannot be opened: "
            f"{error.strerror or error}.",
            remedy="Choose another --port, or 0 for a free one.",
        ) from error

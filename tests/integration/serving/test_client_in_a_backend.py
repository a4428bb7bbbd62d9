"""The FastAPI backend of docs/how-to/python-client.md classifies uploads; errors become HTTP codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import types
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.server import RunningServer, ServerSettings, start
from tests.support.colour_model import ColourModel, draw_photo, write_colour_model
from tests.support.docs import code_blocks

pytestmark = pytest.mark.server

PAGE = "docs/how-to/python-client.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    base = tmp_path_factory.mktemp("models") / "food_images"
    write_colour_model(base / "7")
    with start(ServerSettings(base, port=0), loader=lambda _: ColourModel()) as server:
        yield server


def load_backend(target: str) -> Any:
    """Execute the example with the address of a server and without a label, and return its module."""
    (shown,) = (block for block in code_blocks(PAGE, "python") if "FastAPI" in block)
    module = types.ModuleType("app")
    source = shown.replace("dns:///food.serving:8500", target).replace('label="stable", ', "")
    assert source.count(target) == 1
    exec(compile(source, PAGE, "exec"), module.__dict__)
    return module


@contextlib.asynccontextmanager
async def run_backend(target: str) -> AsyncIterator[Any]:
    module = load_backend(target)
    async with module.lifespan(module.app):
        yield module


async def post(app: Any, *chunks: bytes) -> tuple[int, Any]:
    """Send a request as an ASGI server does, and return status and JSON."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    incoming = iter([*messages, {"type": "http.request", "body": b"", "more_body": False}])
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(incoming)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/classify", "headers": [], "query_string": b""}
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body)


def test_an_upload_is_classified(server: RunningServer, tmp_path: Path) -> None:
    photo = draw_photo(tmp_path / "red.jpg", (190, 20, 25), (400, 300)).read_bytes()

    async def run() -> tuple[int, Any]:
        async with run_backend(f"localhost:{server.port}") as backend:
            return await post(backend.app, photo[:1000], photo[1000:])

    status, answer = asyncio.run(run())
    assert status == 200
    assert answer["label"] == "red fruit"
    assert answer["version"] == 7
    assert answer["best"][0][0] == "red fruit"


def test_uploads_that_are_no_photo_or_too_large_are_rejected(server: RunningServer) -> None:
    async def run() -> list[int]:
        async with run_backend(f"localhost:{server.port}") as backend:
            backend.MAX_BYTES = 3 << 20
            bodies = ([b"no photo"], [b"x" * (1 << 20)] * 4)
            return [(await post(backend.app, *body))[0] for body in bodies]

    assert asyncio.run(run()) == [422, 413]


def test_a_backend_without_a_server_answers_503() -> None:
    async def run() -> int:
        async with run_backend("localhost:1") as backend:
            return (await post(backend.app, b"photo"))[0]

    assert asyncio.run(run()) == 503

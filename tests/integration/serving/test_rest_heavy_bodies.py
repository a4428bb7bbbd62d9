"""Heavy REST bodies, which a separate process parses: same responses, and faults that affect one caller."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.child_process import ChildProcess
from serving.server import RunningServer, ServerSettings, start
from serving.server.config.settings import ModelSettings
from serving.server.rest import admission, body_parser
from serving.server.rest.body_parser_process import NICENESS
from tests.support.fake_model import LIMIT, FakeModelLoader, eventually, write_fake_model
from tests.support.repository import REPO

pytestmark = pytest.mark.server

PATH = "/v1/models/double:predict"
NUMBERS = {"instances": [1, 2.5]}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ServerSettings:
    directory = tmp_path_factory.mktemp("models") / "double"
    write_fake_model(directory / "1")
    return ServerSettings(models=(ModelSettings("double", directory),), port=0, rest_api_port=0)


@pytest.fixture
def server(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    """Return a server that takes every body that is not empty to be heavy."""
    monkeypatch.setattr(admission, "HEAVY_VALUES", 1)
    with start(settings, loader=FakeModelLoader()) as server:
        yield server


def send(server: RunningServer, body: Any = NUMBERS, path: str = PATH) -> tuple[int, bytes, str | None]:
    """Return status, body and version of the response."""
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=LIMIT)
    try:
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())
        response = connection.getresponse()
        return response.status, response.read(), response.headers["X-Model-Version"]
    finally:
        connection.close()


def find_parsers() -> list[int]:
    """Return the process ids of the parsers that this process has started and that have not ended."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return [pid for pid in found if b"body_parser_process.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set when a body is sent to the process."""
    event, ask = threading.Event(), ChildProcess.ask

    def ask_and_tell(child: ChildProcess, *arguments: Any) -> Any:
        event.set()
        return ask(child, *arguments)

    monkeypatch.setattr(ChildProcess, "ask", ask_and_tell)
    return event


def stop_parser(server: RunningServer, asked: threading.Event) -> int:
    """Start the parser and suspend it, so that it never finishes the next body; return its process id."""
    assert send(server)[0] == 200
    [parser] = find_parsers()
    os.kill(parser, signal.SIGSTOP)
    asked.clear()
    return parser


@pytest.mark.parametrize("verb", ["predict", "classify", "regress"])
@pytest.mark.parametrize(
    "body",
    [
        {"instances": [1, 2.5]},
        {"instances": [[1.5, 2], [3, 4]]},
        {"instances": [{"x": 1}, {"x": 0.1}]},
        {"inputs": {"x": [1, 2]}},
        {"signature_name": "serving_default", "inputs": [3e38]},
        {"signature_name": "other", "instances": [1]},
        {"signature_name": [1], "instances": [1]},
        {"instances": [1, "a"]},
        {"instances": [[1], [2, 3]]},
        {"instances": [{"x": 1}, {"y": 1}]},
        {"instances": [-1]},
        {"examples": [{"x": 1.5}, {}]},
        {"examples": [{"x": [1, "a"]}]},
        {"instances": [], "inputs": []},
        {},
        rb'{"instances": ["\ud800"]}',
        b'{"instances": [1,',
        b'{"instances": [\xff]}',
        b"[" * 100_000,
        b"\xef\xbb\xbf" + b'{"instances": [7]}',
    ],
)
def test_responses_are_those_of_light_bodies(
    settings: ServerSettings, server: RunningServer, body: Any, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/models/double:{verb}"
    heavy = send(server, body, path)
    monkeypatch.setattr(admission, "HEAVY_VALUES", 1 << 18)
    assert heavy == send(server, body, path)


def test_an_unknown_model_is_reported_before_the_body_is_parsed(server: RunningServer) -> None:
    assert send(server, b"[", "/v1/models/other:predict")[0] == 404
    assert not find_parsers()


def test_only_heavy_bodies_start_the_process(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "HEAVY_VALUES", 1000)
    assert send(server, {"instances": [1] * 900})[0] == 200
    assert not find_parsers()
    assert send(server, {"instances": [1] * 1100})[0] == 200
    [parser] = find_parsers()
    assert send(server, {"instances": [1] * 1100})[0] == 200
    assert find_parsers() == [parser]


def test_the_process_has_a_lower_priority(server: RunningServer) -> None:
    send(server)
    [parser] = find_parsers()
    priority = min(os.getpriority(os.PRIO_PROCESS, 0) + NICENESS, 19)
    assert os.getpriority(os.PRIO_PROCESS, parser) == priority


def test_a_process_killed_while_it_parses_is_429_for_its_caller_alone(
    server: RunningServer, asked: threading.Event
) -> None:
    parser = stop_parser(server, asked)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(send, server) for _ in range(2)]
        assert asked.wait(LIMIT)
        os.kill(parser, signal.SIGKILL)
        answers = sorted(future.result(LIMIT) for future in waiting)
    assert [status for status, _, _ in answers] == [200, 429]
    assert b"ended with exit code -9" in answers[1][1]
    assert send(server)[0] == 200


def test_a_process_killed_while_idle_is_replaced(server: RunningServer) -> None:
    send(server)
    [parser] = find_parsers()
    os.kill(parser, signal.SIGKILL)
    eventually(lambda: "State:\tZ" in Path(f"/proc/{parser}/status").read_text())
    assert send(server)[0] == 200


@pytest.mark.usefixtures("server")
def test_deadline_ends_the_process_and_is_504(settings: ServerSettings, asked: threading.Event) -> None:
    with start(replace(settings, rest_api_timeout_in_ms=5000), loader=FakeModelLoader()) as impatient:
        parser = stop_parser(impatient, asked)
        status, text, _ = send(impatient)
        assert status == 504
        assert b"--rest_api_timeout_in_ms" in text
        eventually(lambda: parser not in find_parsers())
        eventually(lambda: send(impatient)[0] == 200)


def test_a_caller_that_leaves_ends_the_process(server: RunningServer, asked: threading.Event) -> None:
    parser = stop_parser(server, asked)
    body = json.dumps(NUMBERS).encode()
    with socket.create_connection(("localhost", server.rest_port), LIMIT) as connection:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert asked.wait(LIMIT)
    eventually(lambda: parser not in find_parsers())
    assert send(server)[0] == 200


def test_a_body_beyond_the_memory_of_the_process_is_429(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_parser, "MEMORY_BYTES", 256 << 20)
    status, text, _ = send(server, b'{"instances": ["' + b"a" * (100 << 20) + b'"]}')
    assert (status, json.loads(text)) == (
        429,
        {"error": "The server has not enough memory for the request."},
    )
    assert send(server)[0] == 200


def test_an_idle_process_ends(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_parser, "IDLE_SECONDS", 0.1)
    assert send(server)[0] == 200
    eventually(lambda: not find_parsers())
    assert send(server)[0] == 200


def test_the_process_ends_with_the_server(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "HEAVY_VALUES", 1)
    with start(settings, loader=FakeModelLoader()) as server:
        send(server)
        assert find_parsers()
    assert not find_parsers()


def test_the_process_imports_neither_models_nor_the_http_server() -> None:
    script = REPO / "serving" / "server" / "rest" / "body_parser_process.py"
    code = (
        f"import runpy, sys; sys.path[:0] = {[str(REPO), *sys.path]!r}; "
        f"module = runpy.run_path({str(script)!r}); "
        "from serving import protos; body = b'{\"examples\": [{}]}'; "
        "assert module['parse']('classify', b'', b'', body)[0] == b'R'; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert loaded.isdisjoint({"tensorflow", "aiohttp", "onnxruntime", "site"})
    assert loaded.isdisjoint({"serving.runtime", "serving.server.app", "serving.server.models.servable"})

"""Very many connections: new callers are answered, requests in flight completed, descriptors stay free."""

from __future__ import annotations

import http.client
import json
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from serving.server import RunningServer, ServerSettings, connections, start
from serving.server.config.settings import ModelSettings
from tests.support.fake_model import LIMIT, FakeModelLoader, eventually, write_fake_model

pytestmark = pytest.mark.server

MOST = 8


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerSettings:
    for port in ("rest", "grpc"):
        monkeypatch.setattr(f"serving.server.{port}.server.find_max_connections", lambda: MOST)
    write_fake_model(tmp_path / "double" / "1")
    return ServerSettings(models=(ModelSettings("double", tmp_path / "double"),), port=0, rest_api_port=0)


def predict(server: RunningServer) -> int:
    with closing(http.client.HTTPConnection("localhost", server.rest_port, timeout=LIMIT)) as connection:
        connection.request("POST", "/v1/models/double:predict", json.dumps({"instances": [1.0]}))
        return connection.getresponse().status


def has_ended(idle: socket.socket) -> bool:
    """Return whether the server has closed a connection."""
    idle.settimeout(0.2)
    try:
        return not idle.recv(1)
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_idle_rest_connections_make_room_for_new_ones(settings: ServerSettings) -> None:
    with start(settings, loader=FakeModelLoader()) as server, ExitStack() as stack:
        idle = []
        for _ in range(3 * MOST):
            idle.append(stack.enter_context(socket.create_connection(("localhost", server.rest_port), LIMIT)))
            if len(idle) % 2 == 0:
                assert predict(server) == 200
        eventually(lambda: has_ended(idle[0]))
        assert sum(not has_ended(one) for one in idle) <= MOST


def test_a_rest_request_in_flight_is_answered_though_its_connection_is_the_oldest(
    settings: ServerSettings,
) -> None:
    loader = FakeModelLoader(gated=True)
    with start(settings, loader=loader) as server, ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        in_flight = pool.submit(predict, server)
        eventually(lambda: any(model.running for model in loader.models.values()))
        for _ in range(3 * MOST):
            stack.enter_context(socket.create_connection(("localhost", server.rest_port), LIMIT))
        for model in loader.models.values():
            model.gate.set()
        assert in_flight.result(LIMIT) == 200


def test_grpc_connections_beyond_the_limit_are_closed(settings: ServerSettings) -> None:
    with start(settings, loader=FakeModelLoader()) as server, ExitStack() as stack:
        opened = [
            stack.enter_context(socket.create_connection(("localhost", server.port), LIMIT))
            for _ in range(3 * MOST)
        ]
        eventually(lambda: sum(has_ended(one) for one in opened) >= 2 * MOST)


@pytest.mark.parametrize(
    ("soft", "hard", "most"), [(1024, 1 << 20, 32640), (1024, 4096, 1920), (1024, 1024, 384), (64, 64, 1)]
)
def test_limit_follows_that_of_the_system_which_is_raised(
    soft: int, hard: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [soft, hard]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.__setitem__(slice(None), wanted))
    assert connections.find_max_connections() == most
    assert limits == [min(hard, 1 << 16), hard]

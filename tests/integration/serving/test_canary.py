"""Canary routing of both clients, and `hubhead compare` of the canary with the stable version."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from hubhead import hubhead
from serving import protos
from serving.client import AsyncClient, Client, Prediction
from serving.client.canary import hash_user
from serving.errors import GateRejected, InvalidRequest
from tests.support.fake_grpc_server import answer_for, fake_grpc_server

pytestmark = pytest.mark.server

Classify = Callable[..., list[Prediction]]


class Server:
    """Records the label of each request; without a canary, rejects that label like TensorFlow Serving."""

    def __init__(self, *, canary: bool = True, fails: bool = False) -> None:
        self.labels: list[str] = []
        self.canary, self.fails = canary, fails
        self.lock = threading.Lock()

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Any:
        label = request.model_spec.version_label
        with self.lock:
            self.labels.append(label)
        if label == "canary" and not self.canary:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
        if label == "canary" and self.fails:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Serving signature name: x not found")
        images = list(request.inputs["image_bytes"].string_val)
        if label == "canary":  # it abstains on a photo that the stable version labels
            images = [b"odd" if image == b"plum" else image for image in images]
        response = answer_for(images)
        response.model_spec.version.value = 2 if label == "canary" else 1
        return response


@contextmanager
def open_blocking(address: str, **settings: Any) -> Iterator[Classify]:
    with Client(address, model="food", **settings) as client:
        yield client.classify


@contextmanager
def open_async(address: str, **settings: Any) -> Iterator[Classify]:
    async def ask(*photos: Any, **options: Any) -> list[Prediction]:
        async with AsyncClient(address, model="food", **settings) as client:
            return await client.classify(*photos, **options)

    yield lambda *photos, **options: asyncio.run(ask(*photos, **options))


@pytest.fixture(params=[open_blocking, open_async], ids=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_user_always_gets_the_same_version(connect: Any) -> None:
    server = Server()
    users = [f"user {number}" for number in range(20)]
    with fake_grpc_server({protos.PREDICT: server}) as address, connect(address, canary=0.5) as classify:
        versions_by_user = [[classify([b"x"], user=user)[0].version for _ in range(3)] for user in users]
    assert all(len(set(versions)) == 1 for versions in versions_by_user)
    assert [versions[0] for versions in versions_by_user] == [
        2 if hash_user(user) < 0.5 else 1 for user in users
    ]
    assert set(server.labels) == {"stable", "canary"}


@pytest.mark.parametrize(("share", "label"), [(0.0, ""), (1.0, "canary")])
def test_without_a_user_a_fraction_of_the_requests_goes_to_the_canary(
    connect: Any, share: float, label: str
) -> None:
    server = Server()
    with fake_grpc_server({protos.PREDICT: server}) as address, connect(address, canary=share) as classify:
        for _ in range(3):
            classify([b"x"])
    assert server.labels == [label] * 3


def test_without_a_canary_version_the_given_label_answers(connect: Any) -> None:
    server = Server(canary=False)
    with (
        fake_grpc_server({protos.PREDICT: server}) as address,
        connect(address, canary=1.0, label="live") as classify,
    ):
        assert [prediction.version for prediction in classify([b"x", b"bad"])] == [1, 1]
    assert server.labels == ["canary", "live"]


def test_errors_of_the_canary_are_raised(connect: Any) -> None:
    server = Server(fails=True)
    with (
        fake_grpc_server({protos.PREDICT: server}) as address,
        connect(address, canary=1.0) as classify,
        pytest.raises(InvalidRequest),
    ):
        classify([b"x"])
    assert server.labels == ["canary"]


# --- hubhead compare ---------------------------------------------------------------------------------


def test_compare_lists_disagreements_of_two_versions(tmp_path: Path) -> None:
    for name, content in (("1.jpg", b"apple"), ("2.jpg", b"plum"), ("3.jpg", b"bad"), ("4.jpg", b"pear")):
        (tmp_path / name).write_bytes(content)
    with fake_grpc_server({protos.PREDICT: Server()}) as address:
        common = ("--server", address, "--model_name", "food", "--photos", str(tmp_path))
        as_json = CliRunner().invoke(hubhead, ["compare", "stable", "canary", *common, "--json"])
        as_text = CliRunner().invoke(hubhead, ["compare", "stable", "canary", *common])
        below_minimum = CliRunner().invoke(
            hubhead, ["compare", "1", "canary", *common, "--min_agreement", "0.9"]
        )
    assert as_json.exit_code == 0, as_json.output
    record = json.loads(as_json.stdout)
    assert (record["photos"], record["judged"], record["agreeing"]) == (4, 3, 2)
    assert record["versions"] == [[1], [2]]
    assert record["moves"] == [{"first": "apple", "second": None, "photos": 1}]
    assert [entry["photo"] for entry in record["disagreements"]] == [str(tmp_path / "2.jpg")]
    assert "agree on 2 of 3 photos (66.7%)" in as_text.stdout
    assert "Rejected by both: 1" in as_text.stdout
    assert isinstance(below_minimum.exception, GateRejected)

"""Every [[error]] of protocol.toml: its code and text over gRPC, its status and text over REST."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.conformance_server import World
from tests.conformance.protocol import ERRORS
from tests.conformance.requests import GRPC, REST


def rows(key: str) -> list[Any]:
    return [
        pytest.param(row, id=row["id"], marks=[pytest.mark.tf] if row.get("tensorflow") else [])
        for row in ERRORS
        if key in row
    ]


def served(row: dict[str, Any], request: pytest.FixtureRequest) -> World:
    name = "graph" if row.get("tensorflow") else "batched" if row.get("batched") else "plain"
    found: World = request.getfixturevalue(name)
    return found


def check_text(row: dict[str, Any], said: str, prefix: str = "") -> None:
    """As the row has it; over REST in its own words where there are any."""
    if f"{prefix}text" in row:
        assert said == row[f"{prefix}text"]
    elif f"{prefix}has" in row:
        assert row[f"{prefix}has"] in said
    elif prefix:
        check_text(row, said)
    else:
        assert said.startswith(row["starts"])


@pytest.mark.parametrize("row", rows("code"))
def test_grpc_refuses_with_this_code_and_text(row: dict[str, Any], request: pytest.FixtureRequest) -> None:
    world = served(row, request)
    if "text" not in row and "has" not in row:
        assert "starts" in row
    for call in GRPC[row["id"]]:
        code, text = world.refused(call)
        assert code == row["code"], (call[0], text)
        check_text(row, text)


@pytest.mark.parametrize("row", rows("http"))
def test_rest_refuses_with_this_status_and_text(row: dict[str, Any], request: pytest.FixtureRequest) -> None:
    world = served(row, request)
    for method, path, body in REST[row["id"]]:
        answer = world.http(method, path, body)
        assert answer.status == row["http"], (path, answer.body)
        assert set(answer.json) == {"error"}
        check_text(row, answer.json["error"], "http_")

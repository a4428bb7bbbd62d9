"""Every [[error]] row of protocol.toml: status code and text over gRPC, HTTP status and text over REST."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.conformance_server import ConformanceServer
from tests.conformance.protocol import ERRORS
from tests.conformance.requests import GRPC, REST

pytestmark = [pytest.mark.tf, pytest.mark.server]


def parametrize_rows(key: str) -> list[Any]:
    return [
        pytest.param(row, id=row["id"], marks=[pytest.mark.tf] if row.get("tensorflow") else [])
        for row in ERRORS
        if key in row
    ]


def find_server(row: dict[str, Any], request: pytest.FixtureRequest) -> ConformanceServer:
    name = (
        "graph_server"
        if row.get("tensorflow")
        else "batched_server"
        if row.get("batched")
        else "plain_server"
    )
    found: ConformanceServer = request.getfixturevalue(name)
    return found


def check_text(row: dict[str, Any], text: str, prefix: str = "") -> None:
    """Check an error text against the row; over REST, against the row's `http_` text if it has one."""
    if f"{prefix}text" in row:
        assert text == row[f"{prefix}text"]
    elif f"{prefix}has" in row:
        assert row[f"{prefix}has"] in text
    elif prefix:
        check_text(row, text)
    else:
        assert text.startswith(row["starts"])


@pytest.mark.parametrize("row", parametrize_rows("code"))
def test_grpc_error_has_the_code_and_text_of_tensorflow_serving(
    row: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    server = find_server(row, request)
    if "text" not in row and "has" not in row:
        assert "starts" in row
    for call in GRPC[row["id"]]:
        code, text = server.call_expecting_error(call)
        assert code == row["code"], (call[0], text)
        check_text(row, text)


@pytest.mark.parametrize("row", parametrize_rows("http"))
def test_rest_error_has_the_status_and_text_of_tensorflow_serving(
    row: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    server = find_server(row, request)
    for method, path, body in REST[row["id"]]:
        answer = server.request(method, path, body)
        assert answer.status == row["http"], (path, answer.body)
        assert set(answer.json) == {"error"}
        check_text(row, answer.json["error"], "http_")

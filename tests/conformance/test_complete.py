"""Every entry of protocol.toml has a test, and every protocol mark names an existing entry."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.protocol import ERRORS, FACTS, IDS
from tests.conformance.requests import GRPC, REST

TESTS = Path(__file__).parents[1]


def find_protocol_marks() -> Iterator[tuple[str, str]]:
    """Yield each id in a `pytest.mark.protocol(...)`, and the name of the test."""
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.protocol":
                    for argument in mark.args:
                        assert isinstance(argument, ast.Constant), f"{file}: {node.name}"
                        yield str(argument.value), node.name


def test_every_fact_has_a_test_and_every_protocol_mark_names_a_fact() -> None:
    assert {name for name, _ in find_protocol_marks()} == {fact["id"] for fact in FACTS}


def test_every_error_has_requests_and_every_request_has_an_error() -> None:
    assert set(GRPC) == {row["id"] for row in ERRORS if "code" in row}
    assert set(REST) == {row["id"] for row in ERRORS if "http" in row}
    assert all(GRPC.values())
    assert all(REST.values())


def test_every_entry_is_unique_and_described() -> None:
    assert len(IDS) == len(set(IDS))
    assert all(len(entry["says"]) > 10 for entry in (*ERRORS, *FACTS))
    assert all({"text", "has", "starts"} & set(row) for row in ERRORS if "code" in row)
    assert all("code" in row or "http" in row for row in ERRORS)

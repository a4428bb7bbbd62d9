"""docs/how-to/troubleshooting.md explains messages that the code really has."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.support.repository import REPO

PAGE = "docs/how-to/troubleshooting.md"

SHOWN = "..."
"""Stands for what differs from message to message."""


def explained_messages() -> list[str]:
    """Return the messages in the headings and in the first column of the table of connection errors."""
    text = (REPO / PAGE).read_text(encoding="utf-8")
    headings = re.findall(r"^### (`.*`)$", text, re.MULTILINE)
    table = text.partition("| the message contains |")[2].partition("\n\n")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    return [message for part in (*headings, *cells) for message in re.findall(r"`([^`]*)`", part)]


@cache
def messages_of_the_code() -> tuple[str, ...]:
    """Return all strings of the code, with a placeholder for what is filled in."""
    found = []
    for package in ("serving", "batch", "trainer"):
        for path in (REPO / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (v.value if isinstance(v, ast.Constant) else SHOWN for v in node.values)
                    found.append("".join(map(str, parts)))
    return tuple(found)


def is_in_the_code(message: str) -> bool:
    fixed = message.split(SHOWN)
    longest = max(fixed, key=len)
    pattern = re.compile(".*".join(map(re.escape, fixed)), re.DOTALL)
    return any(longest in text and pattern.search(text) for text in messages_of_the_code())


@pytest.mark.parametrize("message", explained_messages())
def test_every_explained_message_is_one_of_the_code(message: str) -> None:
    if message == "Connection refused":  # the operating system's
        return
    assert len(message.replace(SHOWN, "").strip()) >= 12, "too short to be found by a search"
    assert is_in_the_code(message)


def test_the_likeliest_messages_are_explained() -> None:
    assert len(explained_messages()) >= 60


def test_a_message_that_no_code_has_is_found() -> None:
    assert not is_in_the_code("The model ... is not a fish.")

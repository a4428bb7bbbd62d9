"""Commands, make targets and links in the documents are valid."""

from __future__ import annotations

import contextlib
import re
import shlex

import click
import pytest

from hubhead import hubhead
from tests.support.docs import code_blocks
from tests.support.repository import REPO

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "k8s/README.md")


def code_lines(document: str) -> list[str]:
    """Return the lines of the code blocks without a language."""
    return [line for block in code_blocks(document) for line in block.splitlines()]


COMMANDS = [
    pytest.param(line, id=line[:60])
    for document in DOCUMENTS
    for line in code_lines(document)
    if line.startswith("hubhead ")
]


def test_the_documents_show_commands() -> None:
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_in_the_documents_parses(line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    command: click.Command = hubhead
    while isinstance(command, click.Group):
        name, command, arguments = command.resolve_command(click.Context(command), arguments)
        assert command is not None, name
    with contextlib.suppress(click.exceptions.Exit):  # raised by options that print and exit
        command.make_context(command.name, arguments)


def test_every_make_target_in_the_documents_exists() -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    shown = {
        word
        for document in DOCUMENTS
        for word in re.findall(r"`?\bmake ([a-z0-9-]+)", "\n".join(code_lines(document)))
    }
    assert {"demo", "test", "lint", "bench", "lock", "check-resolve"} <= shown
    for target in shown:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_linked_file_exists(document: str) -> None:
    text = (REPO / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (REPO / document).parent.joinpath(target).exists(), target


def test_every_command_of_hubhead_is_in_the_readme() -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    for name in hubhead.commands:
        assert f"hubhead {name}" in text or f"make {name}" in text, name


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_the_lock_file_has_hashes_and_no_urls(name: str) -> None:
    text = (REPO / name).read_text(encoding="utf-8")
    assert "://" not in text
    pinned = re.findall(r"^[A-Za-z0-9][^\s=]*==.*?(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    assert len(pinned) > 50
    assert all("--hash=sha256:" in entry for entry in pinned)

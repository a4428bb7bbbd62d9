"""What the documents tell people to type is what the commands take."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from hubhead import hubhead

if TYPE_CHECKING:
    from tests.conftest import Trained
    from trainer.dataset.samples import SampleSummary

REPO = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "k8s/README.md")


def code_blocks(document: str, language: str = "") -> list[str]:
    """The code blocks that a language is named for, or none."""
    text = (REPO / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for named, block in blocks if named == language]


def code_lines(document: str) -> list[str]:
    """The lines of the code blocks that no language is named for."""
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
def test_every_command_shown_is_accepted_by_its_parser(line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    command: click.Command = hubhead
    while isinstance(command, click.Group):
        name, command, arguments = command.resolve_command(click.Context(command), arguments)
        assert command is not None, name
    with contextlib.suppress(click.exceptions.Exit):  # of an option that prints and is done
        command.make_context(command.name, arguments)


@pytest.mark.tf
def test_training_from_python_works_as_the_readme_has_it(
    trained: Trained, sample: SampleSummary, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The user's cache, with the embeddings of the training that the tests share.
    (tmp_path / "cache").mkdir()
    for entry in cache.iterdir():
        (tmp_path / "cache" / entry.name).symlink_to(entry)
    (tmp_path / "cache" / "embeddings").unlink(missing_ok=True)
    (tmp_path / "cache" / "embeddings").symlink_to(trained.settings.embedding_store)
    (tmp_path / "food_images").symlink_to(sample.directory)
    monkeypatch.setenv("HUBHEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    (shown,) = (block for block in code_blocks("README.md", "python") if "from trainer import" in block)
    exec(shown, names)
    assert names["result"].held_out == trained.result.held_out
    assert names["result"].bundle.path == Path("models/food_images/1")


def test_every_make_target_shown_exists() -> None:
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
def test_every_file_linked_exists(document: str) -> None:
    text = (REPO / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (REPO / document).parent.joinpath(target).exists(), target


def test_every_command_of_hubhead_is_in_the_readme() -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    for name in hubhead.commands:
        assert f"hubhead {name}" in text or f"make {name}" in text, name


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_the_lock_has_hashes_and_no_address(name: str) -> None:
    text = (REPO / name).read_text(encoding="utf-8")
    assert "://" not in text
    pinned = re.findall(r"^[A-Za-z0-9][^\s=]*==.*?(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    assert len(pinned) > 50
    assert all("--hash=sha256:" in entry for entry in pinned)

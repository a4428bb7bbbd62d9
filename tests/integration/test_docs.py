"""The documents' Python example works, and the outputs that they show have the structure of a real run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.docs.compare import elide, outline
from tests.support.docs.markdown import DOCUMENTS, fences
from tests.support.docs.session import open_session
from tests.support.docs.shell import PROMPT, Recorded, split_console
from tests.support.docs.workspace import prepare
from tests.support.trained import copy_store

if TYPE_CHECKING:
    from tests.support.trained import Trained
    from trainer.dataset.samples import SampleSummary

EXAMPLES = [
    pytest.param(fence.text, id=fence.place)
    for document in DOCUMENTS
    for fence in fences(document, "python")
    if "= train(TrainSettings(" in fence.text
]


def test_the_documents_have_an_example_of_training() -> None:
    assert EXAMPLES


@pytest.mark.tf
@pytest.mark.beam
@pytest.mark.parametrize("example", EXAMPLES)
def test_a_python_example_of_the_documents_trains_a_model(
    example: str,
    trained: Trained,
    sample: SampleSummary,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A user's cache with the embeddings of the shared training.
    (tmp_path / "cache").mkdir()
    for entry in cache.iterdir():
        if entry.name != "embeddings":
            (tmp_path / "cache" / entry.name).symlink_to(entry)
    copy_store(trained, tmp_path / "cache")
    (tmp_path / "food_images").symlink_to(sample.directory)
    monkeypatch.setenv("HUBHEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["result"].held_out == trained.result.held_out
    assert names["result"].bundle.path == Path("models/food_images/1")


@pytest.mark.tf
@pytest.mark.beam
@pytest.mark.slow(seconds=30)
def test_the_outputs_of_the_tutorial_have_the_structure_of_a_real_run(
    trained: Trained, sample: SampleSummary, cache: Path, tmp_path: Path
) -> None:
    """Run the commands before the first server: train, from stored embeddings; predict; score; query."""
    shown = [command for fence in fences("docs/tutorial.md", "console") for command in split_console(fence)]
    commands = list(itertools.takewhile(lambda command: not command.background, shown))
    assert {command.command.split()[1] for command in commands} >= {"train", "predict", "score", "query"}
    directory, own_cache = prepare(tmp_path, cache, sample.directory)
    copy_store(trained, own_cache)
    with open_session(directory, own_cache, commands) as session:
        for command in commands:
            lines, code = session.run(command)
            assert code == 0, "\n".join(lines)
            if command.command.startswith("hubhead query"):
                assert outline(lines[:1]) == outline(command.output[:1])
                assert len(lines) > 1
            else:
                assert outline(elide(command.output, lines)) == outline(command.output), command.command


def test_a_session_has_the_directory_of_servers_beside_its_own(tmp_path: Path) -> None:
    lines = ("mkdir -p /srv/models", "echo x > /srv/models/a", "ls -d /srv/models/a", "false")
    fence = fences("docs/tutorial.md", "console")[0]
    commands = [Recorded(fence, (PROMPT + line,), ()) for line in lines]
    (tmp_path / "food").mkdir()
    with open_session(tmp_path / "food", tmp_path / "cache", commands) as session:
        results = [session.run(command) for command in commands]
    assert results == [([], 0), ([], 0), (["/srv/models/a"], 0), ([], 1)]
    assert (tmp_path / "srv/models/a").read_text() == "x\n"

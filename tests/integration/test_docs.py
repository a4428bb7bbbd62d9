"""The documents' Python example works, and the outputs that they show have the structure of a real run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.docs.compare import check_outputs
from tests.support.docs.markdown import DOCUMENTS, Fence, fences
from tests.support.docs.session import CommandFailed, open_session, run_commands
from tests.support.docs.shell import (
    PROMPT,
    Recorded,
    find_commands,
    list_recorded,
    split_console,
    split_plain,
)
from tests.support.docs.workspace import SEEDS, Workspace, prepare
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


TUTORIAL = "docs/tutorial.md"

PAGES = [
    pytest.param(name, marks=[pytest.mark.needs("curl")] if find_commands(name, "curl") else [])
    for name in DOCUMENTS
    if fences(name, "console") and name not in (TUTORIAL, *SEEDS)
]
"""Pages with recorded outputs, whose commands take up to a minute; the others have tests of their own."""


@pytest.fixture(scope="module")
def workspace(cache: Path, sample: SampleSummary, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Directories for the commands of pages, one page after the other; the first one trains, in 20 s."""
    return Workspace(tmp_path_factory.mktemp("docs"), cache, sample.directory)


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
    shown = [command for fence in fences(TUTORIAL, "console") for command in split_console(fence)]
    commands = list(itertools.takewhile(lambda command: not command.background, shown))
    assert {command.command.split()[1] for command in commands} >= {"train", "predict", "score", "query"}
    directory, own_cache = prepare(tmp_path, cache, sample.directory)
    copy_store(trained, own_cache)
    check_outputs(commands, run_commands(commands, directory, own_cache))


@pytest.mark.server  # free ports are looked for
@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize("document", PAGES)
def test_the_outputs_of_a_page_have_the_structure_of_a_real_run(document: str, workspace: Workspace) -> None:
    commands = list_recorded(document)
    check_outputs(commands, run_commands(commands, *workspace.reset(document)))


def test_a_session_has_the_directory_of_servers_beside_its_own(tmp_path: Path) -> None:
    lines = ("mkdir -p /srv/models", "echo x > /srv/models/a", "ls -d /srv/models/a", "false")
    fence = fences(TUTORIAL, "console")[0]
    commands = [Recorded(fence, (PROMPT + line,), ()) for line in lines]
    (tmp_path / "food").mkdir()
    with open_session(tmp_path / "food", tmp_path / "cache", commands) as session:
        results = [session.run(command) for command in commands]
    assert results == [([], 0), ([], 0), (["/srv/models/a"], 0), ([], 1)]
    assert (tmp_path / "srv/models/a").read_text() == "x\n"


def test_a_command_may_fail_only_where_the_page_shows_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "food").mkdir()

    def run(*lines: str) -> list[list[str]]:
        commands = split_plain(Fence("a.md", 3, "sh", "\n".join(lines)))
        return run_commands(commands, tmp_path / "food", tmp_path / "cache")

    assert run("ls missing", "echo $?")[1] == ["2"]
    for following in ([], ["echo x"]):
        with pytest.raises(
            CommandFailed, match=r"^a\.md:3: `ls missing` ended with exit code 2:\nls: .*missing"
        ):
            run("ls missing", *following)

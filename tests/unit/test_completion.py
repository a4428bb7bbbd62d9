"""Completion of commands, options and values, by click's protocol for bash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

import hubhead
from serving.commands.common.completion import VARIABLE

Complete = Callable[[str], list[str]]

CONFIG = """model_config_list { config {
  name: "food" base_path: "/srv/models/food" model_platform: "tensorflow"
  version_labels { key: "blue" value: 3 }
  version_labels { key: "green" value: 4 }
  version_labels { key: "re\\033[31md" value: 4 }
} }
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for version in ("3", "4", "10", "tmp-5"):
        (tmp_path / "models" / "food" / version).mkdir(parents=True)
    (tmp_path / "model.config").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models" / "food"


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch) -> Complete:
    """Return a function that returns the lines for a command line, of which the last word is incomplete."""

    def complete_words(words: str) -> list[str]:
        line = f"hubhead {words}"
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        return BashComplete(hubhead.hubhead, {}, "hubhead", VARIABLE).complete().split()

    return complete_words


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("re", ["plain,rescore"]),
        ("doc", ["plain,doctor"]),
        ("embeddings co", ["plain,compact"]),
        ("completion z", ["plain,zsh"]),
        ("score --print", ["plain,--print_config"]),
        ("train --near_dup", ["plain,--near_duplicates"]),
        ("train --near_duplicates t", ["plain,together"]),
        ("train --tfhub_module mobilenet_v2_100_2", ["plain,mobilenet_v2_100_224"]),
        ("train --tfhub_module ./my", ["file,./my"]),
        ("backbone show efficientnet_lite0_", ["plain,efficientnet_lite0_260"]),
        ("score --model mod", ["dir,mod"]),
        ("score --manifest up", ["file,up"]),
        ("predict up", ["file,up"]),
        ("promote mod", ["dir,mod"]),
        ("promote --model_base_path models/food --model_version ", ["plain,10", "plain,4", "plain,3"]),
        ("rollback --model_base_path models/food --to 1", ["plain,10"]),
        ("rollback --to ", []),
        ("promote --model_config_file model.config --label ", ["plain,blue", "plain,green"]),
        ("promote --model_config_file missing --label ", ["plain,stable", "plain,canary"]),
        ("predict --label c", ["plain,canary"]),
        ("compare stable ", ["plain,stable", "plain,canary"]),
        ("status --nothing such --label s", ["plain,stable"]),
    ],
)
def test_commands_options_and_values_are_completed(
    words: str, expected: list[str], models: Path, complete: Complete
) -> None:
    assert complete(words) == expected


def test_all_commands_are_completed_in_order(complete: Complete) -> None:
    assert complete("") == [f"plain,{name}" for name in hubhead.COMMANDS]

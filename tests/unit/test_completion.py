"""Completion of commands, options and values, by click's protocol for bash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import hubhead
from serving.commands.common.completion import VARIABLE
from serving.commands.common.completion_scripts import SHELLS, join_word_breaks

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
    """Return a function that returns `kind,value` for a command line with an incomplete last word."""

    def complete_words(words: str) -> list[str]:
        line = f"hubhead {words}"
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        answer = SHELLS["bash"](hubhead.hubhead, {}, "hubhead", VARIABLE).complete()
        return [",".join(line.split("\t")[:2]) for line in answer.splitlines()]

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
        ("train --near_duplicates = t", ["plain,together"]),
        ("train --near_duplicates =", ["plain,report", "plain,together", "plain,ignore"]),
        ("train --image_dir = pho", ["dir,pho"]),
        ("promote --model_base_path = models/food --model_version ", ["plain,10", "plain,4", "plain,3"]),
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


def test_words_that_bash_split_are_one_word_again() -> None:
    typed = ["--server", "localhost", ":", "8500", "--table", "a", "=", "b.csv", "--top_k", "=", "3", "x"]
    assert join_word_breaks(typed) == ["--server", "localhost:8500", "--table", "a=b.csv", "--top_k=3", "x"]
    assert join_word_breaks(["--model", "gs", ":", "//bucket", "--engine", "="]) == [
        "--model",
        "gs://bucket",
        "--engine=",
    ]
    assert join_word_breaks(["predict", ""]) == ["predict", ""]


def test_description_is_one_line_without_tabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "hubhead ")
    monkeypatch.setenv("COMP_CWORD", "1")
    for shell in ("bash", "zsh"):
        lines = SHELLS[shell](hubhead.hubhead, {}, "hubhead", VARIABLE).complete().splitlines()
        assert [line.split("\t")[1] for line in lines] == list(hubhead.COMMANDS)
        assert all(line.count("\t") == 2 for line in lines)

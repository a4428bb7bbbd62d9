"""Configuration files: precedence, errors, --print_config and what is recorded, for every command."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from hubhead import hubhead
from serving.commands.common.command import COMMON, Command, Group
from serving.commands.common.config_file import (
    describe_configuration,
    get_configuration,
    key_of,
    list_options,
)
from serving.commands.predict import predict
from serving.commands.server_options import is_given
from trainer.commands.train import train

Run = Callable[..., Result]


def walk(
    command: click.Command, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield each command below a group, with the words that name it."""
    if not isinstance(command, click.Group):
        yield words, command
        return
    for name in command.list_commands(click.Context(command)):
        child = command.get_command(click.Context(command), name)
        assert child is not None
        yield from walk(child, (*words, name))


COMMANDS = dict(walk(hubhead))

EXAMPLES: dict[str, list[Any]] = {
    "value_range": ["-1,1"],
    "share": ["3/8"],
    "max_rejected": ["5%"],
    "metrics_push": ["@push.txt"],
    "header": ["@headers.txt"],
    "partition_by": ["label"],
    "cache_dir": ["."],
    "output_dir": ["."],
}
"""Values of options with a syntax of their own."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that writes a configuration file and runs a command with it."""
    monkeypatch.chdir(tmp_path)

    def run_command(words: str, text: str | None = None, *arguments: str) -> Result:
        config = []
        if text is not None:
            Path("config.toml").write_text(text, "utf-8")
            config = ["--config", "config.toml"]
        return CliRunner().invoke(hubhead, [*words.split(), *config, *arguments])

    return run_command


def choose_value(option: click.Option) -> list[Any]:
    """Return words after an option that it accepts and that differ from its default; of a flag, none."""
    kind = option.type
    if example := EXAMPLES.get(key_of(option)):
        return example
    if option.is_flag:
        return []
    if isinstance(kind, click.Choice):
        return [next(one for one in kind.choices if one not in ("", option.default))]
    if isinstance(kind, type(click.BOOL)):
        return ["false" if option.default else "true"]
    if isinstance(kind, type(click.INT) | type(click.FLOAT)):
        low = getattr(kind, "min", None) or 0
        high = getattr(kind, "max", None)
        number = low + 1 if high is None or low + 1 < high else (low + high) / 2
        return [str(number + 1 if number == option.default and high is None else number)]
    return ["photo.txt"]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_the_common_options(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert isinstance(command, Command)
    assert set(COMMON) <= {option.name for option in command.params}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_printed_configuration_read_back_prints_itself(words: tuple[str, ...], run: Run) -> None:
    name = " ".join(words)
    template = run(name, None, "--print_config")
    assert template.exit_code == 0, template.output
    again = run(name, template.stdout, "--print_config")
    assert (again.exit_code, again.stdout) == (0, template.stdout)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_of_a_command_round_trips_through_a_file(words: tuple[str, ...], run: Run) -> None:
    name, options = " ".join(words), list_options(COMMANDS[words])
    for file in ("photo.txt", "push.txt", "headers.txt"):
        Path(file).write_text("https://push.example.org\n")
    shown = {key: option for key, option in options.items() if not option.hidden and key != "quiet"}
    given = [word for option in shown.values() for word in (option.opts[-1], *choose_value(option))]
    printed = run(name, None, *given, "--print_config")
    assert printed.exit_code == 0, printed.output
    table: Any = tomllib.loads(printed.stdout)
    for word in words:
        table = table[word]
    assert table.keys() == {*shown, "quiet"}
    again = run(name, printed.stdout, "--print_config")
    assert (again.exit_code, again.stdout) == (0, printed.stdout)


def test_command_line_overrides_the_file_and_the_file_the_default(run: Run) -> None:
    text = "[predict]\ntop_k = 3\ntimeout = 2\n"
    table = tomllib.loads(run("predict", text, "--timeout", "7", "--print_config").stdout)["predict"]
    assert (table["top_k"], table["timeout"], table["engine"]) == (3, 7.0, "auto")


def test_environment_overrides_the_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBHEAD_MODEL", "from_environment")
    text = '[status]\nmodel_name = "from_file"\n'
    printed = run("status", text, "--print_config").stdout
    assert tomllib.loads(printed)["status"]["model_name"] == "from_environment"


def test_default_of_a_command_differs_from_that_of_the_shared_option_and_can_be_set(run: Run) -> None:
    assert tomllib.loads(run("score", None, "--print_config").stdout)["score"]["timeout"] == 300
    changed = run("score", "[score]\ntimeout = 5\n", "--print_config").stdout
    assert tomllib.loads(changed)["score"]["timeout"] == 5


@pytest.mark.parametrize(
    ("words", "text", "expected"),
    [
        ("predict", "[predict]\ntop = 3\n", "unknown key 'top'. Did you mean 'top_k'?"),
        ("train", '[train]\nimage-dir = "x"\n', "Did you mean 'image_dir'?"),
        ("predict", "[prdict]\ntop_k = 3\n", "[prdict] is not a command. Did you mean 'predict'?"),
        ("embeddings check", "[embeddings.chekc]\nrepair = true\n", "[embeddings.chekc] is not a command."),
        ("embeddings check", "[embeddings]\nrepair = true\n", "such as [embeddings.check]"),
        ("predict", "top_k = 3\n", "such as [predict]"),
        ("predict", 'predict = "x"\n', "such as [predict]"),
        ("predict", '[predict]\ntop_k = "3"\n', '[predict] top_k = "3": expected a whole number'),
        ("predict", "[predict]\ntop_k = true\n", "top_k = true: expected a whole number"),
        ("predict", "[predict]\ntop_k = 0\n", "top_k = 0: 0 is not in the range"),
        ("predict", "[predict]\nengine = 1\n", "engine = 1: expected a text in quotes"),
        ("predict", '[predict]\nengine = "gpu"\n', "'gpu' is not one of 'auto'"),
        ("predict", '[predict]\ndownscale = "yes"\n', "expected true or false"),
        ("predict", "[predict]\ntimeout = 2026-01-01\n", "a date or time: expected a number"),
        ("score", '[score]\nmodel = "models/food"\n', "expected a list"),
        ("score", "[score]\nmodel = [3]\n", "expected a text in quotes"),
        ("score", '[score]\nmax_rejected = "many"\n', "neither a count such as 20"),
        ("train", '[train]\nhead = "cosine"\n', "cosine was removed"),
        ("predict", '[predict]\nphotos = ["a.jpg"]\n', "photos is an argument"),
        ("predict", '[predict]\nconfig = "other.toml"\n', "unknown key 'config'"),
        ("predict", "[predict]\nhelp = true\n", "unknown key 'help'"),
        ("predict", "[predict\n", "config.toml is not TOML"),
        ("predict", "[[predict]]\ntop_k = 3\n", "such as [predict]"),
        ("predict", f"[predict]\nx = {'[' * 5000}{']' * 5000}\n", "config.toml has too many lists in lists"),
        ("predict", "[predict]\ntimeout = nan\n", "timeout = nan: expected a number"),
    ],
)
def test_wrong_files_are_usage_errors_that_name_file_key_and_remedy(
    words: str, text: str, expected: str, run: Run
) -> None:
    result = run(words, text, "--print_config")
    assert result.exit_code == 2
    assert "config.toml" in result.stderr
    assert expected in result.stderr


def test_file_that_is_missing_or_not_utf8_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'[predict]\nlabel = "k\xe4se"\n')
    latin = run("predict", None, "--config", "latin.toml")
    assert (latin.exit_code, "latin.toml, line 2: byte 11 is not UTF-8" in latin.stderr) == (2, True)
    missing = run("predict", None, "--config", "missing.toml")
    assert (missing.exit_code, "missing.toml" in missing.stderr) == (2, True)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_file_as_an_editor_or_powershell_writes_it_is_read(encoding: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "windows.toml").write_bytes('[predict]\r\nlabel = "käse"\r\n'.encode(encoding))
    printed = run("predict", None, "--config", "windows.toml", "--print_config").stdout
    assert tomllib.loads(printed)["predict"]["label"] == "käse"


def test_directory_as_a_file_is_a_usage_error(run: Run) -> None:
    result = run("predict", None, "--config", ".")
    assert (result.exit_code, "is a directory" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        "predict --timeout",
        "train --precision",
        "train --assert_accuracy_at_least",
        "validate --bundle . --max_size_ratio",
    ],
)
def test_nan_as_a_number_is_a_usage_error(words: str, run: Run) -> None:
    result = run(words, None, "nan")
    assert (result.exit_code, "nan is not a number" in result.stderr) == (2, True), result.output


def test_tables_of_other_commands_are_not_read(run: Run) -> None:
    result = run("predict", "[train]\nno_such_option = 1\n[predict]\ntop_k = 2\n", "--print_config")
    assert tomllib.loads(result.stdout)["predict"]["top_k"] == 2


def test_value_of_the_file_that_is_no_default_counts_as_given(run: Run) -> None:
    for text, refused in (("timeout = 3\n", True), ("timeout = 10\n", False)):
        result = run("predict", f'[predict]\n{text}model = "nowhere"\n', "photo.jpg")
        assert (
            "--timeout requires --server. It is set in the configuration file." in result.stderr
        ) is refused


def test_wrong_secret_is_not_repeated(run: Run) -> None:
    result = run("status", '[status]\nheader = "authorization=hunter2"\n')
    assert result.exit_code == 2
    assert "hunter2" not in result.output


def test_secrets_are_left_out_of_the_printed_configuration(run: Run) -> None:
    text = (
        '[score]\nheader = ["authorization=hunter2"]\nmetrics_push = "https://a:hunter2@push"\n'
        'manifest = "https://photos.example.org/all.csv?signature=hunter2"\n'
    )
    printed = run("score", text, "--print_config").stdout
    assert "hunter2" not in printed
    assert "# Left out, since it may be secret: manifest, metrics_push, header\n" in printed
    kept = run("status", '[status]\nheader = ["@headers.txt"]\n', "--print_config").stdout
    assert tomllib.loads(kept)["status"]["header"] == ["@headers.txt"]


def test_flags_of_retrain_in_a_file_are_translated(run: Run) -> None:
    printed = run("train", '[train]\nbottleneck_dir = "/srv/store"\n', "--print_config")
    assert tomllib.loads(printed.stdout)["train"]["embedding_store"] == "/srv/store"
    assert "--bottleneck_dir /srv/store is taken as --embedding_store" in printed.stderr


@pytest.mark.parametrize("words", ["score", "train", "rescore"])
def test_required_options_are_required_unless_the_configuration_is_printed(words: str, run: Run) -> None:
    assert run(words, None, "--print_config").exit_code == 0
    assert run(words, "[score]\n").exit_code == 2
    assert run("status", None, "--header", "--print_config").exit_code == 2  # here it is a value


def test_record_of_a_command_has_its_options_without_secrets_and_omitted_ones(tmp_path: Path) -> None:
    recorded: list[dict[str, Any]] = []

    @click.command(cls=Command)
    @click.option("--header", multiple=True)
    @click.option("--photos", default="uploads")
    @click.option("--output", type=click.Path(path_type=Path))
    @click.pass_context
    def job(context: click.Context, **_options: Any) -> None:
        recorded.append(describe_configuration(context, omitted={"output", "quiet", "verbose"}))

    group = Group("hubhead", commands=[job])
    result = CliRunner().invoke(group, ["job", "--header", "a=hunter2", "--output", "out"])
    assert result.exit_code == 0, result.output
    assert json.loads(json.dumps(recorded)) == [{"job": {"photos": "uploads"}}]


def test_table_of_a_command_that_is_the_program_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[train]\ntop_k = 3\n[predict]\ntop_k = 2\n")
    printed = CliRunner().invoke(predict, ["--config", str(file), "--print_config"]).stdout
    assert tomllib.loads(printed)["predict"]["top_k"] == 2


def test_option_of_a_context_without_configuration_is_given_by_the_command_line_alone() -> None:
    with train.make_context("train", ["--image_dir", "photos"]) as context:
        assert is_given(context, "image_dir")
        assert not is_given(context, "top_k")
        assert get_configuration(context).values["image_dir"] == "photos"


@pytest.mark.parametrize("words", ["--config config.toml train", "embeddings --quiet check"])
def test_common_option_before_the_command_is_an_error_that_says_where_it_belongs(
    words: str, run: Run
) -> None:
    result = run(words)
    assert result.exit_code == 2
    assert "is an option of commands: hubhead" in result.stderr
    assert "No such option '--wrong'" in run("--wrong train").stderr


def test_help_of_every_command_names_the_common_options(run: Run) -> None:
    for words in ("predict", "embeddings check", "completion"):
        shown = run(words, None, "--help").stdout
        assert all(re.search(rf"--{name}\b", shown) for name in COMMON)

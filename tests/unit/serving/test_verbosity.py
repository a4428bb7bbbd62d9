"""--quiet and --verbose: progress and messages of a command, and where they go."""

from __future__ import annotations

import logging
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from batch.monitoring.progress import progress_bar
from batch.monitoring.stats import Progress
from serving.commands.common.command import Command
from serving.commands.output import Verbosity, echo, is_quiet, say, use_verbosity, warn

_log = logging.getLogger("trainer.steps")


@click.command(cls=Command)
def work() -> None:
    """Print something of each kind."""
    echo("result")
    say("progress")
    warn("careful")
    _log.info("detail")


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(work, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == "result\n"
    return result


def test_progress_is_shown_unless_quiet() -> None:
    assert run().stderr == "progress\ncareful\n"
    assert run("--quiet").stderr == "careful\n"
    assert not is_quiet()  # for what the process does next


def test_messages_of_hubhead_are_shown_if_verbose(caplog: pytest.LogCaptureFixture) -> None:
    run()
    assert not caplog.messages
    run("--verbose")
    assert "detail" in caplog.messages
    assert any(text.startswith("ended after") for text in caplog.messages)
    assert logging.getLogger().level > logging.DEBUG  # libraries stay as they are


def test_quiet_and_verbose_exclude_each_other_but_override_the_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(work, ["--quiet", "--verbose"])
    assert (result.exit_code, "exclude each other" in result.stderr) == (2, True)
    file = tmp_path / "config.toml"
    file.write_text("[work]\nquiet = true\n")
    assert run("--config", str(file)).stderr == "careful\n"
    assert run("--config", str(file), "--verbose").stderr.startswith("progress\n")
    file.write_text("[work]\nquiet = true\nverbose = true\n")
    assert CliRunner().invoke(work, ["--config", str(file)]).exit_code == 2


def test_command_line_without_secrets_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["hubhead", "work", "--s3_secret_access_key", "hunter2", "https://a:hunter2@b"]
    )
    run("--verbose")
    assert any(text.startswith("arguments: work") for text in caplog.messages)
    assert "hunter2" not in caplog.text


def test_progress_of_photos_is_not_shown_if_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with use_verbosity(Verbosity.QUIET), progress_bar(not is_quiet()) as report:
        report(Progress(0, 10, 0))
        report(Progress(10, 10, 0))
    assert capsys.readouterr() == ("", "")

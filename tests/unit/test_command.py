"""Exit codes and error output of commands."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable

import click
import pytest

from serving.commands.main import run
from serving.errors import BundleError, HubheadError, ModelNotFound

Outcome = tuple[int | str | None, str, str]


@pytest.fixture
def run_body(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return a function that runs a command with the given body; it returns exit code, stdout and stderr."""

    def run_command(body: Callable[[], object], *arguments: str) -> Outcome:
        @click.command()
        @click.option("--image_dir")
        def command(image_dir: str | None) -> object:
            return body()

        monkeypatch.setattr(sys, "argv", ["hubhead", *arguments])
        with pytest.raises(SystemExit) as exit_:
            run(command, "hubhead")
        captured = capsys.readouterr()
        return exit_.value.code, captured.out, captured.err

    return run_command


def raise_(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


def test_successful_command_exits_with_0(run_body: Callable[..., Outcome]) -> None:
    assert run_body(lambda: click.echo("done")) == (0, "done\n", "")


@pytest.mark.parametrize("code", [0, 3, 4])
def test_return_value_is_the_exit_code(run_body: Callable[..., Outcome], code: int) -> None:
    assert run_body(lambda: code)[0] == code


@pytest.mark.parametrize("kind", [HubheadError, BundleError, ModelNotFound])
def test_hubhead_error_is_one_line_with_its_remedy(
    run_body: Callable[..., Outcome], kind: type[HubheadError]
) -> None:
    found = run_body(raise_(kind("models/food is no bundle.", remedy="Make one.")))
    assert found == (1, "", "hubhead: models/food is no bundle. Make one.\n")


def test_error_class_determines_the_exit_code(run_body: Callable[..., Outcome]) -> None:
    class GateRejected(HubheadError):
        exit_code = 4

    assert run_body(raise_(GateRejected("worse than what is live.")))[0] == 4


def test_error_that_quotes_a_binary_file_is_shortened(run_body: Callable[..., Outcome]) -> None:
    error = HubheadError(f"m.csv: no column image in {'x' * 1_000_000}.", remedy="Rename it.")
    code, _, err = run_body(raise_(error))
    assert code == 1
    assert len(err) < 5000
    assert err.startswith("hubhead: m.csv: no column image in xxx")
    assert err.endswith("xxx. Rename it.\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupted_command_exits_with_130(run_body: Callable[..., Outcome], error: BaseException) -> None:
    code, out, err = run_body(raise_(error))
    assert (code, out) == (130, "")
    assert err.strip() == "Interrupted."


def test_mistyped_flag_exits_with_2_and_a_suggestion(run_body: Callable[..., Outcome]) -> None:
    code, out, err = run_body(lambda: None, "--image_dri", "x")
    assert (code, out) == (2, "")
    assert "--image_dir" in err


def test_unexpected_exception_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    command = click.Command("broken", callback=raise_(ZeroDivisionError()))
    monkeypatch.setattr(sys, "argv", ["hubhead"])
    with pytest.raises(ZeroDivisionError):
        run(command, "hubhead")


@pytest.mark.parametrize("path", ["photos\x1b[31m", b"photos\xff", "x" * 5000])
def test_an_error_of_the_system_about_a_path_is_one_line(
    run_body: Callable[..., Outcome], path: str | bytes
) -> None:
    code, out, err = run_body(raise_(PermissionError(errno.EACCES, "Permission denied", path)))
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"hubhead: (photos\\u\S+|xxx.*xxx) cannot be used: Permission denied\. Check .*\n", err
    )
    assert len(err) < 4500


def test_an_error_of_the_system_without_a_path_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    command = click.Command("broken", callback=raise_(OSError(errno.EINVAL, "Invalid argument")))
    monkeypatch.setattr(sys, "argv", ["hubhead"])
    with pytest.raises(OSError, match="Invalid argument"):
        run(command, "hubhead")


def test_usage_errors_show_no_control_characters(run_body: Callable[..., Outcome]) -> None:
    code, out, err = run_body(lambda: None, "--image\x1b[31m_dir")
    assert (code, out) == (2, "")
    assert "\x1b" not in err
    assert "image" in err


def test_messages_with_colour_are_escaped_and_without_secrets(
    run_body: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = HubheadError("https://a:hunter2@host/x\x1b[31m cannot be read.")
    code, _, err = run_body(raise_(error))
    assert (code, "hunter2" in err, "\x1b" in err) == (1, False, False)

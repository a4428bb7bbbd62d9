"""How commands end: the exit code and the one line of each outcome."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click
import pytest

from serving.commands.main import run
from serving.errors import BundleError, HubheadError, ModelNotFound

Ending = tuple[int | str | None, str, str]


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ending]:
    """Run a command whose body is given: its exit code, stdout and stderr."""

    def end(body: Callable[[], object], *arguments: str) -> Ending:
        @click.command()
        @click.option("--image_dir")
        def command(image_dir: str | None) -> object:
            return body()

        monkeypatch.setattr(sys, "argv", ["hubhead", *arguments])
        with pytest.raises(SystemExit) as exit_:
            run(command, "hubhead")
        captured = capsys.readouterr()
        return exit_.value.code, captured.out, captured.err

    return end


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


def test_a_command_that_does_its_work_ends_with_0(ending: Callable[..., Ending]) -> None:
    assert ending(lambda: click.echo("done")) == (0, "done\n", "")


@pytest.mark.parametrize("code", [0, 3, 4])
def test_a_command_may_choose_its_code(ending: Callable[..., Ending], code: int) -> None:
    assert ending(lambda: code)[0] == code


@pytest.mark.parametrize("kind", [HubheadError, BundleError, ModelNotFound])
def test_an_error_of_ours_is_one_line_with_its_remedy(
    ending: Callable[..., Ending], kind: type[HubheadError]
) -> None:
    found = ending(raising(kind("models/food is no bundle.", remedy="Make one.")))
    assert found == (1, "", "hubhead: models/food is no bundle. Make one.\n")


def test_an_error_brings_the_exit_code_of_its_class(ending: Callable[..., Ending]) -> None:
    class GateRejected(HubheadError):
        exit_code = 4

    assert ending(raising(GateRejected("worse than what is live.")))[0] == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupted_command_ends_with_130(ending: Callable[..., Ending], error: BaseException) -> None:
    code, out, err = ending(raising(error))
    assert (code, out) == (130, "")
    assert err.strip() == "Interrupted."


def test_a_mistyped_flag_ends_with_2_and_a_suggestion(ending: Callable[..., Ending]) -> None:
    code, out, err = ending(lambda: None, "--image_dri", "x")
    assert (code, out) == (2, "")
    assert "--image_dir" in err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    command = click.Command("broken", callback=raising(ZeroDivisionError()))
    monkeypatch.setattr(sys, "argv", ["hubhead"])
    with pytest.raises(ZeroDivisionError):
        run(command, "hubhead")

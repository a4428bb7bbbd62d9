"""Commands in a process of their own: a reader that closes the pipe, an odd encoding or home directory."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.repository import REPO


def test_broken_pipe_exits_silently_with_1() -> None:
    body = "import click\nfor number in range(100_000): click.echo(number)"
    call = f"""
import click
from serving.commands.main import run
@click.command()
def command():
    {body.replace(chr(10), chr(10) + "    ")}
run(command, "hubhead")
"""
    with subprocess.Popen(
        [sys.executable, "-c", call], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(timeout=30) == 1
    assert stderr == b""


COMMAND = """
import os, sys, click
from serving.commands.main import run
@click.command()
@click.argument("file")
def command(file):
    with open(file, "w") as opened:
        for number in (1, 2):
            try:
                os.write(number, b"of a library")
            except OSError:
                pass
        sys.stderr.isatty(), sys.stdout.buffer.write(b"rows")
        opened.write(f"stdin: {sys.stdin.buffer.read()}")
    click.echo("done " * 10_000)
run(command, "hubhead")
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_replaced(tmp_path: Path, closed: str) -> None:
    run = f'exec "$@" {closed}'
    arguments = ["sh", "-c", run, "sh", sys.executable, "-c", COMMAND, tmp_path / "file"]
    done = subprocess.run(arguments, input=b"", capture_output=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "stdin: b''"


@pytest.mark.parametrize("arguments", [("file",), ("--help",)])
def test_stdout_on_a_full_disk_is_an_error(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.endswith(
        b"hubhead: Cannot write the output: No space left on device. Free space, or write it elsewhere.\n"
    )
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
@pytest.mark.parametrize("home", [None, "/proc/nowhere"], ids=["no home", "unwritable home"])
def test_names_that_stdout_cannot_encode_are_escaped(tmp_path: Path, encoding: str, home: str | None) -> None:
    base = tmp_path / os.fsdecode("Käse 日\x1b[31m".encode() + b"\xff")
    base.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    environment |= {"PYTHONIOENCODING": encoding} | ({"HOME": home} if home else {})
    done = subprocess.run(
        [sys.executable, "-m", "hubhead", "models", "--model_base_path", base],
        env=environment,
        capture_output=True,
        cwd=REPO,
        check=True,
    )
    assert not done.stderr
    assert b"\x1b" not in done.stdout
    assert rb"\u001b[31m\udcff has no versions." in done.stdout
    # click takes ASCII for a missing locale, and writes UTF-8.
    assert "Käse" in done.stdout.decode(encoding.replace("ascii", "utf-8"))


def run_on_terminal(*arguments: str, **variables: str) -> str:
    """Run hubhead with stderr on a terminal, and return what it shows there."""
    ours, theirs = os.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | variables
    with subprocess.Popen(
        [sys.executable, "-m", "hubhead", *arguments], stderr=theirs, env=environment, cwd=REPO
    ) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # Linux reports the end of a terminal as an error
            while chunk := os.read(ours, 1000):
                shown += chunk
        process.wait(60)
    os.close(ours)
    return shown.decode()


def test_errors_are_coloured_on_a_terminal_unless_no_color_is_set() -> None:
    failing = ("predict", "photo.jpg", "--model", "no\x1b[7mwhere")
    for variables, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)):
        shown = run_on_terminal(*failing, **variables)
        assert "does not exist" in shown
        assert ("\x1b[31m" in shown) is coloured
        assert "\x1b[7m" not in shown


def test_verbose_shows_the_traceback_of_an_error_and_otherwise_there_is_none() -> None:
    failing = [sys.executable, "-m", "hubhead", "predict", "photo.jpg", "--model", "nowhere"]
    for flags, expected in (([], False), (["--verbose"], True)):
        done = subprocess.run([*failing, *flags], capture_output=True, text=True, cwd=REPO, check=False)
        assert done.returncode == 1
        assert "nowhere does not exist" in done.stderr
        assert ("Traceback" in done.stderr) is expected

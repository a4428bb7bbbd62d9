"""How commands end: the exit code and the one line of each outcome."""

from __future__ import annotations

import subprocess
import sys


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
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
        said = process.stderr.read()
        assert process.wait(timeout=30) == 1
    assert said == b""

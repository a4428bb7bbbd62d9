"""Exit of a command whose reader closes the pipe, in a process of its own."""

from __future__ import annotations

import subprocess
import sys


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

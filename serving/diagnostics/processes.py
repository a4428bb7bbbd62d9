"""Programs that a check runs, each with a time limit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PROGRAM_SECONDS = 20.0
PYTHON_SECONDS = 180.0
"""Time limit of the import of a library: TensorFlow takes seconds, on a busy machine a minute."""


@dataclass(frozen=True)
class Outcome:
    """Result of a program.

    Attributes:
        output: what it wrote on stdout and, below, on stderr.
        problem: why it failed, in one phrase; "" if it did not.
    """

    output: str
    problem: str = ""


def run_program(arguments: Sequence[str], seconds: float = PROGRAM_SECONDS) -> Outcome:
    """Run a program to its end, or kill it at the time limit."""
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome("", f"it took longer than {seconds:.0f} s")
    except OSError as error:
        return Outcome("", f"it cannot be started: {error.strerror}")
    output = done.stdout + done.stderr
    if done.returncode < 0:
        return Outcome(output, f"it was ended by {_name_signal(-done.returncode)}")
    if done.returncode:
        lines = output.strip().splitlines()
        return Outcome(output, lines[-1] if lines else f"it ended with exit code {done.returncode}")
    return Outcome(output)


def run_python(code: str, seconds: float = PYTHON_SECONDS) -> tuple[dict[str, Any], str]:
    """Run Python code in a process of its own, whose last line of output is a JSON object.

    Returns:
        The object, empty if it failed; and why it failed, or "".
    """
    # -P: files of the working directory, such as a json.py, are not modules.
    outcome = run_program([sys.executable, "-P", "-c", code], seconds)
    if outcome.problem:
        return {}, outcome.problem
    for line in reversed(outcome.output.splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found, ""
    return {}, "it had no result"


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

"""A shell that runs the commands of one document and returns what they print."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.diagnostics.machine import is_port_free
from tests.support.docs.shell import Recorded
from tests.support.repository import REPO

COLUMNS = 88

_END = "\x1e"
"""Written by the shell after each command, before and after its exit code."""

_PORT = re.compile(r"(?:localhost:|port[= ])(\d{4,5})\b")
_QUIET_SECONDS = 2.0
_SERVING = "Serving model"
"""Beginning of the line of `hubhead serve` that its models are loaded."""

_START_SECONDS = 120.0
_STOP_SECONDS = 30.0

_NOT_SHOWN = (
    re.compile(r"^[\d,]+ photos listed"),
    re.compile(r"^[\d,]+ of [\d,]+ photos \("),
)
"""Lines of progress, whose number depends on the machine."""

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")

SERVERS = "/srv"
"""Directory of what servers read, in the documents; a session has it beside its own directory."""

HOME, USER, HOST = "/home/annette", "annette", "laptop"
"""The user that the recorded outputs show; the name is as long as that of a temporary directory in /tmp."""


class CommandFailed(Exception):
    """A command of a document ended with an exit code that the document does not show."""


def run_commands(commands: Sequence[Recorded], directory: Path, cache: Path) -> list[list[str]]:
    """Run commands in a directory, and print how long each of them takes.

    Returns:
        The lines that each command prints.

    Raises:
        CommandFailed: a command ended with another exit code than 0, and the next one is not `echo $?`.
    """
    outputs: list[list[str]] = []
    with open_session(directory, cache, commands) as session:
        for index, command in enumerate(commands):
            began = time.monotonic()
            output, code = session.run(command)
            print(f"  {time.monotonic() - began:5.1f} s  {command.command}", flush=True)
            shows_code = any(next_.command == "echo $?" for next_ in commands[index + 1 : index + 2])
            if code and not shows_code:
                lines = "\n".join(output)
                place = f"{command.fence.place}: " if command.fence.document else ""
                raise CommandFailed(f"{place}`{command.command}` ended with exit code {code}:\n{lines}")
            outputs.append(output)
    return outputs


@contextmanager
def open_session(directory: Path, cache: Path, commands: Iterable[Recorded]) -> Iterator[Session]:
    """Open a shell in `directory` for these commands; what they leave running is stopped at the end."""
    session = Session(directory, cache, commands)
    try:
        yield session
    finally:
        session.close()


class Session:
    """A shell whose commands share directory, variables and background processes.

    Args:
        directory: where the commands run.
        cache: value of HUBHEAD_CACHE_DIR.
        commands: all commands that will run, of which those in use get other ports.
    """

    def __init__(self, directory: Path, cache: Path, commands: Iterable[Recorded]) -> None:
        self._directory = directory
        self._cache = cache
        self._ports = _choose_ports(command.command for command in commands)
        self._servers = directory.parent / SERVERS.strip("/")
        self._servers.mkdir(exist_ok=True)
        environment = {
            "HOME": os.environ.get("HOME", ""),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": str(REPO),
            "LANG": "C.UTF-8",
            "COLUMNS": str(COLUMNS),
            "LOGNAME": USER,
            "HUBHEAD_CACHE_DIR": str(cache),
        }
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, recorded: Recorded) -> tuple[list[str], int]:
        """Run a command; returns the lines that it prints and its exit code."""
        command = _replace(recorded.command, self._ports)
        command = re.sub(rf"(?<![\w/.-]){SERVERS}/", f"{self._servers}/", command)
        if recorded.background:
            return self._clean(self._start(command.removesuffix("&").rstrip())), 0
        # (exit N) sets what `echo $?` prints in the next command.
        self._write(
            f"eval {shlex.quote(command)} </dev/null; code=$?; printf '{_END}%d{_END}' $code; (exit $code)"
        )
        output, code = self._read()
        return self._clean(output), code

    def close(self) -> None:
        """End the shell and all that runs in it."""
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGTERM)
        for pipe in (self._shell.stdin, self._shell.stdout):
            if pipe:
                pipe.close()
        self._shell.wait(_STOP_SECONDS)
        deadline = time.monotonic() + _STOP_SECONDS
        while _group_runs(self._shell.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)

    def _start(self, command: str) -> str:
        """Start a command in the background; returns what it prints until it is ready and quiet."""
        log = self._directory.parent / f"background-{time.monotonic_ns()}.log"
        self._write(f"{command} </dev/null >{shlex.quote(str(log))} 2>&1 &\nprintf '{_END}0{_END}'")
        self._read()
        deadline = time.monotonic() + _START_SECONDS
        # A server prints warnings while it loads its models, which may take longer than the pause after them.
        ready = _SERVING if command.startswith("hubhead serve") else ""
        size, changed = 0, time.monotonic()
        while time.monotonic() < deadline and not (
            size and time.monotonic() > changed + _QUIET_SECONDS and ready in log.read_text(encoding="utf-8")
        ):
            time.sleep(0.1)
            if log.stat().st_size != size:
                size, changed = log.stat().st_size, time.monotonic()
        return log.read_text(encoding="utf-8")

    def _write(self, line: str) -> None:
        assert self._shell.stdin
        self._shell.stdin.write(line + "\n")
        self._shell.stdin.flush()

    def _read(self) -> tuple[str, int]:
        assert self._shell.stdout
        text = ""
        while text.count(_END) < 2:
            character = self._shell.stdout.read(1)
            if not character:
                raise CommandFailed(f"The shell ended after: {text}")
            text += character
        output, code, _ = text.split(_END)
        return output, int(code)

    def _clean(self, output: str) -> list[str]:
        """Return the lines without progress, control characters and what is of this machine alone."""
        places = {
            str(self._directory): f"{HOME}/food",
            str(self._cache): f"{HOME}/.cache/hubhead",
            str(self._servers): SERVERS,
            str(REPO): f"{HOME}/hubhead",
            socket.gethostname(): HOST,
        }
        text = _replace(_CONTROL.sub("", output), {port: shown for shown, port in self._ports.items()})
        for found, shown in places.items():
            text = text.replace(found, shown)
        lines = [line.rpartition("\r")[2].rstrip() for line in text.replace("\r\n", "\n").splitlines()]
        return [line for line in lines if not any(pattern.match(line) for pattern in _NOT_SHOWN)]


def _choose_ports(commands: Iterable[str]) -> dict[str, str]:
    """Return a free port for each port in the commands: the same one, or one with as many digits."""
    chosen: dict[str, str] = {}
    for shown in dict.fromkeys(port for command in commands for port in _PORT.findall(command)):
        taken = set(chosen.values())
        last = 10 ** len(shown)
        numbers = (n for n in range(int(shown), min(last, 65536)) if str(n) not in taken and is_port_free(n))
        chosen[shown] = str(next(numbers))
    return chosen


def _replace(text: str, ports: dict[str, str]) -> str:
    return re.sub(r"\b\d{4,5}\b", lambda found: ports.get(found[0], found[0]), text)


def _group_runs(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True

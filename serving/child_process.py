"""A child process that answers binary requests over pipes, one at a time.

Such processes do what must not happen in this one: decoders that a malicious file may take over, and parsing
that would hold the interpreter lock or take memory that is not returned.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # its only use suppresses the AttributeError

_INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""Environment variables that Python itself may need, and that a child therefore inherits."""

_PIPE_BYTES = 1 << 20
"""Capacity of the pipes, where the system allows it: the default takes a thousand turns for 64 MiB."""

Response = tuple[tuple[Any, ...], bytes]
"""Fields of the head of a response, and its body."""

OnLeave = Callable[[Callable[[], None]], object]
"""Registers a function that is to be called once nobody waits for the response any more."""


class ChildProcess:
    """A Python process that runs a script, which reads requests from stdin and writes responses to stdout.

    It inherits neither the environment nor open files, and sees only the packages that the script adds to
    sys.path. The script has to end when stdin does, so that it ends with this process, however that ends.

    Attributes:
        timed_out: True if it was killed because a response took too long.
        abandoned: True if it was killed because nobody waited for the response any more.
    """

    def __init__(
        self, script: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the process.

        Args:
            script: file to run.
            arguments: command-line arguments of the script.
            environment: additional environment variables.

        Raises:
            OSError: it cannot be started.
        """
        self.timed_out = self.abandoned = False
        self._is_idle = True
        self._lock = threading.Lock()  # guards the next one, so that no later request is killed
        self._request: object = None
        # Popen without preexec_fn can use vfork: it copies no memory, and none of our code runs in between.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # One malloc arena only: each further one takes 64 MiB of a limited address space.
            env={name: os.environ[name] for name in _INHERITED if name in os.environ}
            | {"MALLOC_ARENA_MAX": "1"}
            | dict(environment or {}),
        )
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(AttributeError, OSError):  # not Linux, or the user has too many large pipes
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore[arg-type]  # a pipe by Popen's PIPE

    @property
    def ready(self) -> bool:
        """True if it is alive and waits for a request."""
        return self._is_idle and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Exit code; the negative number of a signal that ended it, None while it runs."""
        return self._process.returncode

    def ask(
        self,
        request: Sequence[bytes | bytearray],
        head: struct.Struct,
        seconds: float,
        on_leave: OnLeave | None = None,
    ) -> Response | None:
        """Send a request and return the response; None if the process died, or was killed.

        Args:
            request: parts of the request, sent one after another.
            head: format of the head of a response, whose last field is the length of the body.
            seconds: time after which the process is killed.
            on_leave: registers a function that kills the process while it answers this request.
        """
        requests, responses = self._process.stdin, self._process.stdout
        assert requests is not None
        assert responses is not None
        self._is_idle = False
        self._request = mark = object()
        timer = threading.Timer(seconds, self._kill, (mark, "timed_out"))
        timer.daemon = True
        timer.start()
        if on_leave:
            on_leave(lambda: self._kill(mark, "abandoned"))
        try:
            for part in request:
                requests.write(part)
            requests.flush()
            fields = head.unpack(responses.read(head.size))
            body = responses.read(fields[-1])
        except (BrokenPipeError, struct.error):  # struct.error: it died before the response
            return None
        finally:
            timer.cancel()
            with self._lock:
                self._request = None
        if self.timed_out or self.abandoned or len(body) < fields[-1]:
            return None
        self._is_idle = True
        return fields, body

    def retire(self) -> None:
        """Take no further request: it ends by itself after this response."""
        self._is_idle = False

    def end(self) -> None:
        """Kill it, which is safe because its only state is the request; let one that is ending finish."""
        if not (self._is_idle or self.timed_out or self.abandoned):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)  # it has an exit code of its own then
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # buffered bytes of a request that it did not read
                pipe.close()  # type: ignore[union-attr]  # a pipe by Popen's PIPE
        self._process.wait()

    def _kill(self, request: object, reason: str) -> None:
        with self._lock:
            if self._request is request:
                setattr(self, reason, True)
                self._process.kill()

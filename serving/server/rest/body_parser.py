"""Parsing of heavy request bodies in a process of its own (serving/server/rest/body_parser_process.py).

The parser of JSON holds the interpreter lock until it is done, a second for 10 MB of small values, and what
it returns takes many times the memory of the body. In another process neither affects the other callers: this
one only passes the body on and gets a serialized request message, whose numbers need no parsing. The process
is started for the first heavy body, has a lower priority, and ends when it has been idle for a while,
which returns its memory.
"""

from __future__ import annotations

import logging
import struct
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

import serving
from serving import protos
from serving.child_process import ChildProcess
from serving.server.callers import Caller
from serving.server.rest import messages
from serving.server.rest.paths import ApiRequest
from serving.server.status_error import StatusError, cancelled, resource_exhausted

IDLE_SECONDS = 10.0
"""Time without a request after which the process ends."""

MEMORY_BYTES = 2 << 30
"""Limit on the address space of the process, on Linux; the largest bodies take up to 1 GiB."""

_SCRIPT = Path(__file__).with_name("body_parser_process.py")

_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}
"""Each thread of numpy's linear algebra would take 32 MiB of the address space."""

# The protocol of body_parser_process.py, which must have the same formats.
_REQUEST = struct.Struct(">10sQQQ")
_RESPONSE = struct.Struct(">cQ")

_log = logging.getLogger(__name__)


class BodyParser:
    """A process that parses bodies; safe to use from any thread, but meant for one body at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: ChildProcess | None = None
        self._timer: threading.Timer | None = None
        self._closed = False

    def close(self) -> None:
        """End the process; one that is parsing ends after that."""
        with self._lock:
            self._closed = True
            child = self._take_idle()
        if child:
            child.end()

    def parse(
        self,
        api_request: ApiRequest,
        body: bytearray,
        signatures: Mapping[str, Any],
        seconds: float,
        caller: Caller,
    ) -> tuple[protos.Message, bool]:
        """Return what `messages.parse_request` returns.

        Args:
            api_request: endpoint and model of the request.
            body: body of the request, which is emptied to free its memory.
            signatures: SignatureDefs of the model by signature key.
            seconds: time after which the process is killed.
            caller: sender of the request; the process is killed when it leaves.

        Raises:
            StatusError: errors of `messages.parse_request`; or the process ended, as for lack of memory.
            TimeoutError: parsing takes more than `seconds`.
        """
        declared = protos.SignatureDefMap(signature_def=signatures).SerializeToString()
        spec, verb = api_request.spec.SerializeToString(), api_request.verb
        head = _REQUEST.pack(verb.encode(), len(spec), len(declared), len(body))
        try:
            child = self._acquire()
        except OSError as error:
            raise resource_exhausted(f"The parser of large bodies cannot run: {error.strerror}") from error
        try:
            response = child.ask((head, spec, declared, body), _RESPONSE, seconds, caller.on_leave)
            if response and response[0][0] == b"M":  # it ends by itself
                child.retire()
        finally:
            self._release(child)
            body.clear()
        if response is None:
            raise _explain_end(child)
        return _parse_response(verb, response[0][0], response[1])

    def _acquire(self) -> ChildProcess:
        """Return the idle process if it is alive, or a new one."""
        with self._lock:
            child = self._take_idle()
        if child and not child.ready:
            child.end()
            child = None
        # The packages that this process finds; the other one processes no .pth files.
        packages = [str(Path(serving.__file__).parents[1]), *filter(None, sys.path)]
        return child or ChildProcess(_SCRIPT, [str(MEMORY_BYTES), *dict.fromkeys(packages)], _ENVIRONMENT)

    def _release(self, child: ChildProcess) -> None:
        """Keep a process for the next body, or end it if it failed."""
        with self._lock:
            if child.ready and not self._closed and not self._idle:
                self._idle = child
                self._timer = threading.Timer(IDLE_SECONDS, self._end_idle, (child,))
                self._timer.daemon = True
                self._timer.start()
                return
        child.end()

    def _take_idle(self) -> ChildProcess | None:
        child, self._idle = self._idle, None
        if self._timer:
            self._timer.cancel()
        return child

    def _end_idle(self, child: ChildProcess) -> None:
        with self._lock:
            if self._idle is not child:  # it got a body meanwhile
                return
            self._idle = None
        child.end()


def _explain_end(child: ChildProcess) -> StatusError | TimeoutError:
    """Return the error for a process that ended before its response."""
    if child.abandoned:
        return cancelled()
    if child.timed_out:
        return TimeoutError()
    return resource_exhausted(
        f"The process that parsed the body ended with exit code {child.exit_code}. Send smaller requests."
    )


def _parse_response(verb: str, kind: bytes, content: bytes) -> tuple[protos.Message, bool]:
    """Return the message of a response, and True for rows.

    Raises:
        StatusError: the response is an error.
    """
    if kind in (b"R", b"C"):
        return messages.get_request_class(verb).FromString(content), kind == b"R"
    if kind == b"M":
        raise resource_exhausted("The server has not enough memory for the request.")
    if kind == b"E":
        name, _, text = content.decode(errors="surrogatepass").partition(" ")
        raise StatusError(grpc.StatusCode[name], text)
    traceback = content.decode(errors="replace")  # a bug here, as for requests that this process parses
    _log.error("a body could not be parsed\n%s", traceback)
    raise StatusError(grpc.StatusCode.INTERNAL, traceback.splitlines()[-1])

"""Child process that parses heavy REST bodies. serving/server/rest/body_parser.py runs it as a script.

It imports neither TensorFlow nor the HTTP server. Requests arrive on stdin: the endpoint in 10 bytes, three
lengths in 8 each, and that many bytes of a ModelSpec, a SignatureDefMap and a body. Responses go to stdout: a
kind, the length of the content in 8 bytes, and the content.

| kind | meaning | content |
|---|---|---|
| R | parsed; the response is to be in rows | a PredictRequest, ClassificationRequest or RegressionRequest |
| C | parsed; the response is to be in columns | the same |
| E | rejected | name of the status code, a space, and the text of the error |
| M | out of memory; the process ends after this response | |
| X | a bug | traceback |
"""

from __future__ import annotations

import gc
import os
import signal
import struct
import sys
import traceback
from typing import BinaryIO

NICENESS = 10
"""Decrease in priority: on a busy machine other requests come first."""

# The protocol of body_parser.py, which must have the same formats.
_REQUEST = struct.Struct(">10sQQQ")
_RESPONSE = struct.Struct(">cQ")


def parse(verb: str, spec_content: bytes, signatures_content: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Return kind and content of the response to one request."""
    from serving import protos
    from serving.errors import InputError
    from serving.protos import wire
    from serving.server.rest import messages
    from serving.server.status_error import StatusError

    try:
        spec = protos.ModelSpec.FromString(spec_content)
        signatures = protos.SignatureDefMap.FromString(signatures_content).signature_def
        request, rows = messages.parse_request(verb, spec, body, dict(signatures).get)
        content = request.SerializeToString()
        wire.estimate_memory(content, request.DESCRIPTOR)  # the limits are those of requests over gRPC
        return b"R" if rows else b"C", content
    except StatusError as error:
        return b"E", f"{error.code.name} {error.text}".encode(errors="surrogatepass")
    except InputError as error:
        return b"E", f"RESOURCE_EXHAUSTED {error.what}".encode()
    except MemoryError:
        return b"M", b""
    except Exception:
        return b"X", traceback.format_exc().encode(errors="backslashreplace")


def serve(requests: BinaryIO, responses: BinaryIO) -> None:
    """Parse one body after another, until there are no more or memory has run out."""
    while len(head := requests.read(_REQUEST.size)) == _REQUEST.size:
        verb, *lengths = _REQUEST.unpack(head)
        try:
            kind, content = parse(verb.rstrip(b"\0").decode(), *map(requests.read, lengths))
        except MemoryError:  # the body alone is too large
            kind, content = b"M", b""
        responses.write(_RESPONSE.pack(kind, len(content)))
        responses.write(content)
        responses.flush()
        if kind == b"M":
            return
        del content


def main(arguments: list[str]) -> int:
    """Serve stdin and stdout.

    Args:
        arguments: bytes of memory, directories of packages.
    """
    memory_bytes, *directories = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    responses = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep output that a library prints out of the responses
    sys.path[:0] = directories
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    from serving.photos.converter_process import set_limits
    from serving.server.rest import messages  # noqa: F401 # before the limit, which is for bodies

    set_limits(int(memory_bytes))
    gc.disable()  # it would run again and again while millions of objects are created
    serve(sys.stdin.buffer, responses)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

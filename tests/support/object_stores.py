"""Object stores for tests: servers for the S3 and Google Cloud Storage protocols, and fsspec's memory."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from serving.storage import files
from tests.support.fake_model import free_port

KINDS = ("memory", "s3", "gs")

AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def serve_s3() -> Iterator[str]:
    """Run an S3 server, and provide its address."""
    import logging

    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # a client of an earlier server keeps its address

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def serve_gs() -> Iterator[str]:
    """Run a Google Cloud Storage server, and provide its address. It ignores preconditions."""
    from gcp_storage_emulator.server import create_server
    from gcsfs import GCSFileSystem

    GCSFileSystem.clear_instance_cache()
    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


@contextmanager
def serve_http(directory: Path) -> Iterator[str]:
    """Run a web server of a directory, and provide its address. It does not support ranges."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def count_listings() -> Iterator[list[str]]:
    """Provide the paths of `memory://` that are listed in the block."""
    listed: list[str] = []
    storage = type(fsspec.filesystem("memory"))
    original = storage.ls

    def ls(self: Any, path: str, *arguments: Any, **named: Any) -> Any:
        listed.append(path)
        return original(self, path, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "ls", ls)
        yield listed


def expire_lease(directory: str) -> None:
    """Expire a lease whose holder was interrupted by an exception that stands for a kill of the process."""
    newest = max(name for name in files.list_names(directory) if name.isdecimal())
    entry = json.loads(files.read(f"{directory}/{newest}"))
    files.write(f"{directory}/{newest}", json.dumps({**entry, "time": 0}).encode())


def new_base_path(kind: str, patch: pytest.MonkeyPatch, servers: dict[str, str]) -> str:
    """Return a new base path in a store; `servers` has the addresses of the servers by kind."""
    if kind == "s3":
        for name, value in {**AWS, "AWS_ENDPOINT_URL": servers["s3"]}.items():
            patch.setenv(name, value)
        storage = fsspec.filesystem("s3")
        if not storage.exists("bucket"):
            storage.mkdir("bucket")
    if kind == "gs":
        patch.setenv("STORAGE_EMULATOR_HOST", servers["gs"])
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    return f"{kind}://bucket/{secrets.token_hex(4)}/models/double"


# Otherwise the client of gs:// asks Google over gRPC for the kind of the bucket.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

"""Object stores for tests: servers for the S3 and Google Cloud Storage protocols, and fsspec's memory."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest

from tests.support.fake_model import free_port

KINDS = ("memory", "s3", "gs")

AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def serve_s3() -> Iterator[str]:
    """Run an S3 server, and provide its address."""
    import logging

    from moto.server import ThreadedMotoServer

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

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


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

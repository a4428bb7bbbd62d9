"""Secrets of a job: they are used where they are needed, and no file, log or command line has them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving import protos
from serving.server import ServerSettings, start
from tests.support import processes
from tests.support.beam_cluster import BeamCluster
from tests.support.fake_grpc_server import fake_grpc_server, free_port
from tests.support.score_job import GOOD, make_bundle

pytestmark = [pytest.mark.tf, pytest.mark.beam, pytest.mark.server, pytest.mark.slow(seconds=40)]

PHOTOS = 30
SECONDS = 180.0
RESPONSES = {
    protos.PREDICT: protos.PredictResponse,
    protos.GET_MODEL_METADATA: protos.GetModelMetadataResponse,
    protos.GET_MODEL_STATUS: protos.GetModelStatusResponse,
}


@contextmanager
def guarded_server(model: Path, seen: set[str]) -> Iterator[str]:
    """Serve a model behind a proxy that wants an authorization, and collect those that it gets."""
    with (
        start(ServerSettings(model_base_path=model.parent, port=0)) as server,
        grpc.insecure_channel(f"localhost:{server.port}") as channel,
    ):

        def forward(path: str) -> Callable[[Any, grpc.ServicerContext], Any]:
            call = channel.unary_unary(
                path, lambda request: request.SerializeToString(), RESPONSES[path].FromString
            )

            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                found = str(dict(context.invocation_metadata()).get("authorization"))
                seen.add(found)
                if not found.startswith("Bearer "):
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "no authorization")
                return call(request, timeout=30)

            return answer

        with fake_grpc_server({path: forward(path) for path in RESPONSES}) as address:
            yield address


@contextmanager
def watched_command_lines() -> Iterator[set[bytes]]:
    """Collect the command lines of all processes within a `with` block."""
    found: set[bytes] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    found.add((process / "cmdline").read_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def find_secret(top: Path, secret: str, *but: Path) -> list[str]:
    """Return the files below a directory that contain a secret."""
    paths = [path for path in top.rglob("*") if path.is_file() and path not in but]
    assert len(paths) > 10
    return [str(path) for path in paths if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize("where", ["this process", "cluster"])
@pytest.mark.parametrize("given", ["file", "environment"])
def test_no_file_log_or_command_line_has_the_secrets_of_a_job(tmp_path: Path, where: str, given: str) -> None:
    secret, seen = secrets.token_hex(8), set[str]()
    photos, temporary, held = tmp_path / "photos", tmp_path / "tmp", tmp_path / "secret"
    photos.mkdir()
    temporary.mkdir()
    for number in range(PHOTOS):
        (photos / f"{number}.jpg").write_bytes(GOOD + bytes([number]) * number)
    model = make_bundle(tmp_path / "models" / "food" / "1")
    push = f"http://user:{secret}@localhost:{free_port()}"
    arguments = ["score", "--photos", str(photos), "--model", str(model), "--output", str(tmp_path / "out")]
    arguments += ["--embedding_store", str(tmp_path / "store"), "--shard_size", "4", "--timeout", "60"]
    environment = {"TMPDIR": str(temporary)}
    if given == "file":
        held.write_text(f"authorization=Bearer {secret}\n")
        (tmp_path / "push").write_text(push)
        arguments += ["--header", f"@{held}", "--metrics_push", f"@{tmp_path / 'push'}"]
    else:
        environment |= {"HUBHEAD_HEADERS": f"authorization=Bearer {secret}", "HUBHEAD_METRICS_PUSH": push}
    cluster = BeamCluster(tmp_path, environment)
    with guarded_server(model, seen) as address, watched_command_lines() as lines:
        arguments += ["--server", address]
        with cluster.run() if where == "cluster" else contextlib.nullcontext():
            arguments += ["--", *cluster.beam_args] if where == "cluster" else []
            process = processes.start(arguments, tmp_path / "log", environment)
            out, _ = process.communicate(timeout=SECONDS)
    log = (tmp_path / "log").read_text()
    assert process.returncode == 0, log
    assert seen == {f"Bearer {secret}"}
    assert "Cannot push the metrics to http://***@localhost" in log
    assert json.loads((tmp_path / "out" / "run.json").read_text())["rows"] == PHOTOS
    assert secret not in out
    assert find_secret(tmp_path, secret, held, tmp_path / "push") == []
    assert any(str(tmp_path / "out").encode() in line for line in lines), "the command itself was seen"
    assert not [line for line in lines if secret.encode() in line]
    assert os.environ.get("HUBHEAD_HEADERS") is None

"""The start of the local server: its ports are open before a model is loaded; mistakes end the process."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from serving import contract
from serving.errors import BundleError, InputError, OutputError
from serving.server import ServerSettings, serve_until_signalled, start
from serving.server.app import StoppedError
from serving.server.config import files
from tests.support.fake_model import (
    LIMIT,
    FakeModel,
    FakeModelLoader,
    call_double,
    free_port,
    write_bundle_metadata,
    write_fake_model,
)

pytestmark = pytest.mark.server


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_fake_model(tmp_path / "double" / "1").parent


@contextmanager
def occupy_port() -> Iterator[int]:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("flag", ["port", "rest_api_port"])
def test_port_in_use_is_reported_before_a_model_is_loaded(base: Path, flag: str) -> None:
    loader = FakeModelLoader()
    with occupy_port() as port, pytest.raises(OutputError, match=f"Port {port}"):
        start(ServerSettings(base, **{"port": 0, flag: port}), loader=loader)  # type: ignore[arg-type]
    assert loader.attempts == 0


@pytest.mark.protocol("versions.ports")
def test_requests_wait_on_the_open_ports_until_the_model_is_loaded(base: Path) -> None:
    loading, loaded = threading.Event(), threading.Event()

    def load(path: Path) -> FakeModel:
        loading.set()
        assert loaded.wait(LIMIT)
        return FakeModelLoader()(path)

    port, rest_port = free_port(), free_port()
    settings = ServerSettings(base, port=port, rest_api_port=rest_port)
    address = f"http://localhost:{rest_port}/v1/models/double"
    with ThreadPoolExecutor() as pool, grpc.insecure_channel(f"localhost:{port}") as channel:
        starting = pool.submit(start, settings, loader=load)  # type: ignore[arg-type]
        assert loading.wait(LIMIT)
        for taken in (port, rest_port):
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("", taken), family=socket.AF_INET6, dualstack_ipv6=True)
        answer = pool.submit(call_double, channel, 3.0)
        page = pool.submit(lambda: urllib.request.urlopen(address, timeout=LIMIT).read())
        with pytest.raises(TimeoutError):
            answer.result(0.2)
        loaded.set()
        with starting.result(LIMIT):
            assert list(answer.result(LIMIT).outputs["y"].float_val) == [6.0]
            assert b"AVAILABLE" in page.result(LIMIT)


def test_ports_are_closed_again_if_no_version_loads(base: Path) -> None:
    (base / "1" / "broken").touch()
    port, rest_port = free_port(), free_port()
    settings = ServerSettings(base, port=port, rest_api_port=rest_port)
    for _ in range(2):
        with pytest.raises(BundleError, match="broken on purpose"):
            start(settings, loader=FakeModelLoader())  # type: ignore[arg-type]
    (base / "1" / "broken").unlink()
    start(settings, loader=FakeModelLoader()).stop()  # type: ignore[arg-type]


@pytest.mark.parametrize("spoil", ["metadata", "link"])
def test_malformed_bundle_is_reported_before_it_is_loaded(base: Path, spoil: str) -> None:
    write_bundle_metadata(base / "1")
    start(ServerSettings(base, port=0), loader=FakeModelLoader()).stop()  # type: ignore[arg-type]
    if spoil == "link":
        (base / "1" / "extra").symlink_to("/etc/passwd")
    else:
        (base / "1" / contract.METADATA_FILE).write_text("[" * 100_000)
    loader = FakeModelLoader()
    with pytest.raises(BundleError, match=r"leads out of the bundle|hubhead\.json cannot be read"):
        start(ServerSettings(base, port=0), loader=loader)  # type: ignore[arg-type]
    assert loader.attempts == 0


def test_calls_that_wait_for_a_model_that_fails_to_load_are_unavailable(base: Path) -> None:
    loading, failing = threading.Event(), threading.Event()

    def load(path: Path) -> FakeModel:
        loading.set()
        assert failing.wait(LIMIT)
        raise BundleError("broken on purpose")

    settings = ServerSettings(base, port=free_port())
    with ThreadPoolExecutor() as pool, grpc.insecure_channel(f"localhost:{settings.port}") as channel:
        starting = pool.submit(start, settings, loader=load)  # type: ignore[arg-type]
        assert loading.wait(LIMIT)
        answer = pool.submit(call_double, channel, 3.0)
        with pytest.raises(TimeoutError):
            answer.result(0.3)
        failing.set()
        with pytest.raises(grpc.RpcError) as caught:
            answer.result(LIMIT)
        with pytest.raises(BundleError, match="broken on purpose"):
            starting.result(LIMIT)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # which clients retry


def test_server_that_waits_for_a_first_version_is_stopped(tmp_path: Path) -> None:
    port, stop = free_port(), threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        start(ServerSettings(tmp_path, port=port), loader=FakeModelLoader(), stop=stop)  # type: ignore[arg-type]
    socket.create_server(("", port)).close()


@pytest.mark.protocol("process.config-words")
@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (files.read_models, "ModelServerConfig"),
        (files.read_batching, "BatchingParameters"),
        (files.read_monitoring, "MonitoringConfig"),
        (files.read_certificates, "SSLConfig"),
    ],
)
def test_file_that_does_not_parse_is_logged_in_tensorflow_servings_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, read: object, kind: str
) -> None:
    file = tmp_path / "file.config"
    file.write_text("improperly formatted file\n")
    with pytest.raises(InputError, match=f"not a {kind} in text format"):
        read(file)  # type: ignore[operator]
    assert f"Error parsing text-format tensorflow.serving.{kind}: 1:" in caplog.text


def test_model_config_that_does_not_parse_ends_the_process(tmp_path: Path) -> None:
    file = tmp_path / "model.config"
    file.write_text("improperly formatted file\n")
    command = [sys.executable, "-m", "serving", "serve", "--port=0", f"--model_config_file={file}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    upstream, own = (
        done.stderr.index(words)
        for words in (
            "Error parsing text-format tensorflow.serving.ModelServerConfig: 1:",
            "is not a ModelServerConfig in text format",
        )
    )
    assert upstream < own
    assert (done.returncode, done.stdout) == (1, "")


def test_serving_shortens_the_time_for_which_a_thread_holds_the_interpreter_lock(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    monkeypatch.setattr("serving.server.app.start", stop)
    before = sys.getswitchinterval()
    try:
        serve_until_signalled(ServerSettings(base), print)
        assert sys.getswitchinterval() == pytest.approx(0.0005)
    finally:
        sys.setswitchinterval(before)

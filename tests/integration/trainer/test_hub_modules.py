"""Modules from directories and addresses: downloads, caches, HTTP errors, damage, the TF1 Hub format."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import FetchError, InputError
from tests.support.hub_modules import in_hub_cache, small_module, tf1_module
from trainer.backbones import InputOptions
from trainer.backbones import address as addresses
from trainer.backbones.fingerprint import compute_fingerprint
from trainer.backbones.hub import load, resolve
from trainer.export.checks import sample_jpeg

pytestmark = [pytest.mark.tf, pytest.mark.server]


# Directories


def test_a_directory_without_a_saved_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no saved_model\.pb in it\. Give the directory that contains it"):
        load(str(tmp_path), tmp_path)
    inside = small_module(tmp_path / "food" / "1")
    for above in (tmp_path, tmp_path / "food"):
        with pytest.raises(InputError, match=rf"There is one in {inside}: give that"):
            resolve(str(above), tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("module.tar.gz", "Unpack the archive"),
        ("model.tflite", "give the SavedModel that it was made from"),
        ("saved_model.pb", "Give the directory that contains it"),
        ("notes.txt", "Give the directory that contains it"),
    ],
)
def test_a_file_instead_of_a_directory_is_an_error_with_a_remedy(
    name: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=rf"is not a SavedModel.*{hint}"):
        resolve(str(tmp_path / name), tmp_path)


@pytest.mark.parametrize(
    "file", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_a_damaged_saved_model_is_an_error(file: str, tmp_path: Path) -> None:
    path = Path(small_module(tmp_path / "module"), file)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be loaded"):
        load(str(tmp_path / "module"), tmp_path)


# Addresses


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve tmp_path/served over HTTP, with an empty cache of TensorFlow Hub; yield the address."""
    (tmp_path / "served").mkdir()
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))

    class Quiet(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, _, value = self.path.partition("?")[0].strip("/").partition("/")
            if kind == "status":
                self.send_error(int(value))
            elif kind == "unresponsive":
                time.sleep(float(value))
            else:
                super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_address_is_downloaded_by_tf_hub_and_a_truncated_download_recovers(
    address: str, tmp_path: Path
) -> None:
    archive = tmp_path / "served" / "module.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(small_module(tmp_path / "module"), arcname=".")
    whole = archive.read_bytes()
    handle = f"{address}/module.tar.gz"

    for broken in (
        whole[: len(whole) // 2],
        whole[: len(whole) * 9 // 10],
        b"",
        b"<html>Sign in to the network</html>",
    ):
        archive.write_bytes(broken)
        with pytest.raises(FetchError, match="cannot be downloaded"):
            load(handle, tmp_path)
    with pytest.raises(FetchError, match="404"):
        load(f"{address}/other.tar.gz", tmp_path)

    archive.write_bytes(whole)
    loaded = load(handle, tmp_path)
    assert loaded.dimension == 2
    assert Path(loaded.path).is_relative_to(tmp_path / "hub")
    assert loaded.fingerprint == compute_fingerprint(str(tmp_path / "module"))
    archive.unlink()
    assert load(handle, tmp_path).path == loaded.path


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"has no module at this address \(404 Not Found\)\. Copy the address"),
        (410, r"has no module at this address \(410 Gone\)"),
        (403, r"requires a login or consent for it \(403 Forbidden\)\. Download it with a browser"),
        (503, r"responds with 503 Service Unavailable\. Retry later"),
    ],
)
def test_an_http_error_status_is_reported(status: int, message: str, address: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=rf"127\.0\.0\.1:\d+ {message}"):
        load(f"{address}/status/{status}", tmp_path)


def test_an_unresponsive_server_times_out(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "TIMEOUT", 0.2)
    with pytest.raises(FetchError, match="does not respond"):
        load(f"{address}/unresponsive/1", tmp_path)
    assert socket.getdefaulttimeout() is None


def test_an_unreachable_address_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:9 does not respond.*give its directory"):
        load("http://127.0.0.1:9/module.tar.gz", tmp_path)
    with pytest.raises(FetchError, match=r"does not respond.*not known|does not respond.*name resolution"):
        load("https://tfhub.invalid/module/1", tmp_path)


def test_an_unsupported_scheme_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="TensorFlow does not support nosuch:// addresses"):
        load("nosuch://bucket/module", tmp_path)


def test_a_web_page_instead_of_a_module_is_an_error(address: str, tmp_path: Path) -> None:
    (tmp_path / "served" / "page.html").write_text("<html>A page about a module</html>")
    with pytest.raises(FetchError, match=r"is not a tar archive.*not of a web page"):
        load(f"{address}/page.html", tmp_path)


def test_an_archive_without_a_module_at_its_top_is_an_error(address: str, tmp_path: Path) -> None:
    for name, content in (("deep", small_module(tmp_path / "module")), ("none", str(tmp_path / "served"))):
        with tarfile.open(tmp_path / "served" / f"{name}.tar.gz", "w:gz") as file:
            file.add(content, arcname="inside")
    with pytest.raises(
        FetchError, match=r"no saved_model\.pb in .*There is one in (.*): give that"
    ) as refused:
        load(f"{address}/deep.tar.gz", tmp_path)
    inside = refused.value.remedy.removeprefix("There is one in ").removesuffix(": give that.")
    assert load(inside, tmp_path).dimension == 2
    with pytest.raises(FetchError, match="Delete that directory, and give the address of a module"):
        load(f"{address}/none.tar.gz", tmp_path)


@pytest.mark.parametrize("named", [True, False])
def test_modules_are_cached_in_tfhub_cache_dir_or_the_hubhead_cache(
    named: bool, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not named:
        monkeypatch.delenv("TFHUB_CACHE_DIR")
    with tarfile.open(tmp_path / "served" / "module.tar.gz", "w:gz") as file:
        file.add(small_module(tmp_path / "module"), arcname=".")
    found = resolve(f"{address}/module.tar.gz", tmp_path / "ours")
    assert Path(found).parent == (tmp_path / "hub" if named else tmp_path / "ours" / "tfhub")


def test_download_progress_is_not_written_to_stdout(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TFHUB_DOWNLOAD_PROGRESS", "1")
    with tarfile.open(tmp_path / "served" / "module.tar.gz", "w:gz") as file:
        file.add(small_module(tmp_path / "module"), arcname=".")
    resolve(f"{address}/module.tar.gz", tmp_path)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Downloaded http" in printed.err


def test_progress_of_a_download_is_reported_at_intervals(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TFHUB_DOWNLOAD_PROGRESS", raising=False)
    module = Path(small_module(tmp_path / "module"))
    (module / "assets" / "noise").write_bytes(np.random.default_rng(0).bytes(3_000_000))
    with tarfile.open(tmp_path / "served" / "module.tar.gz", "w:gz") as file:
        file.add(module, arcname=".")
    handle, found = f"{address}/module.tar.gz", {}
    for seconds in (0.0, 3600.0):
        monkeypatch.setattr(addresses, "PROGRESS_SECONDS", seconds)
        monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / f"hub {seconds}"))
        lines: list[str] = []
        resolve(handle, tmp_path, progress=lines.append)
        assert lines[0] == f"Resolving {handle}"
        assert re.fullmatch(rf"Downloaded {re.escape(handle)}, Total size: [23]\.\d+MB", lines[-1])
        found[seconds] = lines[1:-1]
    assert len(found[0.0]) >= 2
    assert all(line.startswith(f"Downloading {handle}: ") for line in found[0.0])
    assert found[3600.0] == []
    assert capsys.readouterr().out == ""
    assert "TFHUB_DOWNLOAD_PROGRESS" not in os.environ


def test_waiting_for_the_lock_of_another_process_is_reported(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = in_hub_cache(f"{address}/module.tar.gz", small_module(tmp_path / "module"), tmp_path / "hub")
    lock = tmp_path / "hub" / f"{hashlib.sha1(handle.encode()).hexdigest()}.lock"
    lock.touch()
    lines: list[str] = []
    resolve(handle, tmp_path, progress=lines.append)
    assert f"If there is none, delete {lock}" in lines[1]


# Modules in the format of TF1 Hub


@pytest.mark.parametrize("classes", [0, 1001])
def test_the_feature_vector_signature_of_a_tf1_module_is_used(classes: int, tmp_path: Path) -> None:
    import tensorflow as tf

    loaded = load(tf1_module(tmp_path / "module", classes=classes), tmp_path)
    assert (loaded.image_size, loaded.dimension) == ((16, 12), 2)
    photos = np.full([3, 16, 12, 3], 0.5, np.float32)
    np.testing.assert_allclose(loaded.apply(photos), [[0.5, 1.0]] * 3)
    np.testing.assert_allclose(tf.function(loaded.apply)(photos), [[0.5, 1.0]] * 3)


def test_a_graph_with_reference_variables_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reference variables.*enable_resource_variables"):
        load(tf1_module(tmp_path / "module", resource=False), tmp_path)


def test_the_attached_input_size_of_a_tf1_module_is_used(tmp_path: Path) -> None:
    path = tf1_module(tmp_path / "module", shape=(None, None, None, 3), attached=(299, 160))
    lines: list[str] = []
    assert load(path, tmp_path, progress=lines.append).image_size == (299, 160)
    assert load(path, tmp_path, options=InputOptions(image_size=(64, 64))).image_size == (64, 64)
    assert lines == []
    open_ = tf1_module(tmp_path / "open", shape=(None, None, None, 3))
    assert load(open_, tmp_path).image_size == (224, 224)


@pytest.mark.parametrize("kind", ["tf1", "bytes"])
def test_tf1_and_keras_modules_can_be_exported_as_a_bundle(kind: str, tmp_path: Path) -> None:
    import tensorflow as tf

    from trainer.export.templates import prepare_template

    if kind == "tf1":
        module = tf1_module(tmp_path / "module")
    else:
        module = small_module(tmp_path / "module", dtype="uint8")
    base = prepare_template(module, tmp_path / "cache")
    embed = tf.saved_model.load(str(base.path)).signatures["embed"]
    first, second = embed(image_bytes=tf.constant([sample_jpeg()]))["embedding"].numpy()[0]
    assert first > 0
    assert second == pytest.approx(2 * first, rel=1e-3)


def test_the_weights_of_a_tf1_module_change_its_fingerprint(tmp_path: Path) -> None:
    import tensorflow as tf

    first = compute_fingerprint(tf1_module(tmp_path / "first"))
    second = tf1_module(tmp_path / "second")
    assert compute_fingerprint(second) == first
    tf.raw_ops.SaveV2(
        prefix=f"{second}/variables/variables",
        tensor_names=["weights"],
        shape_and_slices=[""],
        tensors=[tf.constant([1.0, 3.0])],
    )
    assert compute_fingerprint(second) != first

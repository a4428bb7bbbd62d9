"""Malformed bundles: every one is a BundleError that names the file, whatever is wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import bundle, contract
from serving.bundle import BundleMetadata, training_digests
from serving.errors import BundleError
from serving.registry import verdict
from serving.registry.stores.download import fetch_bundle
from serving.registry.stores.local import LocalStore
from serving.registry.stores.store import silent
from tests.support.registry import command

BACKBONE: Any = {"fingerprint": "0" * 64, "dimension": 4}


def write_bundle(directory: Path, **values: Any) -> Path:
    """Write a bundle without a graph."""
    (directory / "assets").mkdir(parents=True)
    (directory / contract.SAVED_MODEL_FILE).touch()
    BundleMetadata(["a", "b"], BACKBONE, {}, **values).write(directory)
    return directory


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "food" / "1")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", {"fingerprint": "../../..", "dimension": 4}),
        ("backbone", {"fingerprint": "/etc", "dimension": 4}),
        ("backbone", {"fingerprint": "", "dimension": 4}),
        ("backbone", {"fingerprint": "f\n", "dimension": 4}),
        ("backbone", {"fingerprint": "f" * 300, "dimension": 4}),
        ("backbone", {"fingerprint": "f", "dimension": 0}),
        ("backbone", {"fingerprint": "f", "dimension": 10**12}),
        ("top_k", -1),
        ("labels", {"a": 0}),
        ("labels", "ab"),
        ("preprocessing", {"aspect": "round"}),
        ("preprocessing", {"max_bytes": "many"}),
        ("metrics", {"test": []}),
        ("metrics", {"test": {"accuracy": "high"}}),
        ("metrics", {"test": {"recall": {"a": 1}}}),
        ("metrics", {"validation": {"top_3": 0.9}}),
        ("metrics", {"cross-validation": 0.9}),
        ("metrics", {"cross_validate": {"accuracy": None}}),
        ("data", {"photos": 5}),
        ("data", {"labels": ["a"]}),
        ("head", {"kind": 5}),
        ("provenance", {"created": 2026}),
        ("provenance", {"packages": ["numpy"]}),
        ("provenance", {"configuration": 7}),
        ("data", json.loads("[" * 40 + "]" * 40)),
    ],
)
def test_mistyped_metadata_is_a_bundle_error(model: Path, key: str, value: Any) -> None:
    path = model / contract.METADATA_FILE
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {key: value}))
    with pytest.raises(BundleError, match=r"hubhead\.json cannot be read: .*Export the bundle again"):
        bundle.read(model)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"null", b'{"schema": 1' + b"0" * 5000 + b"}"],
    ids=["deep array", "deep object", "not UTF-8", "null", "long number"],
)
def test_metadata_that_is_no_record_is_a_bundle_error(model: Path, content: bytes) -> None:
    (model / contract.METADATA_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=r"hubhead\.json cannot be read"):
        bundle.read(model.parent)


def test_other_keys_of_the_details_are_kept(tmp_path: Path) -> None:
    metrics = {"test": {"accuracy": None, "mine": [1]}, "mine": float("inf")}
    assert bundle.read(write_bundle(tmp_path / "1", metrics=metrics)).metadata.metrics == metrics
    assert bundle.read(tmp_path / "1").metadata.threshold == 0  # without calibration


@pytest.mark.parametrize("text", ["b\na\n", "a\n", "a\nb\nc\n", "a\nb", "", "\xff"])
def test_labels_file_that_disagrees_with_the_metadata_is_a_bundle_error(model: Path, text: str) -> None:
    (model / contract.LABELS_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"labels\.txt has other labels than assets\.extra/hubhead\.json"):
        bundle.read(model)


@pytest.mark.parametrize("spoiled", ["labels.txt", "assets"])
def test_labels_file_that_cannot_be_read_is_a_bundle_error(model: Path, spoiled: str) -> None:
    (model / contract.LABELS_FILE).unlink()
    if spoiled == "assets":
        (model / "assets").rmdir()
        (model / "assets").touch()
    else:
        (model / contract.LABELS_FILE).mkdir()
    with pytest.raises(BundleError, match=r"assets/labels\.txt cannot be read: (Is|Not) a directory"):
        bundle.read(model)


def _link(target: str, name: str = "extra") -> Callable[[Path], None]:
    return lambda directory: (directory / name).symlink_to(target)


@pytest.mark.parametrize(
    "spoil",
    [
        _link("/etc/passwd"),
        _link("../../secret"),
        _link("/etc"),
        _link("../.."),
        _link("."),
        _link("nowhere"),
        _link("extra"),
        _link("../../secret", "assets/extra"),
        lambda directory: os.mkfifo(directory / "extra"),
    ],
    ids=["file", "relative", "directory", "above", "itself", "dangling", "circular", "below", "pipe"],
)
def test_bundle_with_files_from_outside_is_a_bundle_error(
    model: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    (tmp_path / "secret").write_text("secret")
    spoil(model)
    with pytest.raises(BundleError, match=r"extra is (a symbolic link that leads out|neither a file)"):
        bundle.read(model)


def test_links_within_the_bundle_and_to_the_bundle_are_allowed(model: Path, tmp_path: Path) -> None:
    (model / "copy").symlink_to(contract.SAVED_MODEL_FILE)
    (tmp_path / "7").symlink_to(model)
    assert bundle.read(tmp_path / "7").version == 7


def test_remote_bundle_whose_names_lead_out_is_a_bundle_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("serving.registry.stores.download._resolve_address", lambda address: address)
    monkeypatch.setattr("serving.storage.files.walk_files", lambda _: [("../../../x", 1)])
    monkeypatch.setattr("serving.storage.remote.download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(BundleError, match="leads out of it"), fetch_bundle("s3://bucket/food/1"):
        pass


def test_path_that_no_file_system_can_have_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read: File name too long"):
        bundle.read(tmp_path / ("x" * 300))


def test_directories_that_tensorflow_serving_ignores_are_no_versions(tmp_path: Path) -> None:
    for name in ("1", "٢", "9223372036854775808", "9" * 200):
        (tmp_path / name).mkdir()
    assert bundle.versions(tmp_path) == [1]


def test_digest_and_copy_of_a_name_that_is_not_utf8(model: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(bytes(model) + b"/\xff")).touch()
    digest = verdict.digest(model)
    LocalStore(tmp_path / "store").publish(model, digest, at_least=1, log=str, say=silent)
    assert verdict.digest(tmp_path / "store" / "1") == digest


def test_a_promoted_bundle_keeps_its_model_card_and_needs_none(model: Path, tmp_path: Path) -> None:
    for name, card in (("with", "---\nlibrary_name: hubhead\n---\n# food\n"), ("without", None)):
        if card:
            (model / contract.MODEL_CARD_FILE).write_text(card)
        else:
            (model / contract.MODEL_CARD_FILE).unlink()
        store = tmp_path / name
        LocalStore(store).publish(model, verdict.digest(model), at_least=1, log=str, say=silent)
        copy = bundle.read(store).path / contract.MODEL_CARD_FILE
        assert (copy.read_text() if copy.exists() else None) == card


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04."])
def test_damaged_digests_are_a_bundle_error(model: Path, content: bytes) -> None:
    (model / contract.TRAINED_ON_FILE).write_bytes(content)
    (model / contract.TEST_PHOTOS_FILE).write_bytes(content)
    for read in (training_digests.read, training_digests.read_test_photos):
        with pytest.raises(BundleError, match="cannot be read"):
            read(model)
    np.save(model / contract.TRAINED_ON_FILE, np.array(["x"]))
    with pytest.raises(BundleError, match="cannot be read"):
        training_digests.read(model)


@pytest.mark.parametrize("spoil", ["metadata", "link"])
def test_predict_and_models_report_a_malformed_bundle(model: Path, spoil: str) -> None:
    if spoil == "link":
        (model / "extra").symlink_to("/etc/passwd")
    else:
        (model / contract.METADATA_FILE).write_text("{}")
    predicted = command("predict", __file__, "--model", model)
    assert predicted.exit_code == 1
    assert isinstance(predicted.exception, BundleError)
    (version,) = json.loads(command("models", "--model_base_path", model.parent, "--json").stdout)["versions"]
    assert version["problem"] == predicted.exception.what


@pytest.mark.parametrize(("encoding", "end"), [("utf-8", "\r\n"), ("utf-8-sig", "\n"), ("utf-16", "\r\n")])
def test_labels_file_that_an_editor_saved_has_the_same_labels(model: Path, encoding: str, end: str) -> None:
    labels = bundle.read_metadata(model).labels
    (model / contract.LABELS_FILE).write_bytes("".join(f"{label}{end}" for label in labels).encode(encoding))
    assert bundle.read_metadata(model).labels == labels

"""`hubhead embeddings check --against`: stored embeddings beside those of an engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from batch.commands.embeddings import embeddings
from batch.embeddings import EmbeddingStore
from batch.embeddings.sampling import sample_photos
from batch.inputs.listing import Photo
from serving import bundle
from serving.process import get_cpu_model
from tests.support.trained import Trained, copy_store

pytestmark = [pytest.mark.tf, pytest.mark.beam]

PHOTOS = 24


@pytest.fixture
def copies(trained: Trained, tmp_path: Path) -> dict[Photo, bytes]:
    """A sample of the photos of the shared store, as copies that a test may change."""
    metadata = trained.result.bundle.metadata
    found = sample_photos(trained.settings.embedding_store, metadata.fingerprint, PHOTOS, seed=3)
    made = {}
    for photo, sha in found.items():
        path = tmp_path / "photos" / Path(photo.uri).name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(Path(photo.uri).read_bytes())
        status = path.stat()
        made[Photo(str(path), status.st_size, status.st_mtime_ns)] = sha
    return made


@pytest.fixture
def store(trained: Trained, tmp_path: Path, copies: dict[Photo, bytes]) -> EmbeddingStore:
    """A store with the rows of these photos alone."""
    metadata = trained.result.bundle.metadata
    known = EmbeddingStore(trained.settings.embedding_store, metadata.fingerprint, metadata.dimension)
    store = EmbeddingStore(str(tmp_path / "store"), metadata.fingerprint, metadata.dimension)
    known.lookup_digests([])
    store.append(copies, known.get(copies.values()))
    return store


def check(trained: Trained, root: str, *flags: str) -> tuple[int, dict[str, Any]]:
    command = ["check", "--embedding_store", root, "--model", str(trained.result.bundle.path), *flags]
    result = CliRunner().invoke(embeddings, [*command, "--json"])
    assert not isinstance(result.exception, Exception), result.exception
    [record] = json.loads(result.stdout)
    return result.exit_code, record["against"]


def test_a_store_of_one_engine_agrees_with_the_other_within_rounding(trained: Trained) -> None:
    root, dimension = trained.settings.embedding_store, trained.result.bundle.metadata.dimension
    code, found = check(trained, root, "--against", "tensorflow", "--sample", "32")
    assert code == 0
    assert (found["engine"], found["cpu"]) == ("tensorflow", get_cpu_model())
    assert (found["sampled"], found["compared"]) == (32, 32)
    assert (found["unreadable"], found["changed"], found["beyond"], found["other_status"]) == (0, 0, [], [])
    assert found["numbers"] % dimension == 0
    assert 0.98 * found["numbers"] < found["equal"] < found["numbers"]
    assert found["largest_units"] >= 1
    assert 0 < found["largest_difference"] < 0.01


def test_an_engine_agrees_with_its_own_store(trained: Trained) -> None:
    code, found = check(trained, trained.settings.embedding_store, "--against", "onnx", "--sample", "32")
    assert code == 0
    assert found["engine"] == "onnx"
    assert found["equal"] >= 0.999 * found["numbers"], "other calls, other batches"


def test_a_corrupted_row_fails_the_check_and_is_named(
    trained: Trained, store: EmbeddingStore, copies: dict[Photo, bytes]
) -> None:
    rows = store.get(copies.values())
    victim = next(row for row, status in enumerate(rows.statuses) if status.usable)
    vectors = rows.vectors.copy()
    vectors[victim, 7] += np.float16(0.05)
    corrupted = EmbeddingStore(store.root + "-corrupted", store.fingerprint, store.dimension)
    corrupted.append(copies, replace(rows, vectors=vectors))
    assert check(trained, store.root, "--against", "onnx")[0] == 0
    code, found = check(trained, corrupted.root, "--against", "onnx")
    assert code == 1
    assert found["beyond"] == [photo.uri for photo, sha in copies.items() if sha == rows.shas[victim]][-1:]
    assert found["largest_difference"] == pytest.approx(0.05, abs=0.01)
    command = ["check", "--embedding_store", corrupted.root, "--against", "onnx"]
    text = CliRunner().invoke(embeddings, [*command, "--model", str(trained.result.bundle.path)])
    assert "1 photos have differences beyond rounding, such as" in text.stdout
    assert "onnx on" in text.stdout


def test_rows_of_another_status_fail_the_check(
    trained: Trained, store: EmbeddingStore, copies: dict[Photo, bytes]
) -> None:
    rows = store.get(copies.values())
    other = EmbeddingStore(store.root + "-other", store.fingerprint, store.dimension)
    statuses = [type(rows.statuses[0]).CORRUPT, *rows.statuses[1:]]
    other.append(copies, replace(rows, statuses=statuses))
    code, found = check(trained, other.root, "--against", "onnx")
    assert code == 1
    assert len(found["other_status"]) == 1


def test_photos_that_are_gone_or_changed_are_counted_and_not_compared(
    trained: Trained, store: EmbeddingStore, copies: dict[Photo, bytes]
) -> None:
    gone, changed, *others = [Path(photo.uri) for photo in copies]
    gone.unlink()
    changed.write_bytes(others[0].read_bytes() + b"more")
    code, found = check(trained, store.root, "--against", "onnx")
    assert code == 0
    assert (found["unreadable"], found["changed"], found["compared"]) == (1, 1, len(copies) - 2)
    for path in [*others, changed]:
        path.unlink()
    code, found = check(trained, store.root, "--against", "onnx")
    assert (code, found["compared"]) == (1, 0), "nothing was verified"


def test_the_check_changes_no_store(trained: Trained, tmp_path: Path) -> None:
    root = copy_store(trained, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    check(trained, str(root), "--against", "onnx", "--sample", "4")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--against", "onnx"],
        ["--model", "models/food"],
        ["--against", "onnx", "--model", "m", "--fingerprint", "f"],
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(embeddings, ["check", "--embedding_store", str(tmp_path), *flags])
    assert result.exit_code == 2


def test_a_store_without_the_backbone_is_an_error(trained: Trained, tmp_path: Path) -> None:
    model = trained.result.bundle
    assert bundle.read(model.path).metadata.fingerprint
    command = ["check", "--embedding_store", str(tmp_path), "--against", "onnx", "--model", str(model.path)]
    result = CliRunner().invoke(embeddings, command)
    assert f"begin with '{model.metadata.fingerprint}'" in str(result.exception)

"""hubhead validate on real bundles."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from batch.embeddings import hash_photo
from hubhead import hubhead
from serving import bundle, contract
from serving.bundle import training_digests
from serving.errors import GateRejected
from serving.registry import verdict
from serving.registry.promote import promote
from serving.registry.target import DeploymentTarget
from tests.support.repository import REPO
from tests.support.trained import copy_store
from trainer.export.head_file import load_head, save_head
from trainer.gate import gate
from trainer.gate.thresholds import RegressionLimits

if TYPE_CHECKING:
    from tests.support.trained import Trained
    from trainer.dataset.samples import SampleSummary


# --- Real bundles -----------------------------------------------------------------------------------------


def validate(*arguments: str | Path) -> tuple[Any, dict[str, Any]]:
    # The latency ratio is not tested here: other processes on the machine disturb it.
    settings = ["--json", "--max_latency_ratio", "100"]
    done = CliRunner().invoke(hubhead, ["validate", *settings, *map(str, arguments)])
    return done, json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def write_heic(path: Path) -> None:
    from PIL import Image
    from pillow_heif import from_pillow

    from_pillow(Image.new("RGB", (320, 240), (200, 40, 30))).save(path)


def copy_photos(source: Path, to: Path, count: int) -> list[str]:
    """Copy the first photos of a directory, and return their SHA-256."""
    to.mkdir(parents=True)
    photos = sorted(source.iterdir())[:count]
    for photo in photos:
        shutil.copy(photo, to)
    return [hash_photo(photo.read_bytes()).hex() for photo in photos]


@pytest.fixture
def pair(trained: Trained, tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of a real bundle: (candidate, live version)."""
    copies = [tmp_path / "models" / "food" / number for number in ("1", "2")]
    for copy in copies:
        shutil.copytree(trained.result.bundle.path, copy)
    return copies[1], copies[0]


@pytest.mark.slow(seconds=50)
@pytest.mark.tf
@pytest.mark.server
def test_a_bundle_as_good_as_the_live_version_is_blessed_and_can_be_promoted(
    trained: Trained, pair: tuple[Path, Path], sample: SampleSummary, tmp_path: Path
) -> None:
    candidate, live = pair
    # HEIC photos and nested directories count as in a training; the unknown label is not compared.
    photos = tmp_path / "photos"
    fruits = copy_photos(sample.directory / "fruits", photos / "fruits" / "ripe", 8)
    write_heic(photos / "fruits" / "new.heic")
    nuts = copy_photos(sample.directory / "nuts and oil seeds", photos / "unknown", 2)
    store = copy_store(trained, tmp_path)
    places = ("--live", live, "--photos", photos, "--embedding_store", store)
    done, record = validate("--bundle", candidate, *places)
    assert done.exit_code == 0, done.output
    assert record["blessed"]
    assert record == json.loads((candidate / contract.VERDICT_FILE).read_text())
    checks = {check["name"]: check for check in record["checks"]}
    tested = training_digests.read_test_photos(candidate)
    assert tested
    assert checks["photos compared"]["figure"] == len(tested.sha256) + 1
    trained_on = set(fruits) - set(tested.sha256)
    assert 0 < len(trained_on) < len(fruits)
    assert f"{len(trained_on)} that the live version was trained on" in checks["photos compared"]["detail"]
    assert f"{len(nuts)} of labels that the new version" in checks["photos compared"]["detail"]
    assert "(0 gained, 0 lost)" in checks["accuracy"]["detail"]
    for name in ("the runtime", "the local server"):
        assert checks[f"{name} agrees with a classic session"]["passed"]
    assert checks["the head file agrees with the graph"]["passed"]
    assert promote(DeploymentTarget(tmp_path / "served", "food"), source=candidate).new == 2


@pytest.mark.slow(seconds=50)
@pytest.mark.tf
@pytest.mark.server
def test_every_failed_check_is_listed_and_the_bundle_is_not_blessed(
    trained: Trained, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    candidate, live = pair
    (candidate / contract.WARMUP_FILE).unlink()
    (candidate / "ballast").write_bytes(bytes(20 << 20))
    # A head that takes every photo for the next label.
    head, _ = load_head(candidate / contract.HEAD_FILE)
    shifted = replace(head, kernel=np.roll(head.kernel, 1, axis=1), bias=np.roll(head.bias, 1))
    save_head(candidate / contract.HEAD_FILE, shifted)
    places = ("--live", live, "--embedding_store", copy_store(trained, tmp_path))
    done, record = validate("--bundle", candidate, *places)
    assert isinstance(done.exception, GateRejected)
    expected = {"warm-up requests", "accuracy", "log-loss", "size", "the head file agrees with the graph"}
    assert expected <= set(record["failed"])
    assert all(name in expected or name.startswith(("recall of", "cal")) for name in record["failed"])
    with pytest.raises(GateRejected, match="warm-up requests"):
        promote(DeploymentTarget(tmp_path / "served", "food"), source=candidate)


@pytest.mark.tf
@pytest.mark.beam
def test_a_bundle_of_hubhead_0_1_is_compared_by_its_recorded_figures(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The graph does not depend on the metadata: the tests above check it alone.
    monkeypatch.setattr(gate, "_check_alone", lambda *_: None)
    candidate, live = pair
    (candidate / contract.TEST_PHOTOS_FILE).unlink()
    shutil.copyfile(REPO / "tests" / "corpus" / "hubhead_0_1.json", candidate / contract.METADATA_FILE)
    done, record = validate("--bundle", candidate, "--live", live, "--min_photos", "10")
    assert record["failed"] == ["photos compared"]
    checks = {check["name"]: check for check in record["checks"]}
    assert "Recorded figures are compared" in checks["photos compared"]["detail"]
    assert "their own test photos (45 and 45)" in checks["accuracy"]["detail"]
    done, record = validate("--bundle", candidate, "--live", live)
    assert done.exit_code == 0, done.output


@pytest.mark.tf
@pytest.mark.beam
def test_photos_without_embeddings_are_read_from_where_the_store_knows_them(
    trained: Trained, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """A live version with another backbone, whose embeddings the store does not have."""
    candidate, live = pair
    record = json.loads((live / contract.METADATA_FILE).read_text())
    record["backbone"]["fingerprint"] = "0" * 64
    (live / contract.METADATA_FILE).write_text(json.dumps(record))
    versions = [(bundle.read(path), None) for path in (candidate, live)]
    checks = gate._compare_with_live(*versions, (), str(copy_store(trained, tmp_path)), RegressionLimits())
    by_name = {check.name: check for check in checks}
    assert by_name["photos compared"].figure == len(trained.result.test_photos)
    assert "(0 gained, 0 lost)" in by_name["accuracy"].detail


@pytest.mark.tf
@pytest.mark.server
def test_a_bundle_that_does_not_load_gets_a_verdict_and_can_be_forced(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    candidate, _ = pair
    for file in (candidate / "variables").iterdir():
        file.unlink()
    done, record = validate("--bundle", candidate)
    assert isinstance(done.exception, GateRejected)
    assert set(record["failed"]) == {"loads as in TensorFlow Serving", "loads in the runtime"}
    assert verdict.read(candidate)
    with pytest.raises(GateRejected):
        promote(DeploymentTarget(tmp_path / "served", "food"), source=candidate)
    done, record = validate("--bundle", candidate, "--force")
    assert done.exit_code == 0, done.output
    assert record["forced"]
    assert record["failed"]
    promote(DeploymentTarget(tmp_path / "served", "food"), source=candidate)

"""Comparison with the live version in real trainings; a worse version is not published."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from serving import bundle, contract
from serving.bundle import training_digests
from serving.errors import GateRejected
from serving.runtime.session import PARITY_TOLERANCE
from tests.support.live_comparison import sha
from tests.support.trained import writable_settings
from trainer import heads
from trainer.dataset import Example
from trainer.export.bundle import reexport
from trainer.export.head_file import load_head, save_head
from trainer.heads import Floats
from trainer.training import live_comparison

if TYPE_CHECKING:
    from tests.support.trained import Trained


def load_test_features(trained: Trained) -> tuple[list[Example], Floats]:
    """Return the test photos of the shared training, and their embeddings."""
    from batch.embeddings import EmbeddingStore
    from trainer import dataset
    from trainer.evaluation.features import load_features

    metadata = trained.result.bundle.metadata
    store = EmbeddingStore(trained.settings.embedding_store, metadata.fingerprint, metadata.dimension)
    found = load_features(dataset.scan(trained.settings.image_dir), store)
    tested = {uri for uri, _ in trained.result.test_photos}
    rows = [row for row, example in enumerate(found.examples) if example.uri in tested]
    return [found.examples[row] for row in rows], found.embeddings[rows]


@pytest.mark.tf
@pytest.mark.beam
def test_live_version_with_another_backbone_is_compared_on_the_photos_bytes(
    trained: Trained, tmp_path: Path
) -> None:
    published = trained.result.bundle
    examples, embeddings = load_test_features(trained)
    gone = Example(str(tmp_path / "gone.jpg"), sha(1), examples[0].label)
    examples, embeddings = [gone, *examples], np.vstack([embeddings[:1], embeddings])
    labels = published.metadata.labels
    fitted, _ = load_head(published.path / contract.HEAD_FILE)
    probabilities = fitted.probabilities(embeddings)
    store = str(tmp_path / "empty")
    same = live_comparison.compare_with_live(
        published, published.metadata.fingerprint, labels, examples, embeddings, probabilities, store
    )
    other = live_comparison.compare_with_live(
        published, "0" * 64, labels, examples, embeddings, probabilities, store
    )
    assert (same.same_backbone, other.same_backbone) == (True, False)
    assert other.left_out == {"that a version rejects or that cannot be read": 1}
    assert (same.difference.n, other.difference.n) == (len(examples), len(examples) - 1)
    assert (same.difference.gained, same.difference.lost) == (0, 0)
    assert (other.difference.gained, other.difference.lost) == (0, 0)
    assert abs(other.difference.log_loss.value) < PARITY_TOLERANCE


@pytest.mark.tf
@pytest.mark.beam
def test_repeated_training_is_not_worse_and_reports_the_comparison(trained: Trained, tmp_path: Path) -> None:
    from trainer.training.run import train
    from trainer.training.summary import format_summary

    settings = replace(
        writable_settings(trained, tmp_path),
        saved_model_dir=tmp_path / "models" / "food",
        output_labels=None,
        compare_with=trained.result.bundle.path,
        assert_not_worse_than_live=0.0,
        cross_validate=2,
    )
    result = train(settings)
    found = result.comparison
    assert found is not None
    assert (found.difference.n, found.difference.gained, found.difference.lost) == (
        len(result.test_photos),
        0,
        0,
    )
    assert found.trained_on_known
    assert not found.left_out
    assert result.cross_validation is not None
    assert result.cross_validation.accuracy.n == sum(result.subsets.values())
    metrics = result.bundle.metadata.metrics
    assert metrics["comparison"]["difference"]["lost"] == 0
    assert metrics["cross_validate"]["folds"] == 2
    summary = format_summary(result)
    assert "Compared with version 1 of food: accuracy +0.0%" in summary
    assert "Accuracy by 2-fold cross-validation: " in summary
    page = (result.bundle.path / contract.REPORT_FILE).read_text(encoding="utf-8")
    assert "Comparison with version 1 of food" in page
    assert "2-fold cross-validation" in page
    again = reexport(result.bundle.path, tmp_path / "again", threshold=0.5)
    marks = [training_digests.read(path) for path in (result.bundle.path, again.path)]
    assert marks[0] is not None
    assert len(marks[0]) == sum(result.subsets.values()) - result.subsets["testing"]
    np.testing.assert_array_equal(marks[0], marks[1])


@pytest.mark.tf
@pytest.mark.beam
def test_significantly_worse_version_is_not_published(trained: Trained, tmp_path: Path) -> None:
    from trainer.training.run import train

    # A live version that was fitted on the test photos, but does not record it.
    base = tmp_path / "models" / "food"
    shutil.copytree(trained.result.bundle.path, base / "7")
    examples, embeddings = load_test_features(trained)
    labels = trained.result.bundle.metadata.labels
    targets = np.array([example.label for example in examples])
    overfitted, _ = heads.fit(embeddings, targets, len(labels))
    save_head(base / "7" / contract.HEAD_FILE, overfitted)
    settings = replace(writable_settings(trained, tmp_path), saved_model_dir=base, output_labels=None)
    with pytest.raises(GateRejected, match="worse than version 7 of food"):
        train(replace(settings, assert_not_worse_than_live=0.0))
    assert bundle.versions(base) == [7]
    training_digests.write(
        base / "7", training_digests.truncate_digests(example.sha256 for example in examples)
    )
    with pytest.raises(GateRejected, match=r"comparison with version \d+ of food failed"):
        train(replace(settings, assert_not_worse_than_live=5.0))
    assert bundle.versions(base) == [7]
    said: list[str] = []
    result = train(settings, say=said.append)
    assert (result.bundle.version, result.comparison) == (8, None)
    assert any("The new version was not compared with the live one." in line for line in said)

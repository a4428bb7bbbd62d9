"""Record of a training: what its steps found out, and the one source of report, summary and hubhead.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from batch.monitoring.engines import EngineRecord
from serving.bundle import training_digests
from serving.bundle.sections import DataRecord
from serving.bundle.training_digests import DigestPrefixes, TestPhotos
from trainer import dataset
from trainer.dataset import Example, Subset
from trainer.dataset.near_duplicates import DuplicateReport
from trainer.evaluation.abstention import Threshold
from trainer.evaluation.cross_validation import CrossValidation
from trainer.evaluation.features import Features, HeadPredictions
from trainer.evaluation.metrics import Evaluation
from trainer.evaluation.novelty import Novelty
from trainer.evaluation.suspects import Suspects
from trainer.evaluation.version_changes import LiveComparison
from trainer.heads import Floats, Head, Ints, Selection, Vectors


@dataclass(frozen=True)
class TrainingData:
    """The photos of a training, split into sets.

    Attributes:
        labels: K label names, in the order of the head's columns.
        features: N distinct photos with their embeddings, and the files that could not be used.
        subsets: set of each photo.
        duplicates: exact and near duplicates.
        groups: int64 [N]; photos with the same number stay together.
    """

    labels: Sequence[str]
    features: Features
    subsets: Sequence[Subset]
    duplicates: DuplicateReport
    groups: Ints

    @property
    def examples(self) -> Sequence[Example]:
        """The N photos."""
        return self.features.examples

    @property
    def embeddings(self) -> Vectors:
        """Embeddings float16 [N,D]."""
        return self.features.embeddings

    @cached_property
    def targets(self) -> Ints:
        """True classes int64 [N]."""
        return np.array([example.label for example in self.examples], np.int64)

    def rows(self, *subsets: Subset) -> Ints:
        """Return the row numbers int64 [n] of the photos of some sets, one set after the other."""
        found = [np.flatnonzero([own is subset for own in self.subsets]) for subset in subsets]
        return np.concatenate(found)

    def select(self, rows: Ints) -> list[Example]:
        """Return the photos of some rows."""
        return [self.examples[row] for row in rows.tolist()]

    def count_subsets(self) -> dict[str, int]:
        """Return the number of photos in each set."""
        return {str(subset): len(self.rows(subset)) for subset in Subset}

    def count_labels(self) -> dict[str, int]:
        """Return the number of photos of each label."""
        return dataset.count_labels((example.label for example in self.examples), self.labels)

    def to_dict(self) -> DataRecord:
        """Return the summary of the dataset for hubhead.json."""
        return {
            "photos": self.count_subsets(),
            "labels": self.count_labels(),
            "left_out": len(self.features.left_out),
            "duplicates": len(self.features.files) - len(self.examples),
            "near_duplicates": sum(len(group.pictures) for group in self.duplicates.near),
            "test_photos_like_training_photos": len(self.duplicates.leaked_photos()),
        }

    def training_digests(self) -> DigestPrefixes:
        """Return the digests of the photos that the head is trained on."""
        used = self.select(self.rows(Subset.TRAINING, Subset.VALIDATION))
        return training_digests.truncate_digests(example.sha256 for example in used)

    def test_photos(self) -> TestPhotos:
        """Return the digests and labels of the test photos."""
        tested = self.select(self.rows(Subset.TESTING))
        labels = tuple(self.labels[example.label] for example in tested)
        return TestPhotos(tuple(example.sha256 for example in tested), labels)


@dataclass(frozen=True)
class FittedHead:
    """The head of a training, with its evaluation and what makes it abstain.

    Attributes:
        head: weights.
        selection: how its settings were chosen.
        predictions: its predictions for all photos.
        held_out: metrics on the photos that the settings were chosen by.
        test_probabilities: float32 [n,K] of the test photos.
        test: metrics on them; None where there are none.
        threshold: best probability below which it abstains; None if it always answers.
        novelty: score by which it rejects photos that are unlike the known ones; None for none.
    """

    head: Head
    selection: Selection
    predictions: HeadPredictions
    held_out: Evaluation
    test_probabilities: Floats
    test: Evaluation | None
    threshold: Threshold | None = None
    novelty: Novelty | None = None


class PhotoPrediction(NamedTuple):
    """Prediction for one photo.

    Attributes:
        uri: path of the photo.
        label: true label of the photo.
        predicted: best label.
        score: probability of the best label.
    """

    uri: str
    label: str
    predicted: str
    score: float


@dataclass(frozen=True)
class TrainingRecord:
    """Results of a training.

    Attributes:
        name: name of the model.
        source: folder or manifest of the photos, as the user gave it.
        data: the photos.
        fitted: the head.
        comparison: comparison with the live version; None where there is none.
        cross_validation: result of the K-fold cross-validation; None where it was not requested.
        suspects: photos whose labels may be wrong.
        engines: what embedded the photos, without those whose embeddings were stored.
        settings: settings that the user asked for and those chosen for the head, without local paths.
        seconds: wall time by step, of the steps so far.
    """

    name: str
    source: str
    data: TrainingData
    fitted: FittedHead
    comparison: LiveComparison | None = None
    cross_validation: CrossValidation | None = None
    suspects: Suspects = field(default_factory=Suspects)
    engines: Sequence[EngineRecord] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """Return the metrics for hubhead.json."""
        fitted, selection = self.fitted, self.fitted.selection
        return {
            "test": fitted.test.to_dict() if fitted.test else None,
            selection.method: fitted.held_out.to_dict() | {"strength": selection.strength},
            "comparison": self.comparison.to_dict() if self.comparison else None,
            "cross_validate": self.cross_validation.to_dict() if self.cross_validation else None,
            "abstain": {
                "threshold": fitted.threshold.to_dict() if fitted.threshold else None,
                "known_photos_kept": asdict(fitted.novelty.kept) if fitted.novelty else None,
            },
            "label_errors": self.suspects.to_dict(),
        }

    def test_predictions(self) -> tuple[PhotoPrediction, ...]:
        """Return the predictions for the test photos."""
        data, found = self.data, self.fitted.predictions
        return tuple(
            PhotoPrediction(
                data.examples[row].uri,
                data.labels[data.targets[row]],
                data.labels[found.best[row]],
                float(found.score[row]),
            )
            for row in data.rows(Subset.TESTING).tolist()
        )

"""Sections of hubhead.json as the trainer writes them, with the meaning of their keys."""

from __future__ import annotations

from typing import Any, TypedDict


class CalibrationRecord(TypedDict, total=False):
    """Calibration of the probabilities, and what makes the model abstain.

    Attributes:
        temperature: divisor of the logits.
        threshold: best probability below which the model abstains; 0 if it always answers.
        novelty_threshold: novelty score above which the model abstains; present with `--keep_known`.
        keep_known: fraction of known photos that this threshold accepts; present with `--keep_known`.
    """

    temperature: float
    threshold: float
    novelty_threshold: float
    keep_known: float


class HeadRecord(TypedDict, total=False):
    """Kind of the head, and the settings that were selected for it.

    Attributes:
        kind: `linear` or `hidden`.
        class_weight: `none` or `balanced`.
        strength: selected inverse regularisation strength C of the logistic regression.
        shrinkage: selected shrinkage of the covariance of the linear discriminant.
        shares: weights of the logistic regression and of the linear discriminant in the logits.
        temperature: selected divisor of the logits.
        held_out: photos by which the settings were selected.
        streamed: true if the features did not fit in memory and were read in blocks.
        width: units of the hidden layer; of hidden heads only.
        epochs: epochs of the hidden layer; of hidden heads only. 0: the linear head was as good.
        layer_temperature: divisor of the logits with the hidden layer; of hidden heads only.
        seed: seed of the hidden layer; of hidden heads only.
    """

    kind: str
    class_weight: str
    strength: float
    shrinkage: float
    shares: list[float]
    temperature: float
    held_out: int
    streamed: bool
    width: int
    epochs: int
    layer_temperature: float
    seed: int


class DataRecord(TypedDict, total=False):
    """Training photos and labels, and the settings by which they were split and augmented.

    Attributes:
        photos: distinct photos by set: training, validation, testing.
        labels: distinct photos by label.
        left_out: files that could not be used.
        duplicates: files whose content is that of another one.
        near_duplicates: photos in groups of near-duplicates.
        test_photos_like_training_photos: test photos with a near-duplicate among the training photos.
        split: method and percentages of the split.
        seed: seed of the training.
        augmentation: settings of the augmented views.
        views: augmented views of each training photo.
    """

    photos: dict[str, int]
    labels: dict[str, int]
    left_out: int
    duplicates: int
    near_duplicates: int
    test_photos_like_training_photos: int
    split: dict[str, Any]
    seed: int
    augmentation: dict[str, Any]
    views: int


class SuspectRecord(TypedDict):
    """Photo whose label may be wrong.

    Attributes:
        sha256: digest of the photo's content.
        label: label of the photo.
        suggested: label that it probably has instead.
        confidence: probability of its label by a head that was fitted without it; None if there is none.
        reason: `identical` or `near-duplicate` if such a photo has the suggested label, else `prediction`.
    """

    sha256: str
    label: str
    suggested: str
    confidence: float | None
    reason: str


class SuspectsRecord(TypedDict):
    """Suspected label errors.

    Attributes:
        examined: photos whose labels were compared with the prediction of a head fitted without them.
        suspected: photos whose labels are suspected.
        contradicted: photos that confident learning counts under another label.
        photos: at most 500 of the suspected photos, the most suspicious first.
    """

    examined: int
    suspected: int
    contradicted: int
    photos: list[SuspectRecord]


class ProvenanceRecord(TypedDict, total=False):
    """Origin of the bundle.

    Attributes:
        created: time of the export, ISO 8601 in UTC.
        packages: versions of the installed packages.
        cpu: CPU of the machine.
        engines: engines that embedded the photos, the number of these, and the CPU; none from the store.
        configuration: options of the commands that made the bundle, in the tables of a configuration file;
            without secrets and without paths of outputs.
    """

    created: str
    packages: dict[str, str]
    cpu: str
    engines: list[Any]
    configuration: dict[str, Any]

"""Suspected label errors of a training: duplicates under two labels, then contradicted labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from tests.support.live_comparison import sha
from trainer import heads
from trainer.dataset import Example, Subset
from trainer.dataset.near_duplicates import DuplicateGroup, DuplicatePhoto, DuplicateReport
from trainer.evaluation.suspects import MAX_RECORDED, Reason, find_suspects, rank_suspects, suspect_labels
from trainer.heads.settings import LARGE_DATASET

LABELS = ("a", "b", "c")


def make_probabilities(best: Sequence[int], confidence: float = 0.8, classes: int = 3) -> np.ndarray:
    """Return probabilities float32 [N,K] with a best class each."""
    found = np.full((len(best), classes), (1 - confidence) / (classes - 1), np.float32)
    found[np.arange(len(best)), best] = confidence
    return found


def make_examples(targets: Sequence[int], contents: Sequence[int] | None = None) -> list[Example]:
    """Return examples with the numbers of their contents; all contents differ unless given."""
    numbers = contents or range(len(targets))
    return [
        Example(f"/photos/{row}.jpg", sha(number), label)
        for row, (label, number) in enumerate(zip(targets, numbers, strict=True))
    ]


def report_near(examples: Sequence[Example], *groups: Sequence[int]) -> DuplicateReport:
    """Return a report with groups of near-duplicates, by their rows."""
    found = [
        DuplicateGroup(
            tuple(
                DuplicatePhoto(examples[row].uri, LABELS[examples[row].label], Subset.TRAINING, 0.95)
                for row in rows
            )
        )
        for rows in groups
    ]
    return DuplicateReport((), tuple(found), 0.93, len(examples), len(examples))


def test_contradicted_labels_are_ranked_by_the_probability_of_the_label() -> None:
    targets = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    probabilities = make_probabilities(targets.tolist())
    probabilities[1] = [0.2, 0.78, 0.02]
    probabilities[6] = [0.9, 0.05, 0.05]
    found = rank_suspects(targets, np.arange(8), probabilities)
    assert [(one.row, one.suggested, one.reason) for one in found] == [
        (6, 0, Reason.PREDICTION),
        (1, 1, Reason.PREDICTION),
    ]
    assert found[0].confidence == pytest.approx(0.05)


def test_duplicates_under_two_labels_come_first_identical_ones_before_near_ones() -> None:
    targets = [0, 1, 2, 0, 1, 1, 2, 0]
    examples = make_examples(targets, [0, 1, 2, 3, 4, 5, 5, 6])
    probabilities = make_probabilities(targets)
    probabilities[7] = [0.01, 0.98, 0.01]
    rows = np.arange(8)
    found = find_suspects(examples, LABELS, rows, probabilities, report_near(examples, [0, 1]))
    assert [(photo.uri[8:], photo.reason) for photo in found.photos] == [
        ("5.jpg", "identical"),
        ("6.jpg", "identical"),
        ("0.jpg", "near-duplicate"),
        ("1.jpg", "near-duplicate"),
        ("7.jpg", "prediction"),
    ]
    assert [photo.suggested for photo in found.photos] == ["c", "b", "b", "a", "b"]
    assert found.examined == 8


def test_only_the_minority_of_a_group_of_duplicates_is_suspected() -> None:
    examples = make_examples([0, 0, 0, 1])
    found = find_suspects(
        examples, LABELS, np.arange(4), make_probabilities([0, 0, 0, 1]), report_near(examples, range(4))
    )
    assert [(photo.uri, photo.label, photo.suggested) for photo in found.photos] == [
        ("/photos/3.jpg", "b", "a")
    ]


def test_a_photo_is_listed_once_though_it_is_suspected_twice() -> None:
    examples = make_examples([0, 1, 1, 1, 0, 0])
    probabilities = make_probabilities([1, 1, 1, 1, 0, 0])
    found = find_suspects(examples, LABELS, np.arange(6), probabilities, report_near(examples, [0, 1]))
    assert [photo.uri for photo in found.photos].count("/photos/0.jpg") == 1


def test_duplicates_are_suspected_without_probabilities_and_have_no_confidence() -> None:
    examples = make_examples([0, 1, 0])
    nothing = np.zeros((0, 3), np.float32)
    found = find_suspects(examples, LABELS, np.zeros(0, np.int64), nothing, report_near(examples, [0, 1]))
    assert [photo.confidence for photo in found.photos] == [None, None]
    assert (found.examined, found.contradicted) == (0, 0)


def test_record_has_no_paths_and_at_most_the_first_photos() -> None:
    targets = [0, 1] * (MAX_RECORDED + 10)
    examples = make_examples(targets)
    probabilities = make_probabilities(
        [1 - target if row % 2 else target for row, target in enumerate(targets)]
    )
    # Class 1 is always contradicted, so that half of the photos are suspected.
    found = find_suspects(
        examples, LABELS, np.arange(len(targets)), probabilities, DuplicateReport((), (), 0.93, 1, 1)
    )
    record = found.to_dict()
    assert record["suspected"] == len(found.photos) > MAX_RECORDED
    assert len(record["photos"]) == MAX_RECORDED
    assert "/photos" not in str(record)
    assert record["photos"][0]["sha256"] == found.photos[0].sha256
    assert found.list_photos()[0] == {
        "photo": found.photos[0].uri,
        "sha256": found.photos[0].sha256,
        "label": "b",
        "suggested": "a",
        "confidence": pytest.approx(0.1),
        "reason": "prediction",
    }


@pytest.mark.parametrize(
    ("count", "validation"),
    [(60, 0), (60, 10), (1200, 600), (LARGE_DATASET + 100, 0), (LARGE_DATASET + 100, 600)],
)
def test_rows_held_out_are_those_of_the_selection(count: int, validation: int) -> None:
    random = np.random.default_rng(0)
    targets = random.integers(0, 3, count)
    embeddings = (np.eye(3, 8)[targets] + random.normal(0, 0.5, (count, 8))).astype(np.float32)
    fitted = count - validation
    _, selection = heads.fit(
        embeddings[:fitted],
        targets[:fitted],
        3,
        validation=(embeddings[fitted:], targets[fitted:]) if validation else None,
        seed=4,
    )
    rows = heads.list_held_out(targets, validation, 3, 4)
    assert len(set(rows.tolist())) == len(rows) == len(selection.targets)
    assert np.array_equal(selection.targets, targets[rows])
    # The labels could agree by chance: the predictions agree with those photos' embeddings alone.
    assert np.mean(selection.probabilities.argmax(axis=1) == embeddings[rows, :3].argmax(axis=1)) > 0.8


def test_confidence_of_a_photo_without_probabilities_is_not_a_number() -> None:
    found = rank_suspects(
        np.array([0, 1]), np.zeros(0, np.int64), np.zeros((0, 2), np.float32), [(Reason.IDENTICAL, [0, 1])]
    )
    assert all(math.isnan(one.confidence) for one in found)


def test_labels_are_suspected_from_embeddings_alone() -> None:
    random = np.random.default_rng(0)
    true = np.arange(90) % 3
    embeddings = (np.eye(3, 16)[true] + random.normal(0, 0.15, (90, 16))).astype(np.float32)
    embeddings[89] = embeddings[0]  # a near-duplicate of another class
    given = true.copy()
    given[[5, 17]] = (true[[5, 17]] + 1) % 3
    found = suspect_labels(make_examples(given.tolist()), 3, embeddings)
    assert {one.row for one in found[:2]} == {0, 89}
    assert found[0].reason is Reason.NEAR_DUPLICATE
    assert {(one.row, one.suggested) for one in found[2:4]} == {(5, true[5]), (17, true[17])}

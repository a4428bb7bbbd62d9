"""The training report: escaping, confusion matrix, headline, duplicates and samples."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.html_assertions import HOSTILE, Page, check_self_contained
from tests.support.trainer_report import make_record, make_report
from trainer import heads, report
from trainer.dataset import Example, Subset
from trainer.dataset.near_duplicates import DuplicateGroup, DuplicatePhoto, DuplicateReport
from trainer.evaluation.suspects import Reason, Suspect, Suspects
from trainer.report.contents import MAX_BATCH, MAX_PICTURES

pytestmark = pytest.mark.tf


def test_labels_and_paths_are_escaped_everywhere(tmp_path: Path) -> None:
    labels = (HOSTILE, "crème brûlée 寿司 عسل", "a & b", "half \ud800 of a character, \x00 and \x1b")
    pictures = (
        DuplicatePhoto(HOSTILE, HOSTILE, Subset.TRAINING),
        DuplicatePhoto("<img src=x>", "a & b", Subset.TESTING),
    )
    group = DuplicateGroup(pictures)
    near = DuplicateGroup(tuple(replace(picture, similarity=0.95) for picture in pictures))
    example = make_report(
        tmp_path, labels, noise=1.5, found=DuplicateReport((group,), (near,), 0.93, 48, 48)
    ).report
    data = example.record.data
    features = replace(data.features, left_out=((HOSTILE, HOSTILE),))
    record = replace(
        example.record, name=HOSTILE, data=replace(data, features=features), seconds={HOSTILE: 1.0}
    )
    text = report.render(
        replace(
            example,
            record=record,
            settings={HOSTILE: HOSTILE},
            versions={HOSTILE: HOSTILE},
            created=HOSTILE,
        ),
        dict.fromkeys(example.pictured, b"jpeg"),
    )
    text.encode()
    check_self_contained(text)
    page = Page(text)
    assert page.text.count(HOSTILE) >= 15
    for label in labels[1:3]:
        assert label in page.text
    assert "<b>&amp;.jpg" in page.text
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", text)


def test_confusion_matrix_shows_the_counts(tmp_path: Path) -> None:
    example = make_report(tmp_path, ("a", "b", "c"), noise=1.0).report
    page = Page(report.render(example, {}))
    titles = [(cell["title"] or "").split(",")[0] for cell in page.all("td") if cell.get("title")]
    shown = example.by_label
    assert sorted(titles) == sorted(
        f"{label} predicted as {other}: {count} of {sum(counts)}"
        for label, counts in zip(shown.labels, shown.confusion, strict=True)
        for other, count in zip(shown.labels, counts, strict=True)
        if count
    )


def test_headline_uses_held_out_photos_where_there_are_no_test_photos(tmp_path: Path) -> None:
    page = Page(report.render(make_report(tmp_path, ("a", "b"), tested=False).report, {}))
    assert "24 held-out photos get the right label" in page.text
    assert "There are no test photos." in page.text
    assert "Misclassified" not in page.text


def test_report_without_misclassified_photos_says_so(tmp_path: Path) -> None:
    example = make_report(tmp_path, ("a", "b"), noise=0.01).report
    assert example.misclassified == ()
    page = Page(report.render(example, {}))
    assert "None: every test photo gets the right label." in page.text


def test_contradictory_duplicates_come_first_and_identical_files_have_one_thumbnail(tmp_path: Path) -> None:
    same = DuplicateGroup(
        (DuplicatePhoto("1.jpg", "a", Subset.TRAINING), DuplicatePhoto("2.jpg", "a", Subset.TRAINING))
    )
    torn = DuplicateGroup(
        (DuplicatePhoto("3.jpg", "a", Subset.TRAINING), DuplicatePhoto("4.jpg", "b", Subset.TRAINING))
    )
    across = DuplicateGroup(
        (
            DuplicatePhoto("5.jpg", "a", Subset.TRAINING, 0.95),
            DuplicatePhoto("6.jpg", "a", Subset.TRAINING, 0.95),
            DuplicatePhoto("7.jpg", "a", Subset.TESTING, 0.95),
        )
    )
    example = make_report(
        tmp_path, ("a", "b"), found=DuplicateReport((same, torn), (across,), 0.93, 9, 9)
    ).report
    assert example.duplicate_groups == (torn, across, same)
    assert [uri for uri in example.pictured if "/" not in uri] == ["3.jpg", "5.jpg", "7.jpg", "1.jpg"]
    words = Page(report.render(example, {})).text
    assert "Identical files, under different labels" in words
    assert "Nearly the same, in different sets" in words


def test_sample_of_a_label_is_its_most_confident_training_photo(tmp_path: Path) -> None:
    examples = [Example(f"{number}.jpg", f"{number:064x}", number % 2) for number in range(6)]
    own = np.array([0.5, 0.9, 0.7, 0.6, 0.99, 0.2], np.float32)
    probabilities = np.stack([own, 1 - own], axis=1)
    probabilities[1::2] = probabilities[1::2, ::-1]
    subsets = [Subset.TRAINING] * 4 + [Subset.TESTING] * 2
    targets = np.array([0, 1, 0, 1])
    selection = heads.Selection("validation", 3.0, {3.0: 0.5}, probabilities[:4], targets)
    head, _ = heads.fit(np.eye(4, dtype=np.float32), targets, 2)
    composed = report.compose(make_record(examples, subsets, ("a", "b"), head, selection, probabilities))
    assert [row.sample for row in composed.labels] == ["2.jpg", "1.jpg"]
    assert [photo.uri for photo in composed.misclassified] == ["5.jpg"]
    assert [photo.uri for photo in composed.least_confident] == ["4.jpg"]
    check_self_contained(report.render(composed, {}))


def test_suspected_label_errors_are_shown_with_the_reason(tmp_path: Path) -> None:
    example = make_report(tmp_path, ("a <b>", "b"))
    photos = [str(path) for path in sorted(tmp_path.glob("*.jpg"))[:2]]
    suspects = Suspects(
        (
            Suspect(photos[0], "0", "b", "a <b>", None, Reason.NEAR_DUPLICATE),
            Suspect(photos[1], "1", "a <b>", "b", 0.04, Reason.PREDICTION),
        ),
        48,
        3,
    )
    composed = report.compose(replace(example.report.record, suspects=suspects))
    assert set(photos) <= set(composed.pictured)
    page = Page(report.render(composed, {}))
    assert "Suspected label errors" in page.text
    assert "All 2 photos whose label may be wrong" in page.text
    assert "a near-duplicate has this label" in page.text
    assert "label a <b> 4 %" in page.text
    check_self_contained(report.render(composed, {}))


def test_report_without_suspected_label_errors_has_no_section_about_them(tmp_path: Path) -> None:
    page = Page(report.render(make_report(tmp_path, ("a", "b")).report, {}))
    assert "Suspected" not in page.text


def test_a_batch_of_test_photos_is_drawn_at_random_with_truth_and_prediction(tmp_path: Path) -> None:
    example = make_report(tmp_path, [f"label {n:02}" for n in range(20)], noise=0.5).report
    tested = example.record.test_predictions()
    assert len(example.batch) == MAX_BATCH < len(tested)
    assert set(example.batch) <= set(tested)
    assert len({photo.label for photo in example.batch}) > 5
    assert report.compose(example.record).batch == example.batch
    assert {photo.uri for photo in example.batch} <= set(example.pictured)
    section = (
        Page(report.render(example, {})).text.split("Test photos at random")[1].split("Misclassified test")[0]
    )
    right = sum(photo.predicted == photo.label for photo in example.batch)
    assert f"12 test photos, drawn at random from {len(tested)}: what to expect" in section
    assert f"{right} of them {'is' if right == 1 else 'are'} right." in section
    for photo in example.batch:
        assert f"label {photo.label} predicted {photo.predicted}" in section


def test_the_batch_has_all_test_photos_where_there_are_few(tmp_path: Path) -> None:
    example = make_report(tmp_path, ("a", "b"), photos=4).report
    assert sorted(example.batch) == sorted(example.record.test_predictions())
    assert make_report(tmp_path, ("a", "b"), photos=4, tested=False).report.batch == ()


def test_the_table_of_many_labels_is_collapsed_after_the_hardest(tmp_path: Path) -> None:
    example = make_report(tmp_path, [f"label {n:03}" for n in range(257)], photos=4, noise=0.3).report
    text = report.render(example, dict.fromkeys(example.pictured, b"jpeg"))
    shown, _, hidden = text.partition("<details>")
    assert "<summary>227 more labels, with a higher F1 or none</summary>" in hidden
    rows = [
        part.split('class="labels"')[1].count('<th scope="row"')
        for part in (shown, hidden.split("</details>")[0])
    ]
    assert rows == [30, 227]
    assert "<img" not in hidden.split("</details>")[0]
    assert len(example.pictured) <= MAX_PICTURES
    few = report.render(make_report(tmp_path, [f"label {n:02}" for n in range(30)], photos=4).report, {})
    assert "<details>" not in few

"""Judgement of a candidate, photos of the comparison, verdict and choice of the live version."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from batch.embeddings import Embeddings, EmbeddingStore, hash_photo
from batch.inputs.listing import Photo, stat_photo
from serving import contract
from serving.bundle import METADATA_FORMAT, BundleMetadata, training_digests
from serving.bundle.training_digests import TestPhotos
from serving.contract import Status
from serving.errors import BundleError, InputError
from serving.registry import verdict
from serving.registry.verdict import Check, Verdict
from tests.bench.gate import Scenario, count_blocked
from tests.support.live_comparison import FINGERPRINT, sha, write_live_bundle
from trainer.commands.validate import _list_photos, _resolve_live
from trainer.dataset import Example, LabelledPhoto
from trainer.evaluation.noninferiority import paired_proportions
from trainer.evaluation.version_changes import LiveComparison
from trainer.gate import gate, predictions, thresholds
from trainer.gate.comparison import compare_predictions, select_photos
from trainer.gate.predictions import Predictions, predict
from trainer.gate.thresholds import RegressionLimits
from trainer.heads import Head, Scaling

LABELS = ["a", "b", "c"]
METADATA_0_1 = Path(__file__).parents[2] / "corpus" / "hubhead_0_1.json"
"""Metadata of a bundle of hubhead 0.1, which has no file of test photos."""


def metadata(accuracy: float = 0.8, recall: float = 0.8, n: int = 10_000, **test: Any) -> BundleMetadata:
    figures = {
        "accuracy": {"value": accuracy, "n": n},
        "log_loss": 0.5,
        "calibration": {"error": 0.03},
        "recall": {"a": {"value": recall, "n": n}, "b": {"value": 0.9, "n": n}},
    }
    return BundleMetadata(
        ["a", "b"], {"fingerprint": FINGERPRINT, "dimension": 3}, {}, metrics={"test": figures | test}
    )


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.passed is False]


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


# --- Recorded figures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (metadata(), []),
        (metadata(accuracy=0.78), []),
        (metadata(accuracy=0.75), ["accuracy"]),
        (metadata(recall=0.7), []),
        (metadata(recall=0.65), ["recall of a"]),
        (metadata(recall=0.1, n=19), []),
        (metadata(accuracy=0.7, n=45), []),
        (metadata(log_loss=5.0), []),
        (replace(metadata(), metrics={}), []),
    ],
)
def test_recorded_figures_fail_if_they_are_worse_with_confidence(
    new: BundleMetadata, expected: list[str]
) -> None:
    assert failed(thresholds.judge_recorded(new, metadata(), RegressionLimits(), "No photo.")) == expected


def test_a_verdict_by_recorded_figures_says_so() -> None:
    checks = by_name(thresholds.judge_recorded(metadata(), metadata(), RegressionLimits(), "No photo."))
    assert "No photo. Recorded figures are compared" in checks["photos compared"].detail
    assert checks["accuracy"].passed
    assert "their own test photos (10000 and 10000)" in checks["accuracy"].detail
    assert (checks["log-loss"].passed, checks["log-loss"].detail) == (None, "0.5 against 0.5: shown only")
    few = by_name(thresholds.judge_recorded(metadata(n=45), metadata(n=45), RegressionLimits(), ""))
    assert few["accuracy"].passed is None
    assert re.search(r"too few to tell; about 4,\d\d0 would be needed", few["accuracy"].detail)


@pytest.mark.parametrize("empty", [True, False])
def test_missing_figures_are_not_judged(empty: bool) -> None:
    pair = [metadata(), replace(metadata(), metrics={})]
    new, live = reversed(pair) if empty else pair
    checks = by_name(thresholds.judge_recorded(new, live, RegressionLimits(), ""))
    assert checks["accuracy"].passed is None
    assert "not judged" in checks["accuracy"].detail


def test_required_photos_that_are_missing_reject_the_candidate() -> None:
    limits = RegressionLimits(photos=1)
    assert failed(thresholds.judge_recorded(metadata(), metadata(), limits, "")) == ["photos compared"]


def test_metadata_of_hubhead_0_1_is_read_and_judged() -> None:
    found = METADATA_FORMAT.parse(METADATA_0_1.read_bytes(), METADATA_0_1, remedy="")
    checks = by_name(thresholds.judge_recorded(found, found, RegressionLimits(), ""))
    assert checks["accuracy"].figure == pytest.approx(34 / 45)
    assert "75.6% against 75.6%" in checks["accuracy"].detail
    assert len([name for name in checks if name.startswith("recall of ")]) == 10
    assert not failed(list(checks.values()))


# --- Figures on the same photos -------------------------------------------------------------------------


def compare_versions(tmp_path: Path, count: int, *, lost: int = 0, gained: int = 0) -> LiveComparison:
    """Return a comparison on `count` photos of three labels; of label "a" some are gained and lost."""
    targets = np.arange(count) % 3
    live = write_live_bundle(tmp_path / "food", make_head(), LABELS, seen=[])
    right = (0.1 + 0.7 * np.eye(3, dtype=np.float32))[targets]
    wrong = (0.1 + 0.7 * np.eye(3, dtype=np.float32))[(targets + 1) % 3]
    of_a = np.flatnonzero(targets == 0)
    new, old = right.copy(), right.copy()
    new[of_a[:lost]] = wrong[of_a[:lost]]
    old[of_a[lost : lost + gained]] = wrong[of_a[lost : lost + gained]]
    examples = [Example("", sha(number), label) for number, label in enumerate(targets.tolist())]
    every = np.ones(count, bool)
    return compare_predictions(
        live,
        LABELS,
        select_photos(examples, LABELS, live),
        Predictions(new, every),
        Predictions(old, every),
        same_backbone=True,
    )


def make_head() -> Head:
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    return Head(Scaling(zeros, ones), 4 * np.eye(3, dtype=np.float32), zeros, 1.0)


def test_a_fall_beyond_the_tolerance_fails(tmp_path: Path) -> None:
    checks = thresholds.judge(compare_versions(tmp_path, 1200, lost=80, gained=10), RegressionLimits())
    assert failed(checks) == ["accuracy", "log-loss", "recall of a"]
    found = by_name(checks)
    assert found["accuracy"].detail == (
        "93.3% against 99.2% on the same 1200 photos (10 gained, 80 lost): worse by more than the tolerance"
    )
    assert found["accuracy"].limit == pytest.approx(1190 / 1200 - 0.02)
    live = -np.log([0.8] * 1190 + [0.1] * 10).mean()
    assert found["log-loss"].limit == pytest.approx(live + 0.05)
    assert found["recall of b"].passed
    assert found["photos compared"].figure == 1200


def test_a_fall_within_the_tolerance_passes(tmp_path: Path) -> None:
    checks = by_name(
        thresholds.judge(compare_versions(tmp_path, 1200, lost=14, gained=10), RegressionLimits())
    )
    for name in ("accuracy", "log-loss", "calibration error", "recall of a"):
        assert checks[name].passed, checks[name]


def test_too_few_photos_leave_the_question_open_and_state_how_many_it_takes(tmp_path: Path) -> None:
    comparison = compare_versions(tmp_path, 45, lost=3, gained=2)
    found = by_name(thresholds.judge(comparison, RegressionLimits()))
    assert found["accuracy"].passed is None
    assert found["accuracy"].detail == (
        "93.3% against 95.6% on the same 45 photos (2 gained, 3 lost): "
        "too few to tell; about 1,970 would be needed"
    )
    assert found["recall of a"].detail.endswith("too few for a check")
    assert found["photos compared"].passed is None
    required = thresholds.judge(comparison, RegressionLimits(photos=46))
    assert failed(required) == ["photos compared"]
    assert by_name(thresholds.judge(comparison, RegressionLimits(photos=45)))["photos compared"].passed


def test_a_tolerance_of_0_rejects_significant_decreases_only(tmp_path: Path) -> None:
    limits = RegressionLimits(accuracy=0.0, log_loss=0.0, calibration=0.0, label=0.0)
    for lost in (0, 3):
        comparison = compare_versions(tmp_path / str(lost), 300, lost=lost, gained=lost)
        assert not failed(thresholds.judge(comparison, limits))
    assert "accuracy" in failed(thresholds.judge(compare_versions(tmp_path / "10", 300, lost=10), limits))


def test_a_single_photo_decides_nothing(tmp_path: Path) -> None:
    assert not failed(thresholds.judge(compare_versions(tmp_path, 1, lost=1), RegressionLimits()))


def test_a_recall_is_judged_within_its_family(tmp_path: Path) -> None:
    # 10 of 40 photos lost, 1 gained: below 0.05 by itself, but not among the five tests of the family.
    comparison = compare_versions(tmp_path, 120, lost=10, gained=1)
    check = by_name(thresholds.judge(comparison, RegressionLimits(accuracy=0.5, log_loss=9.0)))["recall of a"]
    change = next(change for change in comparison.labels if change.label == "a")
    alone = paired_proportions(change.gained, change.lost, change.new.n, 0.1)
    assert 0.01 < alone.p_value < 0.05
    assert check.passed is None


@pytest.mark.parametrize("photos", [45, 200])
def test_few_candidates_without_a_real_change_are_blocked(photos: int) -> None:
    assert count_blocked(Scenario(0.0, 0.1), photos, 60)["any"] <= 3


def test_a_real_fall_of_5_points_is_blocked() -> None:
    blocked = count_blocked(Scenario(0.05, 0.1), 1000, 20)
    assert blocked["any"] >= 18
    assert blocked["accuracy"] >= 16


# --- Photos of a comparison -----------------------------------------------------------------------------


def write_store(root: Path, contents: dict[str, NDArray[np.float32] | None]) -> None:
    """Write the embedding of each content, or the status corrupt, and an index of `<root>/<content>`."""
    shas = [hash_photo(content.encode()) for content in contents]
    vectors = [np.zeros(3) if vector is None else vector for vector in contents.values()]
    statuses = [Status.CORRUPT if vector is None else Status.OK for vector in contents.values()]
    sides = np.ones(len(contents), np.int32)
    rows = Embeddings(shas, np.array(vectors, np.float16), statuses, [None] * len(contents), sides, sides)
    photos = {Photo(str(root / name), len(name), 1): sha for name, sha in zip(contents, shas, strict=True)}
    EmbeddingStore(str(root), FINGERPRINT, 3).append(photos, rows)


def test_a_version_predicts_stored_embeddings_without_reading_photos(tmp_path: Path) -> None:
    version = write_live_bundle(tmp_path / "food", make_head(), LABELS)
    write_store(tmp_path / "store", {"one": np.eye(3)[2], "two": None, "three": np.eye(3)[0]})
    examples = [
        Example("", hash_photo(name.encode()).hex(), 0)
        for name in ("three", "two", "unknown", "one", "three")
    ]
    found = predict(version, examples, str(tmp_path / "store"))
    assert found.answered.tolist() == [True, False, False, True, True]
    assert found.probabilities[[0, 3, 4]].argmax(axis=1).tolist() == [0, 2, 0]
    assert found.probabilities[0].sum() == pytest.approx(1)


def test_files_that_changed_or_vanished_are_not_predicted(tmp_path: Path) -> None:
    version = write_live_bundle(tmp_path / "food", make_head(), LABELS)
    contents = {name: b"\xff\xd8\xff" + name.encode() for name in ("same", "changed", "gone", "last")}
    examples = [Example(str(tmp_path / name), hash_photo(contents[name]).hex(), 0) for name in contents]
    for name in ("same", "changed", "last"):
        (tmp_path / name).write_bytes(contents[name])
    (tmp_path / "changed").write_bytes(b"\xff\xd8\xffanother")
    sent: list[int] = []
    images = list(predictions._read_photos(version, examples, range(4), sent))
    assert (sent, images) == ([0, 3], [contents["same"], contents["last"]])


def test_test_photos_and_given_photos_are_compared_once_each(tmp_path: Path) -> None:
    version = write_live_bundle(tmp_path / "food", make_head(), LABELS)
    contents = ("tested", "moved", "both", "given", "foreign")
    (tmp_path / "photos").mkdir()
    for name in ("tested", "both", "given", "foreign"):
        (tmp_path / "photos" / name).write_text(name)
    digests = {name: hash_photo(name.encode()).hex() for name in contents}
    write_store(tmp_path / "photos", {name: np.eye(3)[0] for name in ("tested", "moved")})
    training_digests.write_test_photos(
        version.path,
        TestPhotos(tuple(digests[name] for name in ("tested", "moved", "both")), ("a", "b", "c")),
    )

    def listed(name: str, label: str | None) -> LabelledPhoto:
        return LabelledPhoto(stat_photo(str(tmp_path / "photos" / name)), label)

    given = [
        listed("both", "c"),
        listed("given", "a"),
        listed("foreign", "x"),
        listed("gone", "a"),
        listed("tested", None),
    ]
    assert gate._collect_examples(
        write_live_bundle(
            tmp_path / "decomposed", make_head(), [unicodedata.normalize("NFD", "à"), "b", "c"]
        ),
        [listed("given", unicodedata.normalize("NFC", "à"))],
        str(tmp_path / "photos"),
    )[1] == {"of labels that the new version does not know": 0, "that cannot be read": 0}
    examples, left_out = gate._collect_examples(version, given, str(tmp_path / "photos"))
    assert {example.sha256: (Path(example.uri).name, example.label) for example in examples} == {
        digests["both"]: ("both", 2),
        digests["given"]: ("given", 0),
        digests["tested"]: ("tested", 0),
        digests["moved"]: ("", 1),
    }
    assert left_out == {"of labels that the new version does not know": 1, "that cannot be read": 1}


def test_photos_that_either_version_was_trained_on_are_left_out(tmp_path: Path) -> None:
    new = write_live_bundle(tmp_path / "new", make_head(), LABELS, seen=[1, 2])
    live = write_live_bundle(tmp_path / "live", make_head(), ["a", "b"], seen=[0, 1])
    examples = [Example("", sha(number), number % 3) for number in range(6)]
    found = select_photos(examples, LABELS, live, new)
    assert [example.sha256 for example in found.examples] == [sha(3), sha(4)]
    assert dict(found.left_out) == {
        "that the live version was trained on": 2,
        "that the new version was trained on": 1,
        "of labels that only one version knows": 1,
    }
    assert found.trained_on_known
    unknown = write_live_bundle(tmp_path / "unknown", make_head(), LABELS)
    assert not select_photos(examples, LABELS, live, unknown).trained_on_known


def test_photos_that_one_version_rejects_are_left_out(tmp_path: Path) -> None:
    live = write_live_bundle(tmp_path / "live", make_head(), LABELS, seen=[])
    photos = select_photos([Example("", sha(number), 0) for number in range(4)], LABELS, live)
    rows = np.full((4, 3), 1 / 3, np.float32)
    new, old = (
        Predictions(rows, np.array(answered))
        for answered in ([True, False, True, True], [True, True, False, True])
    )
    found = compare_predictions(live, LABELS, photos, new, old, same_backbone=False)
    assert found.difference.n == 2
    assert found.left_out == {"that a version rejects or that cannot be read": 2}


def test_versions_without_common_photos_are_compared_by_recorded_figures(tmp_path: Path) -> None:
    new, live = (write_live_bundle(tmp_path / name, make_head(), LABELS, seen=[]) for name in ("new", "live"))
    training_digests.write_test_photos(new.path, TestPhotos((sha(1),), ("a",)))
    store = str(tmp_path / "store")
    checks = by_name(gate._compare_with_live((new, None), (live, None), [], store, RegressionLimits()))
    assert "1 that a version rejects or that cannot be read" in checks["photos compared"].detail
    assert "not judged" in checks["accuracy"].detail
    assert not failed(list(checks.values()))
    limits = RegressionLimits(photos=1)
    assert failed(gate._compare_with_live((new, None), (live, None), [], store, limits)) == [
        "photos compared"
    ]


def test_damaged_photos_of_a_sample_are_skipped(tmp_path: Path) -> None:
    version = write_live_bundle(tmp_path / "food", make_head(), LABELS)
    (tmp_path / "good.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "layers.psd").write_bytes(b"8BPS")
    photos = [
        LabelledPhoto(stat_photo(str(tmp_path / name)), None) for name in ("good.jpg", "layers.psd", "gone")
    ]
    assert gate.read_sample(version, photos) == [b"\xff\xd8\xff"]
    assert gate.read_sample(version, []) == []
    with pytest.raises(InputError, match="None of the photos can be read"):
        gate.read_sample(version, photos[1:])


def test_a_sample_has_photos_at_even_distances() -> None:
    assert gate._sample_evenly(range(10), 3) == [0, 3, 6]
    assert gate._sample_evenly([1, 2], 3) == [1, 2]


# --- Labels, ratios, verdicts ---------------------------------------------------------------------------


def test_added_and_removed_labels_are_reported() -> None:
    added, removed = thresholds.list_label_changes(["a", "c"], ["a", "b"])
    assert (added.detail, removed.detail) == ("c", "b")
    assert added.passed is removed.passed is None


def test_a_label_in_another_unicode_form_is_neither_added_nor_removed() -> None:
    composed, decomposed = (unicodedata.normalize(form, "crème") for form in ("NFC", "NFD"))
    added, removed, respelled = thresholds.list_label_changes(["a", decomposed], ["a", composed])
    assert (added.figure, removed.figure, respelled.passed) == (0, 0, None)
    assert respelled.detail == f"{decomposed!r}: the same in another Unicode form"
    figure = {"value": 0.8, "n": 1000}
    versions = [
        BundleMetadata([label], {}, {}, metrics={"test": {"accuracy": figure, "recall": {label: figure}}})
        for label in (composed, decomposed)
    ]
    checks = by_name(thresholds.judge_recorded(versions[0], versions[1], RegressionLimits(), "None."))
    assert f"recall of {composed}" in checks


def test_a_ratio_is_compared_with_its_limit() -> None:
    assert thresholds.check_ratio("latency", 15.0, 10.0, 1.5, "ms").passed
    assert thresholds.check_ratio("latency", 15.1, 10.0, 1.5, "ms").passed is False


def test_a_verdict_survives_writing_and_reading(tmp_path: Path) -> None:
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "file").write_text("content")
    before = verdict.digest(tmp_path)
    written = Verdict(before, (Check("a", True, 1.0, 2.0, "x"), Check("b", False)), "live", "now")
    verdict.write(tmp_path, written)
    assert verdict.read(tmp_path) == written
    assert not written.blessed
    assert replace(written, forced=True).blessed
    assert verdict.digest(tmp_path) == before  # the digest does not cover the verdict
    (tmp_path / "file").write_text("CONTENT")
    assert verdict.digest(tmp_path) != before
    (tmp_path / contract.VERDICT_FILE).write_text('{"checks": ')
    with pytest.raises(BundleError, match="cannot be read"):
        verdict.read(tmp_path)


def test_a_bundle_is_not_compared_with_itself(tmp_path: Path) -> None:
    directory = tmp_path / "1"
    (directory / "assets.extra").mkdir(parents=True)
    (directory / contract.SAVED_MODEL_FILE).touch()
    metadata().write(directory)
    with pytest.raises(InputError, match="both the candidate and the live"):
        gate.validate(directory, live=tmp_path)
    replace(metadata(), labels=[]).write(directory)
    with pytest.raises(BundleError, match="headless"):
        gate.validate(directory)


def test_directories_of_the_system_among_the_photos_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "__MACOSX"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"x")
    assert [photo.label for photo in _list_photos(str(tmp_path))] == ["a"]
    assert "1 directory of operating systems left out: __MACOSX." in capsys.readouterr().err


def test_a_directory_without_versions_means_no_live_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _resolve_live(tmp_path) is None
    assert "no version yet" in capsys.readouterr().err
    (tmp_path / "1").mkdir()
    assert _resolve_live(tmp_path) == tmp_path
    assert (
        _resolve_live(tmp_path / "mistyped") == tmp_path / "mistyped"
    )  # the reader reports the missing path


def test_the_version_labelled_stable_is_live(tmp_path: Path) -> None:
    config = tmp_path / "model.config"
    config.write_text(
        'model_config_list { config { name: "food" base_path: "/models/food" model_platform: "tensorflow"\n'
        'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 } } }\n'
    )
    assert (
        _resolve_live(tmp_path / "food", config) == tmp_path / "food"
    )  # the reader reports the missing path
    for number in ("1", "2"):
        (tmp_path / "food" / number).mkdir(parents=True)
        (tmp_path / "food" / number / contract.SAVED_MODEL_FILE).touch()
    assert _resolve_live(tmp_path / "food", config) == tmp_path / "food" / "1"
    assert _resolve_live(tmp_path / "food" / "2", config) == tmp_path / "food" / "2"
    config.write_text(config.read_text().replace("stable", "old"))
    with pytest.raises(InputError, match="No version of food is stable"):
        _resolve_live(tmp_path / "food", config)

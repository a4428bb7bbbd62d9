"""Thresholds, verdict and choice of the live version in the gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from serving import contract
from serving.bundle import BundleMetadata
from serving.errors import BundleError, InputError
from serving.registry import verdict
from serving.registry.verdict import Check, Verdict
from trainer.commands.validate import _resolve_live
from trainer.dataset import labelled_photos
from trainer.gate import thresholds
from trainer.gate.thresholds import RegressionLimits


def metadata(accuracy: float = 0.8, recall: float = 0.8, n: int = 50, **test: Any) -> BundleMetadata:
    figures = {
        "accuracy": {"value": accuracy, "n": 100},
        "log_loss": 0.5,
        "calibration": {"error": 0.03},
        "recall": {"a": {"value": recall, "n": n}, "b": {"value": 0.9, "n": 100}},
    }
    return BundleMetadata(["a", "b"], {}, {}, metrics={"test": figures | test})


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.passed is False]


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (metadata(), []),
        (metadata(accuracy=0.78), []),
        (metadata(accuracy=0.779), ["accuracy"]),
        (metadata(recall=0.7), []),
        (metadata(recall=0.69), ["recall of a"]),
        (metadata(recall=0.1, n=19), []),
        (metadata(log_loss=0.56), ["log-loss"]),
        (metadata(calibration={"error": 0.09}), ["calibration error"]),
        (metadata(calibration=None), ["calibration error"]),
        (replace(metadata(), metrics={}), ["accuracy", "log-loss", "calibration error"]),
    ],
)
def test_recorded_metrics_are_compared_with_the_live_version(
    new: BundleMetadata, expected: list[str]
) -> None:
    assert failed(thresholds.compare_recorded_metrics(new, metadata(), RegressionLimits())) == expected


def test_metrics_missing_in_the_live_version_are_reported_and_not_checked() -> None:
    checks = thresholds.compare_recorded_metrics(
        metadata(), replace(metadata(), metrics={}), RegressionLimits()
    )
    assert {check.passed for check in checks} == {None}


def test_added_and_removed_labels_are_reported() -> None:
    added, removed = thresholds.list_label_changes(["a", "c"], ["a", "b"])
    assert (added.detail, removed.detail) == ("c", "b")
    assert added.passed is removed.passed is None


def test_both_versions_are_evaluated_on_the_same_photos_by_their_own_labels() -> None:
    live = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], np.float32)
    new = live[:, ::-1]  # the same predictions, with the labels in another order
    truth = ["a", "b", "a", "a"]
    checks = thresholds.compare_on_photos(
        (new, ["b", "a"]), (live, ["a", "b"]), truth, RegressionLimits(label_photos=1)
    )
    assert failed(checks) == []
    accuracy, loss, recall_a, recall_b = checks
    assert (accuracy.figure, recall_a.figure, recall_b.figure) == (1.0, 1.0, 1.0)
    assert loss.figure == pytest.approx(-np.log([0.9, 0.8, 0.6, 0.7]).mean())
    worse = thresholds.compare_on_photos(
        (live, ["b", "a"]), (live, ["a", "b"]), truth, RegressionLimits(label_photos=1)
    )
    assert failed(worse) == [check.name for check in worse]


def test_a_ratio_is_compared_with_its_limit() -> None:
    assert thresholds.check_ratio("latency", 15.0, 10.0, 1.5, "ms").passed
    assert thresholds.check_ratio("latency", 15.1, 10.0, 1.5, "ms").passed is False


def test_photos_have_the_label_of_their_directory_if_it_is_a_label(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/deep/2.PNG", "b/3.jpeg", "4.jpg", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\xff\xd8\xff" + name.encode())
    found = labelled_photos.list_directory(tmp_path, ["a", "b"])
    assert [(path.name, label) for path, label in found] == [
        ("4.jpg", None),
        ("1.jpg", "a"),
        ("2.PNG", None),
        ("3.jpeg", "b"),
    ]
    assert [
        photo.label for photo in labelled_photos.sample_evenly(labelled_photos.read_photos(found), 2)
    ] == [None, None]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no photos"):
        labelled_photos.list_directory(tmp_path / "empty", ["a"])


def test_a_manifest_names_photos_and_labels(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri,label\nx/1.jpg,a\n/abs/2.jpg,\n")
    assert labelled_photos.list_manifest(tmp_path / "list.csv") == [
        (tmp_path / "x/1.jpg", "a"),
        (Path("/abs/2.jpg"), None),
    ]
    (tmp_path / "list.txt").write_text("1.jpg\n\n2.jpg\n")
    assert labelled_photos.list_manifest(tmp_path / "list.txt") == [
        (tmp_path / "1.jpg", None),
        (tmp_path / "2.jpg", None),
    ]
    (tmp_path / "list.csv").write_text("path,label\n1.jpg,a\n")
    with pytest.raises(InputError, match="no column 'uri', only 'path', 'label'"):
        labelled_photos.list_manifest(tmp_path / "list.csv")
    with pytest.raises(InputError, match="cannot be read"):
        labelled_photos.read_photos([(tmp_path / "gone.jpg", None)])


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
    from trainer.gate import gate

    directory = tmp_path / "1"
    (directory / "assets.extra").mkdir(parents=True)
    (directory / contract.SAVED_MODEL_FILE).touch()
    metadata().write(directory)
    with pytest.raises(InputError, match="both the candidate and the live"):
        gate.validate(directory, live=tmp_path)
    replace(metadata(), labels=[]).write(directory)
    with pytest.raises(InputError, match="headless"):
        gate.validate(directory)


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
    with pytest.raises(click.UsageError, match="own address"):
        _resolve_live("s3://models/food", config)

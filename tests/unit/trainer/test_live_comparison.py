"""Comparison with the live version: which photos take part, what changed, and the check for regressions."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from serving import contract
from serving.bundle import Bundle
from serving.errors import BundleError, GateRejected, InputError
from tests.support.live_comparison import FINGERPRINT, sha, write_live_bundle
from trainer import heads
from trainer.commands.train import train as command
from trainer.dataset import Example
from trainer.evaluation.paired_comparison import compare
from trainer.evaluation.version_changes import LiveComparison
from trainer.heads import Head
from trainer.training import live_comparison

if TYPE_CHECKING:
    from trainer.training.config import TrainSettings


def identity_head(classes: int, *, wrong: dict[int, int] | None = None) -> Head:
    """Return a head that predicts the largest entry of an embedding, but confuses the labels in `wrong`."""
    kernel = 4 * np.eye(classes, dtype=np.float32)
    for label, other in (wrong or {}).items():
        kernel[label] = kernel[other]
    zeros, ones = np.zeros(classes, np.float32), np.ones(classes, np.float32)
    return Head(heads.Scaling(zeros, ones), kernel, zeros, 1.0)


LABELS = ["apple", "bread", "cheese"]
EMBEDDINGS = np.tile(np.eye(3, dtype=np.float32), (4, 1))
STORE = "/nowhere"
"""Embedding store, which a comparison with the same backbone does not open."""
EXAMPLES = [Example(f"{number}.jpg", sha(number), number % 3) for number in range(12)]


def compare_head(other: Bundle, fitted: Head, labels: list[str] | None = None) -> LiveComparison:
    """Compare a head on the test photos with a live bundle."""
    labels = labels or LABELS
    return live_comparison.compare_with_live(
        other, FINGERPRINT, labels, EXAMPLES, EMBEDDINGS, fitted.probabilities(EMBEDDINGS), STORE
    )


def test_photos_that_the_live_version_was_trained_on_are_left_out(tmp_path: Path) -> None:
    other = write_live_bundle(tmp_path / "food", identity_head(3, wrong={1: 0}), LABELS, seen=[0, 1, 2, 99])
    found = compare_head(other, identity_head(3, wrong={2: 0}))
    assert found.left_out == {"that the live version was trained on": 3}
    assert (found.difference.n, found.difference.gained, found.difference.lost) == (9, 3, 3)
    assert (found.new.accuracy.value, found.live.accuracy.value) == (pytest.approx(2 / 3),) * 2
    assert [photo.uri for photo in found.newly_right] == ["4.jpg", "7.jpg", "10.jpg"]
    assert {photo.label for photo in found.newly_wrong} == {"cheese"}
    wrong = found.newly_wrong[0]
    assert (wrong.new[0], wrong.live[0]) == ("apple", "cheese")
    by_label = {change.label: change for change in found.labels}
    assert (by_label["bread"].gained, by_label["cheese"].lost, by_label["apple"].new.n) == (3, 3, 3)
    assert by_label["bread"].difference.value == 1.0
    text = " ".join(found.format_lines())
    assert "Compared with version 1 of food: accuracy +0.0%" in text
    assert "3 that the live version was trained on" in text
    assert "does not record" not in text
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["with"] == {"name": "food", "version": 1, "same_backbone": True}
    assert record["recall"]["bread"]["live"] == 0.0


def test_live_version_without_training_digests_is_reported(tmp_path: Path) -> None:
    found = compare_head(write_live_bundle(tmp_path / "food", identity_head(3), LABELS), identity_head(3))
    assert not found.trained_on_known
    assert found.difference.n == 12
    assert any("does not record which photos" in line for line in found.format_lines())


def test_added_and_removed_labels_are_listed_and_only_common_ones_compared(tmp_path: Path) -> None:
    # The live version knows damsons in place of cheese.
    other = write_live_bundle(tmp_path / "food", identity_head(3), ["apple", "bread", "damson"], seen=[])
    found = compare_head(other, identity_head(3, wrong={1: 2}))
    assert (found.added, found.removed) == (("cheese",), ("damson",))
    assert found.left_out == {"of labels that only one version knows": 4}
    # Bread is predicted as the new label, which counts as lost.
    assert (found.difference.n, found.difference.lost) == (8, 4)
    assert found.newly_wrong[0].new[0] == "cheese"
    assert [change.label for change in found.labels] == ["apple", "bread"]
    assert found.new.log_loss < 10
    text = " ".join(found.format_lines())
    assert "Added labels: 'cheese'." in text
    assert "Removed labels: 'damson'." in text


def test_label_in_another_unicode_form_is_the_same_label_and_is_named(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "crème") for form in ("NFC", "NFD"))
    live = write_live_bundle(tmp_path / "food", identity_head(3), ["apple", "bread", composed], seen=[])
    found = compare_head(live, identity_head(3), ["apple", "bread", decomposed])
    assert (found.added, found.removed, found.left_out) == ((), (), {})
    assert (found.difference.n, found.difference.lost) == (12, 0)
    assert any(f"{decomposed!r}: the same in another Unicode form" in line for line in found.format_lines())


def test_comparison_without_usable_photos_is_an_error(tmp_path: Path) -> None:
    other = write_live_bundle(tmp_path / "food", identity_head(3), LABELS, seen=list(range(12)))
    with pytest.raises(InputError, match="12 that the live version was trained on"):
        compare_head(other, identity_head(3))
    with pytest.raises(InputError, match="there are none"):
        live_comparison.compare_with_live(
            other, FINGERPRINT, LABELS, [], EMBEDDINGS[:0], EMBEDDINGS[:0], STORE
        )


@pytest.fixture
def with_changes(tmp_path: Path) -> Callable[..., LiveComparison]:
    """A function that returns a comparison on 1,000 photos with that many gained and lost."""
    found = compare_head(
        write_live_bundle(tmp_path / "food", identity_head(3), LABELS, seen=[]), identity_head(3)
    )

    def change(gained: int, lost: int) -> LiveComparison:
        new = np.tile(np.array([0.6, 0.4], np.float32), (1000, 1))
        old = new.copy()
        new[:lost], old[lost : lost + gained] = [0.4, 0.6], [0.4, 0.6]
        return replace(found, difference=compare(new, old, np.zeros(1000, np.int64)))

    return change


def test_a_number_allows_a_decrease_by_that_many_points(with_changes: Callable[..., LiveComparison]) -> None:
    live_comparison.check_not_worse(with_changes(20, 70), 4)  # 5 points lower, but 4 are within the interval
    with pytest.raises(GateRejected, match=r"worse than version 1 of food: accuracy: .* 70 lost\): worse by"):
        live_comparison.check_not_worse(with_changes(20, 70), 2)
    live_comparison.check_not_worse(with_changes(20, 70), 8)


def test_flag_without_a_value_rejects_a_significantly_less_accurate_version(
    with_changes: Callable[..., LiveComparison],
) -> None:
    for gained, lost in ((0, 0), (3, 5), (20, 0), (20, 29)):
        live_comparison.check_not_worse(with_changes(gained, lost), 0)
    with pytest.raises(GateRejected) as caught:
        live_comparison.check_not_worse(with_changes(1, 10), 0)
    assert caught.value.exit_code == 4
    assert caught.value.remedy


def test_live_version_is_the_newest_or_the_given_one(tmp_path: Path) -> None:
    base = tmp_path / "food"
    assert live_comparison.find_live_version("", base) is None
    write_live_bundle(base, identity_head(3), LABELS, version=2)
    newest = write_live_bundle(base, identity_head(3), LABELS, version=10)
    assert live_comparison.find_live_version("", base) == newest
    given = live_comparison.find_live_version(base / "2", tmp_path / "elsewhere")
    assert given is not None
    assert given.version == 2
    assert live_comparison.find_live_version(str(base), tmp_path / "elsewhere") == newest
    assert live_comparison.find_live_version("none", base) is None
    with pytest.raises(BundleError, match="does not exist"):
        live_comparison.find_live_version(tmp_path / "nothing", base)
    write_live_bundle(base, identity_head(3), [], version=11)
    with pytest.raises(BundleError, match="headless"):
        live_comparison.find_live_version("", base)


def test_damaged_training_digests_are_an_error(tmp_path: Path) -> None:
    other = write_live_bundle(tmp_path / "food", identity_head(3), LABELS, seen=[1, 2])
    path = other.path / contract.TRAINED_ON_FILE
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BundleError, match="trained_on"):
        compare_head(other, identity_head(3))


def test_unreadable_live_version_is_an_error_only_where_it_is_required(tmp_path: Path) -> None:
    from trainer.training.config import ComparisonSettings
    from trainer.training.run import find_live_bundle

    (tmp_path / "food" / "1").mkdir(parents=True)
    (tmp_path / "food" / "1" / contract.SAVED_MODEL_FILE).write_bytes(b"")
    messages: list[str] = []
    settings, base = ComparisonSettings(), tmp_path / "food"
    assert find_live_bundle(settings, base, messages.append) is None
    assert "The new version will not be compared with the live one." in messages[0]
    assert "hubhead.json" in messages[0]
    for required in ({"compare_with": tmp_path / "food"}, {"assert_not_worse_than_live": 0.0}):
        with pytest.raises(BundleError, match=r"hubhead\.json"):
            find_live_bundle(replace(settings, **required), base, messages.append)


# --- Command --------------------------------------------------------------------------------------------


@pytest.fixture
def parse_command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that returns the settings of a command line."""
    from trainer.training import run

    def parse(*arguments: str) -> TrainSettings:
        seen: list[TrainSettings] = []

        def take(settings: TrainSettings, **_: object) -> None:
            seen.append(settings)
            raise click.Abort

        monkeypatch.setattr(run, "train", take)
        CliRunner().invoke(command, ["--image_dir", "photos", *arguments])
        return seen[0]

    return parse


def test_assert_not_worse_than_live_takes_points_or_no_value(parse_command: Callable[..., Any]) -> None:
    assert parse_command().assert_not_worse_than_live is None
    assert parse_command("--assert_not_worse_than_live").assert_not_worse_than_live == 0
    given = parse_command(
        "--assert_not_worse_than_live", "--cross_validate", "4", "--compare_with", "models/food/3"
    )
    assert (given.assert_not_worse_than_live, given.cross_validate) == (0, 4)
    assert given.compare_with == "models/food/3"
    assert parse_command("--assert_not_worse_than_live", "1.5").assert_not_worse_than_live == 1.5


@pytest.mark.parametrize(
    "wrong",
    [
        ["--assert_not_worse_than_live", "--compare_with", "none"],
        ["--assert_not_worse_than_live", "101"],
        ["--assert_not_worse_than_live", "much"],
        ["--cross_validate", "1"],
    ],
)
def test_wrong_usage_exits_with_2(wrong: list[str]) -> None:
    assert CliRunner().invoke(command, ["--image_dir", "photos", *wrong]).exit_code == 2

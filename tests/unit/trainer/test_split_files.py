"""Sets by lists of photos (--split_files), as Food-101 and others with an official split have them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from serving.errors import InputError
from trainer import dataset
from trainer.commands.train import train
from trainer.dataset import DatasetListing, Subset
from trainer.dataset.split_files import UNLISTED

LABELS = ("apple_pie", "pizza")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A tree like Food-101: images/LABEL/NUMBER.jpg, and lists in meta with paths without endings."""
    for label in LABELS:
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(40):
            (tmp_path / "images" / label / f"{number:02}.jpg").write_bytes(f"{label} {number}".encode())
    write(tmp_path, "train", range(30))
    write(tmp_path, "test", range(30, 40))
    (tmp_path / "meta" / "classes.txt").write_text("apple_pie\npizza\n")
    (tmp_path / "meta" / "train.json").write_text("{}")
    return tmp_path


def write(top: Path, name: str, numbers: range, ending: str = "") -> None:
    (top / "meta").mkdir(exist_ok=True)
    lines = [f"{label}/{number:02}{ending}" for label in LABELS for number in numbers]
    (top / "meta" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def scan(top: Path) -> DatasetListing:
    return dataset.scan(top / "images", split_files=top / "meta")


def count(listing: DatasetListing) -> dict[str, int]:
    """Return the number of photos in each set."""
    return dict(Counter(listing.subsets.get(photo.uri, Subset.TRAINING) for photo in listing.photos))


def test_the_official_split_of_food_101_is_used(top: Path) -> None:
    listing = scan(top)
    assert listing.labels == LABELS
    assert count(listing) == {Subset.TRAINING: 60, Subset.TESTING: 20}
    assert {Path(uri).stem for uri in listing.subsets} == {str(n) for n in range(30, 40)}
    assert listing.left_out == ()
    assert f"predefined by the lists in {top / 'meta'}" in listing.warnings[0]
    assert "photos for validation are split off from training" in listing.warnings[0]


@pytest.mark.parametrize("ending", ["", ".jpg"])
def test_lines_may_have_the_ending_of_the_file(top: Path, ending: str) -> None:
    write(top, "train", range(20), ending)
    write(top, "val", range(20, 30), ending)
    assert count(scan(top)) == {Subset.TRAINING: 40, Subset.VALIDATION: 20, Subset.TESTING: 20}


def test_lists_of_other_editors_are_read(top: Path) -> None:
    text = "\r\n".join(f"{label}/{n:02}" for label in LABELS for n in range(35, 40)) + "\r\n\r\n"
    (top / "meta" / "test.txt").write_bytes(text.encode("utf-8-sig"))
    assert count(scan(top)) == {Subset.TRAINING: 60, Subset.TESTING: 10}


def test_photos_on_no_list_are_left_out_with_the_reason(top: Path) -> None:
    write(top, "train", range(25))
    listing = scan(top)
    assert count(listing) == {Subset.TRAINING: 50, Subset.TESTING: 20}
    assert {why for _, why in listing.left_out} == {UNLISTED}
    assert len(listing.left_out) == 10
    assert any(sentence.startswith("10 photos are on none of the lists") for sentence in listing.warnings)


def test_without_a_list_of_training_photos_all_others_are_trained_on(top: Path) -> None:
    (top / "meta" / "train.txt").unlink()
    assert count(scan(top)) == {Subset.TRAINING: 60, Subset.TESTING: 20}


def test_lines_without_a_photo_are_reported(top: Path) -> None:
    with (top / "meta" / "train.txt").open("a") as file:
        file.write("sushi/1\nsushi/2\n")
    listing = scan(top)
    assert any("2 lines of" in sentence and "example sushi/1." in sentence for sentence in listing.warnings)


def test_a_photo_in_two_sets_is_an_error_that_names_both_lines(top: Path) -> None:
    with (top / "meta" / "test.txt").open("a") as file:
        file.write("pizza/00\n")
    with pytest.raises(InputError, match=r"pizza/00 is in two sets: training by .*line 31, and testing by"):
        scan(top)


def test_photos_that_differ_in_their_ending_alone_need_it(top: Path) -> None:
    (top / "images" / "pizza" / "00.png").write_bytes(b"another")
    listing = scan(top)
    assert {Path(uri).name for uri, _ in listing.left_out} == {"00.jpg", "00.png"}
    write(top, "train", range(30), ".jpg")
    assert {Path(uri).name for uri, _ in scan(top).left_out} == {"00.png"}


@pytest.mark.parametrize("spoil", ["no directory", "no list", "two lists", "other paths", "empty"])
def test_lists_that_cannot_be_used_are_errors(top: Path, spoil: str) -> None:
    meta = top / "meta"
    if spoil in ("no directory", "no list"):
        for file in meta.iterdir():
            file.unlink()
        if spoil == "no directory":
            meta.rmdir()
    elif spoil == "two lists":
        write(top, "training", range(5))
    else:
        for name in ("train", "test"):
            text = "images/pizza/01\n" if spoil == "other paths" else "\n"
            (meta / f"{name}.txt").write_text(text)
    expected = {
        "two lists": "are both lists of training",
        "other paths": "names a photo",
        "empty": "names a photo",
    }
    with pytest.raises(InputError, match=expected.get(spoil, "has no list of photos")):
        scan(top)


def test_split_files_need_a_folder() -> None:
    result = CliRunner().invoke(train, ["--manifest", "photos.csv", "--split_files", "meta"])
    assert result.exit_code == 2
    assert "--split_files needs --image_dir" in result.output

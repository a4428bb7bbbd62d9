"""Corrections of labels: a manifest of photos whose labels replace the listed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import InputError
from trainer import dataset
from trainer.dataset import DatasetListing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three labels with three photos each."""
    top = tmp_path / "food"
    for label in ("pizza", "soup", "sushi"):
        (top / label).mkdir(parents=True)
        for number in range(3):
            (top / label / f"{label}{number}.jpg").write_bytes(f"{label}{number}".encode())
    return top


def write(path: Path, *lines: str) -> Path:
    """Write a table of corrections."""
    path.write_text("\n".join(["uri,label", *lines]), encoding="utf-8")
    return path


def labels_by_name(listing: DatasetListing) -> dict[str, str]:
    """Return the label of each photo by its file name."""
    return {Path(photo.uri).name: listing.labels[label] for photo, label in listing.photos.items()}


def test_corrected_labels_replace_those_of_the_folder(folder: Path, tmp_path: Path) -> None:
    fixes = write(tmp_path / "fixes.csv", f"{folder}/pizza/pizza0.jpg,sushi", "food/soup/soup1.jpg,pizza")
    found = dataset.scan(folder, corrections=fixes)
    names = labels_by_name(found)
    assert (names["pizza0.jpg"], names["soup1.jpg"], names["pizza1.jpg"]) == ("sushi", "pizza", "pizza")
    assert len(names) == 9
    assert "fixes.csv: 2 labels corrected, 0 photos left out." in found.warnings


def test_paths_may_be_relative_to_the_folder_as_the_report_shows_them(folder: Path, tmp_path: Path) -> None:
    fixes = write(tmp_path / "elsewhere.csv", "pizza/pizza0.jpg,soup")
    assert labels_by_name(dataset.scan(folder, corrections=fixes))["pizza0.jpg"] == "soup"


def test_photos_with_an_empty_label_are_left_out(folder: Path, tmp_path: Path) -> None:
    fixes = write(tmp_path / "fixes.csv", "pizza/pizza0.jpg,", "pizza/pizza1.jpg,  ")
    found = dataset.scan(folder, corrections=fixes)
    assert {"pizza0.jpg", "pizza1.jpg"}.isdisjoint(labels_by_name(found))
    assert "fixes.csv: 0 labels corrected, 2 photos left out." in found.warnings


def test_a_label_without_photos_after_the_corrections_is_left_out(folder: Path, tmp_path: Path) -> None:
    fixes = write(tmp_path / "fixes.csv", *(f"soup/soup{number}.jpg," for number in range(3)))
    found = dataset.scan(folder, corrections=fixes)
    assert found.labels == ("pizza", "sushi")
    assert "Label 'soup' has no photos and is left out." in found.warnings


def test_a_new_label_is_added_and_reported(folder: Path, tmp_path: Path) -> None:
    fixes = write(tmp_path / "fixes.csv", "soup/soup0.jpg,ramen")
    found = dataset.scan(folder, corrections=fixes)
    assert found.labels == ("pizza", "ramen", "soup", "sushi")
    assert "Labels that no photo had before the corrections: 'ramen'." in found.warnings


def test_labels_in_another_unicode_form_are_the_same(folder: Path, tmp_path: Path) -> None:
    (folder / "soup").rename(folder / "crème")
    fixes = write(tmp_path / "fixes.csv", "pizza/pizza0.jpg,cre\u0300me")
    found = dataset.scan(folder, corrections=fixes)
    assert labels_by_name(found)["pizza0.jpg"] == "crème"


def test_a_label_that_differs_only_in_case_is_an_error(folder: Path, tmp_path: Path) -> None:
    fixes = write(tmp_path / "fixes.csv", "pizza/pizza0.jpg,Soup")
    with pytest.raises(InputError, match="differ only in case"):
        dataset.scan(folder, corrections=fixes)


def test_a_photo_that_is_not_listed_is_an_error_with_line_and_nearest_photo(
    folder: Path, tmp_path: Path
) -> None:
    fixes = write(tmp_path / "fixes.csv", "pizza/pizza0.jpg,soup", "pizza/piza1.jpg,soup")
    with pytest.raises(InputError) as raised:
        dataset.scan(folder, corrections=fixes)
    assert f"{fixes}, line 3: the photo pizza/piza1.jpg is not in {folder}." in raised.value.what
    assert f"The most similar one is {folder}/pizza/pizza1.jpg." in raised.value.what


def test_a_photo_that_was_moved_is_named_by_its_file_name(folder: Path, tmp_path: Path) -> None:
    fixes = write(tmp_path / "fixes.csv", "/old/place/of/photos/sushi2.jpg,soup")
    with pytest.raises(InputError, match=r"similar one is .*sushi/sushi2\.jpg"):
        dataset.scan(folder, corrections=fixes)


def test_two_lines_that_disagree_are_an_error_with_both_lines(folder: Path, tmp_path: Path) -> None:
    fixes = write(tmp_path / "fixes.csv", "pizza/pizza0.jpg,soup", "pizza/pizza0.jpg,sushi")
    with pytest.raises(InputError, match=r"'soup' on line 2 and to 'sushi' on line 3"):
        dataset.scan(folder, corrections=fixes)


def test_two_lines_that_agree_count_once(folder: Path, tmp_path: Path) -> None:
    fixes = write(tmp_path / "fixes.csv", "pizza/pizza0.jpg,soup", f"{folder}/pizza/pizza0.jpg,soup")
    assert labels_by_name(dataset.scan(folder, corrections=fixes))["pizza0.jpg"] == "soup"


def test_an_empty_photo_is_an_error_with_its_line(folder: Path, tmp_path: Path) -> None:
    fixes = write(tmp_path / "fixes.csv", "  ,soup")
    with pytest.raises(InputError, match=r"line 2: the photo is empty"):
        dataset.scan(folder, corrections=fixes)


def test_a_file_without_a_label_column_is_an_error(folder: Path, tmp_path: Path) -> None:
    fixes = tmp_path / "fixes.csv"
    fixes.write_text("uri,colour\npizza/pizza0.jpg,red\n")
    with pytest.raises(InputError, match="no column label or class or category for the label"):
        dataset.scan(folder, corrections=fixes)


def test_other_columns_of_the_output_of_hubhead_label_are_ignored(folder: Path, tmp_path: Path) -> None:
    fixes = tmp_path / "labels.csv"
    fixes.write_text(
        "uri,label,by,at,strategy,seconds,set\n"
        f"{folder}/pizza/pizza0.jpg,soup,ann,2026-11-30T08:00:00Z,suspects,1.5,\n"
    )
    assert labels_by_name(dataset.scan(folder, corrections=fixes))["pizza0.jpg"] == "soup"


def test_corrections_of_a_manifest(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "photos.csv"
    lines = [
        f"food/{label}/{label}{number}.jpg,{label}" for label in ("pizza", "soup") for number in range(3)
    ]
    write(manifest, *lines)
    fixes = write(tmp_path / "fixes.csv", "food/pizza/pizza0.jpg,soup")
    found = dataset.scan(manifest, corrections=fixes)
    assert labels_by_name(found)["pizza0.jpg"] == "soup"
    with pytest.raises(InputError, match="is not in"):
        dataset.scan(manifest, corrections=write(tmp_path / "fixes.csv", "food/sushi/sushi0.jpg,soup"))


def test_a_correction_of_a_photo_that_cannot_be_used_is_no_error(folder: Path, tmp_path: Path) -> None:
    manifest = write(
        tmp_path / "photos.csv",
        *(f"food/{label}/{label}{number}.jpg,{label}" for label in ("pizza", "soup") for number in range(3)),
        "food/pizza/gone.jpg,pizza",
    )
    fixes = write(tmp_path / "fixes.csv", "food/pizza/gone.jpg,soup")
    found = dataset.scan(manifest, corrections=fixes)
    assert any("1 photos cannot be used" in warning for warning in found.warnings)

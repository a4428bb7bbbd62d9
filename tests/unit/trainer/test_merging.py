"""Photos of a folder and of a dataset manifest together, as hubhead train takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import InputError
from trainer import dataset
from trainer.dataset import DatasetListing, SplitSettings, Subset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two labels with three photos each."""
    top = tmp_path / "food"
    for label in ("crème", "sushi"):
        (top / label).mkdir(parents=True)
        for number in range(3):
            (top / label / f"{label}{number}.jpg").write_bytes(f"{label}{number}".encode())
    return top


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Three photos without labels."""
    top = tmp_path / "uploads"
    top.mkdir()
    for number in range(3):
        (top / f"{number}.jpg").write_bytes(f"upload {number}".encode())
    return top


def write(path: Path, *lines: str) -> Path:
    """Write a manifest with the columns of hubhead label."""
    header = "uri,label,by,at,strategy,seconds,set"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def labels_by_name(listing: DatasetListing) -> dict[str, str]:
    """Return the label of each photo by its file name."""
    return {Path(photo.uri).name: listing.labels[label] for photo, label in listing.photos.items()}


def test_photos_of_folder_and_manifest_are_trained_on_together(folder: Path, uploads: Path) -> None:
    labels = write(
        uploads / "labels.csv",
        f"{uploads}/0.jpg,sushi,ann,2026-05-31T10:00:00+00:00,mixed,1.50,",
        f"{uploads}/1.jpg,ramen,ann,2026-05-31T10:00:02+00:00,mixed,1.20,",
    )
    found = dataset.scan(folder, also=labels)
    assert found.labels == ("crème", "ramen", "sushi")
    assert len(found.photos) == 8
    assert {name: labels_by_name(found)[name] for name in ("0.jpg", "1.jpg")} == {
        "0.jpg": "sushi",
        "1.jpg": "ramen",
    }


def test_photos_that_the_manifest_marks_are_the_test_set(folder: Path, uploads: Path) -> None:
    labels = write(
        uploads / "labels.csv", f"{uploads}/0.jpg,sushi,,,random,1,test", f"{uploads}/1.jpg,sushi,,,mixed,1,"
    )
    found = dataset.scan(folder, also=labels)
    assert found.subsets == {f"{uploads}/0.jpg": Subset.TESTING}
    assert SplitSettings().missing_subsets(found.subsets.values()) == (Subset.VALIDATION,)


def test_the_manifest_counts_where_both_have_a_photo(folder: Path, uploads: Path) -> None:
    labels = write(uploads / "labels.csv", f"{folder}/crème/crème0.jpg,sushi,,,mixed,1,")
    found = dataset.scan(folder, also=labels)
    assert labels_by_name(found)["crème0.jpg"] == "sushi"
    assert len(found.photos) == 6
    assert any("1 photos of" in warning and "have another label in" in warning for warning in found.warnings)


def test_labels_in_another_unicode_form_are_the_same(folder: Path, uploads: Path) -> None:
    labels = write(uploads / "labels.csv", f"{uploads}/0.jpg,cre\u0300me,,,mixed,1,")
    assert labels_by_name(dataset.scan(folder, also=labels))["0.jpg"] == "crème"


def test_labels_that_differ_only_in_case_are_an_error(folder: Path, uploads: Path) -> None:
    labels = write(uploads / "labels.csv", f"{uploads}/0.jpg,Sushi,,,mixed,1,")
    with pytest.raises(InputError, match="differ only in case"):
        dataset.scan(folder, also=labels)

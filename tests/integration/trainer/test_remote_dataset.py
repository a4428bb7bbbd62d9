"""Labelled photos on remote storage."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from serving.errors import InputError
from serving.storage import files
from tests.support import object_stores
from trainer import dataset
from trainer.dataset import SplitSettings, Subset


@pytest.fixture
def bucket() -> str:
    return f"memory://{secrets.token_hex(4)}"


def put(bucket: str, *names: str) -> None:
    for name in names:
        files.write(f"{bucket}/{name}", name.encode())


def labels_by_path(bucket: str, folder: dataset.DatasetListing) -> dict[str, str]:
    return {
        photo.uri.removeprefix(f"{bucket}/"): folder.labels[label] for photo, label in folder.photos.items()
    }


@pytest.mark.parametrize("spelling", ["photos", "photos/"])
def test_remote_directories_are_labels(bucket: str, spelling: str) -> None:
    put(bucket, "photos/pizza/1.jpg", "photos/pizza/oven/2.jpg", "photos/寿司/3.jpg", "photos/readme.txt")
    put(bucket, "photos/pizza/.hidden", "photosynthesis/leaf/4.jpg")
    folder = dataset.scan(f"{bucket}/{spelling}")
    assert labels_by_path(bucket, folder) == {
        "photos/pizza/1.jpg": "pizza",
        "photos/pizza/oven/2.jpg": "pizza",
        "photos/寿司/3.jpg": "寿司",
    }
    assert folder.warnings[0] == "1 files outside the label directories are left out."


def test_a_bucket_can_be_the_photo_directory(bucket: str) -> None:
    put(bucket, "pizza/1.jpg", "sushi/2.jpg")
    assert dataset.scan(bucket).labels == ("pizza", "sushi")


def test_names_with_glob_characters_are_taken_literally(bucket: str) -> None:
    put(bucket, "set [1]*/pizza/1.jpg", "set [1]*/su?hi/2.jpg", "set (1)x/soup/3.jpg")
    assert dataset.scan(f"{bucket}/set [1]*").labels == ("pizza", "su?hi")


def test_predefined_remote_sets_are_used(bucket: str) -> None:
    sets = ("train", "Test")
    put(bucket, *(f"photos/{name}/{label}/{n}.jpg" for name in sets for label in "ab" for n in range(30)))
    folder = dataset.scan(f"{bucket}/photos")
    assert folder.labels == ("a", "b")
    assert set(folder.subsets.values()) == {Subset.TESTING}
    assert folder.warnings[0].startswith(
        "The sets are predefined by the directories Test/, train/: 60 for training, 60"
    )
    examples = [folder.make_example(photo, photo.uri) for photo in folder.photos]
    for item, subset in zip(examples, dataset.split(examples, SplitSettings()), strict=True):
        assert (subset is Subset.TESTING) == ("/Test/" in item.uri)


def test_remote_sets_without_label_directories_are_labels(bucket: str) -> None:
    put(bucket, "photos/train/1.jpg", "photos/test/2.jpg", "photos/test/deep/3.jpg")
    assert dataset.scan(f"{bucket}/photos").labels == ("test", "train")


def test_the_method_retrain_hashes_the_address_as_given(bucket: str) -> None:
    put(bucket, *(f"photos/{label}/{number}.jpg" for label in "ab" for number in range(50)))
    top = f"{bucket}/photos"
    folder = dataset.scan(top)
    examples = [folder.make_example(photo, photo.uri) for photo in folder.photos]
    chosen = SplitSettings(10, 10, "retrain")
    assert dataset.split(examples, chosen, top) == dataset.split(examples, chosen)
    assert set(dataset.split(examples, chosen, top)) == set(Subset)


def test_a_missing_remote_directory_is_an_error(bucket: str) -> None:
    with pytest.raises(InputError, match="nowhere has no label with photos"):
        dataset.scan(f"{bucket}/nowhere")


def test_a_manifest_lists_each_directory_once(bucket: str) -> None:
    put(bucket, *(f"data/{label}/{number}.jpg" for label in "ab" for number in range(20)), "other [1]/x.jpg")
    rows = [
        {"image": f"../data/{label}/{number}.jpg", "label": label} for label in "ab" for number in range(21)
    ]
    rows.append({"image": f"{bucket}/other [1]/x.jpg", "label": "a"})
    files.write(f"{bucket}/lists/m.jsonl", "\n".join(map(json.dumps, rows)).encode())
    with object_stores.count_listings() as listed:
        folder = dataset.scan(f"{bucket}/lists/m.jsonl")
    assert dataset.count_labels(folder.photos.values(), folder.labels) == {"a": 21, "b": 20}
    assert folder.left_out == tuple(
        (f"{bucket}/data/{label}/20.jpg", "there is no such file") for label in "ab"
    )
    assert len(listed) == 3
    assert all(photo.modified > 1.6e18 for photo in folder.photos)


def test_a_local_manifest_may_list_remote_photos(bucket: str, tmp_path: Path) -> None:
    put(bucket, "a/1.jpg")
    (tmp_path / "2.jpg").write_bytes(b"2")
    (tmp_path / "m.csv").write_text(f"uri,label\n{bucket}/a/1.jpg,pizza\n2.jpg,sushi\n")
    folder = dataset.scan(tmp_path / "m.csv")
    assert [photo.uri for photo in folder.photos] == [f"{bucket}/a/1.jpg", str(tmp_path / "2.jpg")]


def test_an_unresponsive_storage_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,label\nunknownstorage://a/1.jpg,pizza\n")
    with pytest.raises(InputError, match="Cannot list unknownstorage://a"):
        dataset.scan(tmp_path / "m.csv")
    with pytest.raises(InputError, match=r"Cannot read the manifest .*none\.csv"):
        dataset.scan(f"{bucket}/none.csv")

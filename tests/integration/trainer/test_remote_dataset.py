"""Labelled photos on remote storage, listed through Beam's FileSystems."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.errors import InputError
from trainer import dataset
from trainer.dataset import SplitSettings, Subset

pytestmark = pytest.mark.beam

SCHEME = "hubheaddataset"


@pytest.fixture(scope="module")
def storage() -> Iterator[tuple[dict[str, bytes], list[str]]]:
    """Register a storage under SCHEME in Beam; yield its objects and the prefixes that were listed."""
    from apache_beam.io.filesystem import FileMetadata, FileSystem

    objects: dict[str, bytes] = {}
    listed: list[str] = []

    class Memory(FileSystem):
        """As much of an object store as reading asks of it."""

        @classmethod
        def scheme(cls) -> str:
            return SCHEME

        def has_dirs(self) -> bool:
            return False

        def _list(self, dir_or_prefix: str) -> Any:
            listed.append(dir_or_prefix)
            return (self.metadata(path) for path in sorted(objects) if path.startswith(dir_or_prefix))

        def metadata(self, path: str) -> Any:
            return FileMetadata(path, len(objects[path]), 12.5)

        def exists(self, path: str) -> bool:
            return path in objects

        def open(self, path: str, mime_type: str = "", compression_type: str = "auto") -> Any:
            return io.BytesIO(objects[path])

        def _unused(self, *_: Any) -> Any:
            raise NotImplementedError

        join = split = mkdirs = copy = rename = size = checksum = last_updated = create = delete = _unused

    yield objects, listed  # not a return: Beam finds the class only while somebody holds it
    del Memory


@pytest.fixture
def bucket(storage: tuple[dict[str, bytes], list[str]]) -> Iterator[dict[str, bytes]]:
    yield storage[0]
    storage[0].clear()
    storage[1].clear()


def put(bucket: dict[str, bytes], *names: str) -> None:
    bucket.update({f"{SCHEME}://bucket/{name}": name.encode() for name in names})


def labels_by_path(folder: dataset.DatasetListing) -> dict[str, str]:
    return {
        photo.uri.removeprefix(f"{SCHEME}://bucket/"): folder.labels[label]
        for photo, label in folder.photos.items()
    }


@pytest.mark.parametrize("spelling", ["photos", "photos/"])
def test_remote_directories_are_labels(bucket: dict[str, bytes], spelling: str) -> None:
    put(bucket, "photos/pizza/1.jpg", "photos/pizza/oven/2.jpg", "photos/寿司/3.jpg", "photos/readme.txt")
    put(bucket, "photos/pizza/.hidden", "photos/soup/", "photosynthesis/leaf/4.jpg")
    folder = dataset.scan(f"{SCHEME}://bucket/{spelling}")
    assert labels_by_path(folder) == {
        "photos/pizza/1.jpg": "pizza",
        "photos/pizza/oven/2.jpg": "pizza",
        "photos/寿司/3.jpg": "寿司",
    }
    assert folder.warnings[0] == "1 files outside the label directories are left out."


def test_a_bucket_can_be_the_photo_directory(bucket: dict[str, bytes]) -> None:
    put(bucket, "pizza/1.jpg", "sushi/2.jpg")
    assert dataset.scan(f"{SCHEME}://bucket").labels == ("pizza", "sushi")


def test_names_with_glob_characters_are_taken_literally(bucket: dict[str, bytes]) -> None:
    put(bucket, "set [1]*/pizza/1.jpg", "set [1]*/su?hi/2.jpg", "set (1)x/soup/3.jpg")
    assert dataset.scan(f"{SCHEME}://bucket/set [1]*").labels == ("pizza", "su?hi")


def test_predefined_remote_sets_are_used(bucket: dict[str, bytes]) -> None:
    sets = ("train", "Test")
    put(bucket, *(f"photos/{name}/{label}/{n}.jpg" for name in sets for label in "ab" for n in range(30)))
    folder = dataset.scan(f"{SCHEME}://bucket/photos")
    assert folder.labels == ("a", "b")
    assert folder.predefined_subsets == {Subset.TESTING}
    assert folder.warnings[0].startswith(
        "The sets are predefined by the directories Test/, train/: 60 for training, 60"
    )
    examples = [folder.make_example(photo, photo.uri) for photo in folder.photos]
    for item, subset in zip(examples, dataset.split(examples, SplitSettings()), strict=True):
        assert (subset is Subset.TESTING) == ("/Test/" in item.uri)


def test_remote_sets_without_label_directories_are_labels(bucket: dict[str, bytes]) -> None:
    put(bucket, "photos/train/1.jpg", "photos/test/2.jpg", "photos/test/deep/3.jpg")
    assert dataset.scan(f"{SCHEME}://bucket/photos").labels == ("test", "train")


def test_the_method_retrain_hashes_the_address_as_given(bucket: dict[str, bytes]) -> None:
    put(bucket, *(f"photos/{label}/{number}.jpg" for label in "ab" for number in range(50)))
    top = f"{SCHEME}://bucket/photos"
    folder = dataset.scan(top)
    examples = [folder.make_example(photo, photo.uri) for photo in folder.photos]
    chosen = SplitSettings(10, 10, "retrain")
    assert dataset.split(examples, chosen, top) == dataset.split(examples, chosen)
    assert set(dataset.split(examples, chosen, top)) == set(Subset)


def test_a_missing_remote_directory_is_an_error(bucket: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match="nowhere has no label with photos"):
        dataset.scan(f"{SCHEME}://bucket/nowhere")


def test_a_manifest_lists_each_directory_once(
    bucket: dict[str, bytes], storage: tuple[dict[str, bytes], list[str]]
) -> None:
    put(bucket, *(f"data/{label}/{number}.jpg" for label in "ab" for number in range(20)), "other [1]/x.jpg")
    rows = [
        {"image": f"../data/{label}/{number}.jpg", "label": label} for label in "ab" for number in range(21)
    ]
    rows.append({"image": f"{SCHEME}://bucket/other [1]/x.jpg", "label": "a"})
    bucket[f"{SCHEME}://bucket/lists/m.jsonl"] = "\n".join(map(json.dumps, rows)).encode()
    folder = dataset.scan(f"{SCHEME}://bucket/lists/m.jsonl")
    assert folder.counts == {"a": 21, "b": 20}
    assert folder.left_out == tuple(
        (f"{SCHEME}://bucket/data/{label}/20.jpg", "there is no such file") for label in "ab"
    )
    assert len(storage[1]) == 3
    assert {photo.modified for photo in folder.photos} == {12_500_000_000}


def test_a_local_manifest_may_list_remote_photos(bucket: dict[str, bytes], tmp_path: Path) -> None:
    put(bucket, "a/1.jpg")
    (tmp_path / "2.jpg").write_bytes(b"2")
    (tmp_path / "m.csv").write_text(f"uri,label\n{SCHEME}://bucket/a/1.jpg,pizza\n2.jpg,sushi\n")
    folder = dataset.scan(tmp_path / "m.csv")
    assert [photo.uri for photo in folder.photos] == [f"{SCHEME}://bucket/a/1.jpg", str(tmp_path / "2.jpg")]


def test_an_unresponsive_storage_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,label\nunknownstorage://a/1.jpg,pizza\n")
    with pytest.raises(InputError, match="Cannot list unknownstorage://a"):
        dataset.scan(tmp_path / "m.csv")
    with pytest.raises(InputError, match=r"Cannot read the manifest .*none\.csv"):
        dataset.scan(f"{SCHEME}://bucket/none.csv")

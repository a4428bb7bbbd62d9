"""Photo listing: files, directories and globs on the local disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from batch.inputs import listing
from batch.inputs.listing import Photo
from serving.errors import InputError


def names(found: list[Photo], top: Path) -> list[str]:
    return [os.path.relpath(photo.uri, top) for photo in found]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b/2.jpg", "a/1.jpg", "a/deep/3.png", ".hidden", "a/.git/4.jpg", "a/note.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def test_directory_lists_all_files_below_it_except_hidden_ones(tree: Path) -> None:
    assert names(listing.find_photos(str(tree)), tree) == ["a/1.jpg", "a/deep/3.png", "a/note.txt", "b/2.jpg"]


def test_recursive_glob_matches_nested_directories(tree: Path) -> None:
    assert names(listing.find_photos(f"{tree}/**/*.jpg"), tree) == ["a/1.jpg", "b/2.jpg"]


def test_photo_has_size_and_modification_time(tree: Path) -> None:
    os.utime(tree / "a/1.jpg", ns=(0, 1_600_000_000_123_456_789))
    [found] = listing.find_photos(str(tree / "a/1.jpg"))
    assert found == Photo(str(tree / "a/1.jpg"), len(b"a/1.jpg"), 1_600_000_000_123_456_789)
    assert listing.read_photo(found) == b"a/1.jpg"


def test_relative_path_becomes_absolute(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "a")
    assert listing.find_photos("1.jpg") == listing.find_photos(str(tree / "a" / "1.jpg"))


@pytest.mark.parametrize(
    "name", ["a[1].jpg", "what*.jpg", "is it?.jpg", "ไทย 🍜.jpg", "a\nb.jpg", "#%20.jpg"]
)
def test_existing_path_with_glob_characters_is_taken_literally(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "what else.jpg").write_bytes(b"y")
    [found] = listing.find_photos(str(tmp_path / name))
    assert found.uri == str(tmp_path / name)
    assert listing.read_photo(found) == b"x"


def test_existing_directory_with_glob_characters_is_taken_literally(tmp_path: Path) -> None:
    (tmp_path / "set [1]*").mkdir()
    (tmp_path / "set [1]*" / "x.jpg").write_bytes(b"x")
    assert len(listing.find_photos(str(tmp_path / "set [1]*"))) == 1


def test_name_that_is_not_utf8_becomes_a_percent_encoded_uri(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9 %41.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    [found] = listing.find_photos(str(tmp_path))
    assert found.uri.encode().endswith(b"/caf%E9%20%2541.jpg")
    assert listing.read_photo(found) == b"x"
    assert listing.find_photos(found.uri) == [found]


def test_dangling_symlink_is_listed_and_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    [found] = listing.find_photos(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        listing.read_photo(found)


def test_photo_replaced_by_a_directory_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    [found] = listing.find_photos(str(tmp_path))
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(IsADirectoryError):
        listing.read_photo(found)


def test_symlink_loop_terminates(tree: Path) -> None:
    (tree / "a" / "up").symlink_to(tree)
    assert len(listing.find_photos(str(tree))) == 4


def test_named_pipe_is_not_listed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert names(listing.find_photos(str(tmp_path)), tmp_path) == ["a.jpg"]


@pytest.mark.parametrize("pattern", ["nowhere", "nowhere/*.jpg", "empty"])
def test_no_match_is_an_error_with_a_remedy(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=pattern.split("/")[0]) as caught:
        listing.find_photos(str(tmp_path / pattern))
    assert caught.value.remedy

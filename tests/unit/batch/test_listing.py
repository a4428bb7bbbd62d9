"""Photo listing: files, directories and globs on the local disk."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from batch.inputs import listing
from batch.inputs.listing import Photo
from serving.errors import InputError
from serving.storage import files


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


def test_link_to_a_directory_of_the_kernel_is_not_followed(tree: Path) -> None:
    (tree / "a" / "self").symlink_to("/proc/self")
    assert len(listing.find_photos(str(tree))) == 4
    with pytest.raises(InputError, match="No photos in /proc/self"):
        listing.find_photos("/proc/self")


def test_directory_that_disappears_meanwhile_is_left_out(tree: Path) -> None:
    photos = listing.iter_photos(str(tree))
    assert names([next(photos)], tree) == ["a/note.txt"]
    for path in (tree / "a" / "deep", tree / "b"):
        for child in path.iterdir():
            child.unlink()
        path.rmdir()
    assert not names(list(photos), tree)[1:]


def test_named_pipe_is_not_listed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert names(listing.find_photos(str(tmp_path)), tmp_path) == ["a.jpg"]


def test_path_with_too_long_a_name_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot list .*File name too long"):
        listing.find_photos(str(tmp_path / ("x" * 300)))


def test_files_below_a_directory_that_cannot_be_listed_are_not_left_out_silently(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scan(path: str) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    scandir = os.scandir
    (tree / "sub").mkdir()
    monkeypatch.setattr(os, "scandir", scan)  # the tests may run as root, who can list all directories
    with pytest.raises(PermissionError):
        list(files.walk_files(str(tree)))
    assert list(files.walk_files(str(tree / "nowhere"))) == []


@pytest.mark.parametrize("pattern", ["nowhere", "nowhere/*.jpg", "empty"])
def test_no_match_is_an_error_with_a_remedy(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=pattern.split("/")[0]) as caught:
        listing.find_photos(str(tmp_path / pattern))
    assert caught.value.remedy


# --- Directories of operating systems -----------------------------------------------------------------------

SYSTEM_DIRECTORIES = (
    *("__MACOSX", "@eaDir", "$RECYCLE.BIN", "$Recycle.Bin", "#recycle", ".thumbnails", "lost+found"),
    *("System Volume Information", "@Recycle", "#snapshot", "FOUND.000", ".Trash-1000", "LOST.DIR"),
    *("RECYCLER", "$Windows.~BT", "__MACOSX 2", "__MACOSX ", "Thumbs.db", "desktop.ini", "@appstore"),
)


@pytest.mark.parametrize("name", SYSTEM_DIRECTORIES)
@pytest.mark.parametrize("pattern", ["", "/**/*.jpg", "/*/*.jpg"])
def test_directory_of_the_system_is_left_out_and_named(
    tmp_path: Path, name: str, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (tmp_path / name, tmp_path / "a" / name, tmp_path / "b"):
        path.mkdir(parents=True)
        (path / "x.jpg").write_bytes(b"x")
    assert names(listing.find_photos(f"{tmp_path}{pattern}"), tmp_path) == ["b/x.jpg"]
    if not name.startswith("."):  # which no wildcard matches in any case
        count = "1 directory" if pattern == "/*/*.jpg" else "2 directories"
        assert [record.message for record in caplog.records] == [
            f"{tmp_path}{pattern}: {count} of operating systems left out: {name}."
        ]


def test_directory_of_the_system_that_the_pattern_spells_out_is_listed(tmp_path: Path) -> None:
    (tmp_path / "@eaDir" / "a").mkdir(parents=True)
    (tmp_path / "@eaDir" / "a" / "x.jpg").write_bytes(b"x")
    for pattern in ("@eaDir", "@eaDir/**/*.jpg", "@eaDir/a/x.jpg"):
        assert names(listing.find_photos(str(tmp_path / pattern)), tmp_path) == ["@eaDir/a/x.jpg"]


@pytest.mark.parametrize("name", ["#food", "@home", "$1 pizza", "recycle", "found", "thumbnails", "100%"])
def test_directory_with_an_odd_name_is_listed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "x.jpg").write_bytes(b"x")
    assert len(listing.find_photos(str(tmp_path))) == 1


# --- Values at the edge of their type -----------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-(10**10), -1, 10_413_792_000, 10**13])  # 1653, 1969, 2300, 318857
def test_modification_time_fits_into_64_bits_in_any_year(tmp_path: Path, seconds: int) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    try:
        os.utime(path, (seconds, seconds))
    except OSError:
        pytest.skip("the file system has no such time")
    for photo in (*listing.find_photos(str(tmp_path)), listing.stat_photo(str(path))):
        assert abs(photo.modified) < 1 << 63
        assert (photo.modified < 0) == (seconds < 0)


@pytest.mark.parametrize(
    "name", ["fifo", "/dev/zero", "/dev/tty", "/proc/kmsg", "/proc/self/mem", "a\0b", "\ud800"]
)
def test_manifest_entry_that_is_no_file_on_a_disk_is_unreadable_at_once(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    photo = Photo(str(tmp_path / name), 0, 0)
    start = time.monotonic()
    with pytest.raises(OSError, match=r"not a regular file|not a file name|No such|Permission denied"):
        listing.read_photo(photo)
    assert time.monotonic() - start < 2


def test_file_uri_without_a_valid_host_is_a_path(tmp_path: Path) -> None:
    for uri, path in (("file://[x/a%20b\nc.jpg", "/a b\nc.jpg"), ("file://", ""), ("file:///a?b#c", "/a")):
        assert files.local_path(uri) == path
    with pytest.raises(InputError, match=r"does not exist"):
        listing.find_photos("file://[x/nowhere")


def test_home_of_an_unknown_user_is_not_found() -> None:
    with pytest.raises(InputError, match="~nobody-here/photos"):
        listing.find_photos("~nobody-here/photos")

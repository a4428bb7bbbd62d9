"""Which photos a file, directory or glob means."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import pytest

from batch.inputs import listing
from batch.inputs.listing import Photo
from serving.errors import InputError, OutputError
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


def test_a_directory_means_every_file_below_it_but_hidden_ones(tree: Path) -> None:
    assert names(listing.find(str(tree)), tree) == ["a/1.jpg", "a/deep/3.png", "a/note.txt", "b/2.jpg"]


def test_a_glob_goes_through_directories(tree: Path) -> None:
    assert names(listing.find(f"{tree}/**/*.jpg"), tree) == ["a/1.jpg", "b/2.jpg"]


def test_a_photo_has_its_size_and_time(tree: Path) -> None:
    os.utime(tree / "a/1.jpg", ns=(0, 1_600_000_000_123_456_789))
    [found] = listing.find(str(tree / "a/1.jpg"))
    assert found == Photo(str(tree / "a/1.jpg"), len(b"a/1.jpg"), 1_600_000_000_123_456_789)
    assert listing.read(found) == b"a/1.jpg"


def test_a_relative_path_becomes_absolute(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "a")
    assert listing.find("1.jpg") == listing.find(str(tree / "a" / "1.jpg"))


@pytest.mark.parametrize(
    "name", ["a[1].jpg", "what*.jpg", "is it?.jpg", "ไทย 🍜.jpg", "a\nb.jpg", "#%20.jpg"]
)
def test_a_path_that_exists_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "what else.jpg").write_bytes(b"y")
    [found] = listing.find(str(tmp_path / name))
    assert found.uri == str(tmp_path / name)
    assert listing.read(found) == b"x"


def test_a_directory_with_magic_characters_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "set [1]*").mkdir()
    (tmp_path / "set [1]*" / "x.jpg").write_bytes(b"x")
    assert len(listing.find(str(tmp_path / "set [1]*"))) == 1


def test_a_name_that_is_not_utf8_is_an_address_that_can_be_written_down_and_read(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9 %41.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    [found] = listing.find(str(tmp_path))
    assert found.uri.encode().endswith(b"/caf%E9%20%2541.jpg")
    assert listing.read(found) == b"x"
    assert listing.find(found.uri) == [found]


def test_a_dangling_link_is_a_photo_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    [found] = listing.find(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        listing.read(found)


def test_a_photo_that_became_a_directory_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    [found] = listing.find(str(tmp_path))
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(IsADirectoryError):
        listing.read(found)


def test_links_in_a_circle_end(tree: Path) -> None:
    (tree / "a" / "up").symlink_to(tree)
    assert len(listing.find(str(tree))) == 4


def test_a_pipe_is_no_photo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert names(listing.find(str(tmp_path)), tmp_path) == ["a.jpg"]


@pytest.mark.parametrize("pattern", ["nowhere", "nowhere/*.jpg", "empty"])
def test_nothing_found_is_an_error_that_says_what_to_do(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=pattern.split("/")[0]) as caught:
        listing.find(str(tmp_path / pattern))
    assert caught.value.remedy


@pytest.fixture(scope="module")
def bucket() -> dict[str, bytes]:
    """The objects of a storage that Beam knows by the scheme hubheadtest://."""
    from apache_beam.io.filesystem import FileMetadata, FileSystem

    objects: dict[str, bytes] = {}

    class Memory(FileSystem):
        """As much of an object store as Beam's FileSystems asks of it."""

        @classmethod
        def scheme(cls) -> str:
            return "hubheadtest"

        def has_dirs(self) -> bool:
            return False

        def _list(self, dir_or_prefix: str) -> Any:
            return (self.metadata(path) for path in sorted(objects) if path.startswith(dir_or_prefix))

        def metadata(self, path: str) -> Any:
            return FileMetadata(path, len(objects[path]), 12.5)

        def exists(self, path: str) -> bool:
            return path in objects

        def open(self, path: str, mime_type: str = "", compression_type: str = "auto") -> Any:
            return io.BytesIO(objects[path])  # a missing one raises KeyError: a client's own class of error

        def create(self, path: str, mime_type: str = "", compression_type: str = "auto") -> Any:
            class Upload(io.BytesIO):
                def close(self) -> None:
                    objects[path] = self.getvalue()
                    super().close()

            return Upload()

        def delete(self, paths: list[str]) -> None:
            for path in paths:
                del objects[path]

        def _unused(self, *_: Any) -> Any:
            raise NotImplementedError

        join = split = mkdirs = copy = rename = size = checksum = last_updated = _unused

    return objects


@pytest.mark.beam
def test_another_storage_goes_through_beam(bucket: dict[str, bytes]) -> None:
    bucket["hubheadtest://bucket/a/1.jpg"] = b"one"
    bucket["hubheadtest://bucket/a/2.jpg.gz"] = b"\x1f\x8bnot unpacked"
    bucket["hubheadtest://bucket/a/.hidden"] = bucket["hubheadtest://bucket/a/"] = b""
    for pattern in ("hubheadtest://bucket/a", "hubheadtest://bucket/a/", "hubheadtest://bucket/**"):
        found = listing.find(pattern)
        assert [photo.uri for photo in found] == [
            "hubheadtest://bucket/a/1.jpg",
            "hubheadtest://bucket/a/2.jpg.gz",
        ]
    assert listing.find("hubheadtest://bucket/a/1.jpg") == found[:1]
    assert found[0].modified == 12_500_000_000
    assert [listing.read(photo) for photo in found] == [b"one", b"\x1f\x8bnot unpacked"]
    with pytest.raises(OSError, match="KeyError"):
        listing.read(Photo("hubheadtest://bucket/a/3.jpg", 1, 1))
    with pytest.raises(InputError, match="No photos"):
        listing.find("hubheadtest://bucket/b")


@pytest.mark.beam
def test_files_on_another_storage_are_written_listed_and_removed(bucket: dict[str, bytes]) -> None:
    top = "hubheadtest://out/run"
    files.check_writable(top)
    assert files.names(top) == []
    files.write(files.join(top, "a.json"), b"{}")
    assert files.names(top) == ["a.json"]
    assert files.read(files.join(top, "a.json")) == b"{}"
    files.remove_directory(top)
    files.remove(files.join(top, "a.json"))
    assert files.names(top) == []


@pytest.mark.beam
def test_a_storage_without_its_extra_says_which_one(
    bucket: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.suppress(ImportError):  # with the extra Beam knows gs://, and would ask the network
        from apache_beam.io.gcp.gcsfilesystem import GCSFileSystem

        monkeypatch.setattr(GCSFileSystem, "scheme", classmethod(lambda _: "not-gs"))
    with pytest.raises(InputError, match="apache-beam"):
        listing.find("gs://bucket/photos")
    with pytest.raises(OutputError, match="gs://bucket/out"):
        files.write("gs://bucket/out", b"")


@pytest.mark.beam
def test_a_writer_that_failed_is_ended_so_that_it_sends_nothing_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Writer(io.BytesIO):
        """As google.cloud.storage.fileio.BlobWriter: close sends, and so would its finalizer."""

        ended = False

        def close(self) -> None:
            if not self.ended:
                raise OSError("503 Service Unavailable")

        def terminate(self) -> None:
            self.ended = True

    writers: list[Writer] = []

    class Storage:
        @staticmethod
        def create(_: str, **__: Any) -> Writer:
            writers.append(Writer())
            return writers[-1]

    monkeypatch.setattr(files, "_filesystems", lambda: Storage)
    monkeypatch.setattr(files, "FIRST_PAUSE", 0.0)
    with pytest.raises(OutputError, match="503 Service Unavailable"):
        files.write("gs://bucket/out", b"content")
    assert [writer.ended for writer in writers] == [True] * files.ATTEMPTS
    writers.clear()
    with pytest.raises(OutputError, match="503 Service Unavailable"):
        files.check_writable("gs://bucket/out")
    assert len(writers) == 1, "the user waits for this one"

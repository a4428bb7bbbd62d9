"""Which photos a file, directory or glob means."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest

from batch.inputs import listing
from batch.inputs.listing import Photo
from serving.errors import InputError, OutputError
from serving.storage import files


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
        found = listing.find_photos(pattern)
        assert [photo.uri for photo in found] == [
            "hubheadtest://bucket/a/1.jpg",
            "hubheadtest://bucket/a/2.jpg.gz",
        ]
    assert listing.find_photos("hubheadtest://bucket/a/1.jpg") == found[:1]
    assert found[0].modified == 12_500_000_000
    assert [listing.read_photo(photo) for photo in found] == [b"one", b"\x1f\x8bnot unpacked"]
    with pytest.raises(OSError, match="KeyError"):
        listing.read_photo(Photo("hubheadtest://bucket/a/3.jpg", 1, 1))
    with pytest.raises(InputError, match="No photos"):
        listing.find_photos("hubheadtest://bucket/b")


@pytest.mark.beam
def test_files_on_another_storage_are_written_listed_and_removed(bucket: dict[str, bytes]) -> None:
    top = "hubheadtest://out/run"
    files.check_writable(top)
    assert files.list_names(top) == []
    files.write(files.join(top, "a.json"), b"{}")
    assert files.list_names(top) == ["a.json"]
    assert files.read(files.join(top, "a.json")) == b"{}"
    files.remove_directory(top)
    files.remove(files.join(top, "a.json"))
    assert files.list_names(top) == []


@pytest.mark.beam
def test_a_storage_without_its_extra_says_which_one(
    bucket: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.suppress(ImportError):  # with the extra Beam knows gs://, and would ask the network
        from apache_beam.io.gcp.gcsfilesystem import GCSFileSystem

        monkeypatch.setattr(GCSFileSystem, "scheme", classmethod(lambda _: "not-gs"))
    with pytest.raises(InputError, match="apache-beam"):
        listing.find_photos("gs://bucket/photos")
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
    monkeypatch.setattr(files, "INITIAL_PAUSE", 0.0)
    with pytest.raises(OutputError, match="503 Service Unavailable"):
        files.write("gs://bucket/out", b"content")
    assert [writer.ended for writer in writers] == [True] * files.ATTEMPTS
    writers.clear()
    with pytest.raises(OutputError, match="503 Service Unavailable"):
        files.check_writable("gs://bucket/out")
    assert len(writers) == 1, "the user waits for this one"

"""Photo listing and file access on remote storage, through Beam's FileSystems."""

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
    """Objects of an in-memory storage registered with Beam under the scheme hubheadtest://."""
    from apache_beam.io.filesystem import FileMetadata, FileSystem

    objects: dict[str, bytes] = {}

    class Memory(FileSystem):
        """The part of an object store that Beam's FileSystems uses."""

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
            return io.BytesIO(
                objects[path]
            )  # missing objects raise KeyError, as clients have exceptions of their own

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
def test_remote_photos_are_listed_and_read_through_beam(bucket: dict[str, bytes]) -> None:
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
def test_remote_files_are_written_listed_and_removed(bucket: dict[str, bytes]) -> None:
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
def test_missing_storage_extra_is_named_in_the_error(
    bucket: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.suppress(
        ImportError
    ):  # if the extra is installed, Beam would access the network for gs://
        from apache_beam.io.gcp.gcsfilesystem import GCSFileSystem

        monkeypatch.setattr(GCSFileSystem, "scheme", classmethod(lambda _: "not-gs"))
    with pytest.raises(InputError, match="apache-beam"):
        listing.find_photos("gs://bucket/photos")
    with pytest.raises(OutputError, match="gs://bucket/out"):
        files.write("gs://bucket/out", b"")


@pytest.mark.beam
def test_failed_remote_writer_is_terminated_before_each_retry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Writer(io.BytesIO):
        """Like google.cloud.storage.fileio.BlobWriter, which uploads in close() and in its finalizer."""

        terminated = False

        def close(self) -> None:
            if not self.terminated:
                raise OSError("503 Service Unavailable")

        def terminate(self) -> None:
            self.terminated = True

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
    assert [writer.terminated for writer in writers] == [True] * files.ATTEMPTS
    writers.clear()
    with pytest.raises(OutputError, match="503 Service Unavailable"):
        files.check_writable("gs://bucket/out")
    assert len(writers) == 1, "check_writable has one attempt, since the user waits for it"

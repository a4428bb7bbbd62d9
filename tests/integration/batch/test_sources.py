"""Dataset manifests with remote photos: one listing request per directory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from batch.inputs.sources import Source


@pytest.mark.beam
def test_remote_manifest_lists_each_directory_once(bucket: Any) -> None:
    objects, listed = bucket
    objects.update({f"sourcestest://b/{n % 3}/{n}.jpg": b"x" * n for n in range(9)})
    uris = [f"{n % 3}/{n}.jpg" for n in range(9)] + ["0/nowhere.jpg", "sourcestest://b/1/1.jpg"]
    objects["sourcestest://b/m.csv"] = "\n".join(
        ["uri,n", *(f"{u},{i}" for i, u in enumerate(uris))]
    ).encode()
    source = Source(manifest="sourcestest://b/m.csv")
    lines = {
        (photo.uri, photo.size): source.columns.to_table([v])["n"][0].as_py()
        for photo, v in source.iter_lines()
    }
    assert lines == {
        **{(f"sourcestest://b/{n % 3}/{n}.jpg", n): n for n in range(9) if n != 1},
        ("sourcestest://b/0/nowhere.jpg", 0): 9,
        ("sourcestest://b/1/1.jpg", 1): 10,
    }
    assert sorted(listed) == [f"sourcestest://b/{n}/" for n in range(3)]


@pytest.fixture
def bucket() -> Iterator[tuple[dict[str, bytes], list[str]]]:
    """Objects of an in-memory storage (scheme `sourcestest`), and the prefixes that were listed."""
    import io

    from apache_beam.io.filesystem import FileMetadata, FileSystem

    objects: dict[str, bytes] = {}
    listed: list[str] = []

    class Memory(FileSystem):
        @classmethod
        def scheme(cls) -> str:
            return "sourcestest"

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

        def create(self, path: str, mime_type: str = "", compression_type: str = "auto") -> Any:
            raise NotImplementedError

        delete = join = split = mkdirs = copy = rename = size = checksum = last_updated = create

    yield objects, listed
    del Memory

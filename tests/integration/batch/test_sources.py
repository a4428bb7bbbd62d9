"""Dataset manifests with remote photos: one listing request per directory."""

from __future__ import annotations

import pytest

from batch.inputs.sources import Source
from serving.storage import files
from tests.support import object_stores


def test_remote_manifest_lists_each_directory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    top = object_stores.new_base_path("memory", monkeypatch, {})
    for n in range(9):
        files.write(f"{top}/{n % 3}/{n}.jpg", b"x" * n)
    uris = [f"{n % 3}/{n}.jpg" for n in range(9)] + ["0/nowhere.jpg", f"{top}/1/1.jpg"]
    files.write(f"{top}/m.csv", "\n".join(["uri,n", *(f"{u},{i}" for i, u in enumerate(uris))]).encode())
    source = Source(manifest=f"{top}/m.csv")
    with object_stores.count_listings() as listed:
        lines = {
            (photo.uri, photo.size): source.columns.to_table([v])["n"][0].as_py()
            for photo, v in source.iter_lines()
        }
    assert lines == {
        **{(f"{top}/{n % 3}/{n}.jpg", n): n for n in range(9) if n != 1},
        (f"{top}/0/nowhere.jpg", 0): 9,
        (f"{top}/1/1.jpg", 1): 10,
    }
    assert [path.rpartition("/")[2] for path in sorted(listed)] == ["0", "1", "2"]

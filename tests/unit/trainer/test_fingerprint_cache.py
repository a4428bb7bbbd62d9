"""The fingerprint of a backbone is computed again only if one of its files has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.backbones import fingerprint


def test_a_fingerprint_is_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []

    def compute(path: str) -> str:
        computed.append(path)
        return f"fingerprint {len(computed)}"

    monkeypatch.setattr(fingerprint, "compute_fingerprint", compute)
    model, cache = tmp_path / "model", tmp_path / "cache"
    (model / "variables").mkdir(parents=True)
    (model / "saved_model.pb").write_bytes(b"graph")
    (model / "variables" / "variables.index").write_bytes(b"weights")

    def read() -> str:
        return fingerprint.read_fingerprint(str(model), cache)

    assert [read(), read()] == ["fingerprint 1"] * 2
    (model / "variables" / "variables.index").write_bytes(b"WEIGHTS")
    assert [read(), read()] == ["fingerprint 2"] * 2
    (model / "assets").mkdir()
    (model / "assets" / "words.txt").write_bytes(b"new")
    assert read() == "fingerprint 3"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "compute_fingerprint", lambda _: "fingerprint")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "fingerprints").write_bytes(b"not a directory")
    assert fingerprint.read_fingerprint(str(tmp_path), tmp_path / "cache") == "fingerprint"

"""Finished shards: their files are verified before adoption and publication, and the dataset afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.embeddings import to_parquet
from batch.monitoring.stats import Stats
from batch.output.attempt import StagedShard
from batch.output.dataset import Output
from batch.output.finished import Publication
from serving.errors import OutputError

SHARD = "0" * 32
ROWS = pa.table({"uri": ["/a.jpg", "/b.jpg"]})
IDENTITY = {"photos": "p", "models": [], "partition_by": ""}


def leave_shard(top: Path, rows: pa.Table = ROWS) -> Path:
    """Finish a shard of two photos in an attempt that ends before it publishes; return its file of rows."""
    with Output(str(top)).hold_lease() as output:
        stats = Stats(photos=2, rows=2)
        shard = Publication(output).attempt.commit(SHARD, "night", rows, stats, {}, date="2026-05-31")
    [name] = shard.row_files.values()
    return top / name


def collect(top: Path) -> list[StagedShard | None]:
    """Finish the shard in an attempt of its own, tear its file, and collect it."""
    with Output(str(top)).hold_lease() as output:
        publication = Publication(output)
        stats = Stats(photos=2, rows=2)
        shard = publication.attempt.commit(SHARD, "night", ROWS, stats, {}, date="2026-05-31")
        [name] = shard.row_files.values()
        (top / name).write_bytes((top / name).read_bytes()[:-1])
        return list(publication.collect([SHARD]))


def test_an_intact_shard_of_an_earlier_attempt_is_adopted_and_published(tmp_path: Path) -> None:
    file = leave_shard(tmp_path)
    with Output(str(tmp_path)).hold_lease() as output:
        publication = Publication(output)
        found = publication.find(SHARD)
        assert found
        assert (found.run_id, found.stats.rows) == ("night", 2)
        publication.publish(IDENTITY, [], [])
        output.remove_attempts()
    [published] = (tmp_path / "scores").iterdir()
    assert published.name == file.name
    assert pq.read_table(published).num_rows == 2
    assert list((tmp_path / "_hubhead" / "attempts").iterdir()) == []


@pytest.mark.parametrize("damage", ["torn", "missing", "fewer rows", "another size"])
def test_a_shard_whose_file_is_damaged_is_not_adopted(tmp_path: Path, damage: str) -> None:
    file = leave_shard(tmp_path, ROWS.slice(1) if damage == "fewer rows" else ROWS)
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "another size":
        file.write_bytes(to_parquet(pa.table({"uri": ["/a.jpg", "/longer.jpg"]}), compression="zstd"))
    with Output(str(tmp_path)).hold_lease() as output:
        assert Publication(output).find(SHARD) is None


def test_a_torn_file_of_this_attempt_is_an_error_before_anything_is_published(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"was finished, but .* cannot be read"):
        collect(tmp_path)
    assert not (tmp_path / "scores").exists()


def test_rows_that_appear_during_the_publication_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_shard(tmp_path)
    publish = Output.publish_shards

    def interfere(self: Output, shards: list[StagedShard]) -> None:
        publish(self, shards)
        (tmp_path / "scores" / f"scores-{'1' * 32}.{'2' * 16}.parquet").write_bytes(b"late")

    monkeypatch.setattr(Output, "publish_shards", interfere)
    with Output(str(tmp_path)).hold_lease() as output:
        publication = Publication(output)
        assert publication.find(SHARD)
        with pytest.raises(OutputError, match=r"not what this run wrote: scores-1{32}"):
            publication.publish(IDENTITY, [], [])
    assert not (tmp_path / "run.json").exists()


def test_scores_of_another_model_are_named_by_version_and_content(tmp_path: Path) -> None:
    def make_identity(digest: str, version: int) -> dict[str, Any]:
        models = [{"name": "food", "version": version, "digest": digest * 32, "fingerprint": "f"}]
        return {"photos": "uploads", "models": models, "partition_by": ""}

    output = Output(str(tmp_path / "scores"))
    output.claim(make_identity("a", 1), [], append=False)
    with pytest.raises(OutputError) as caught:
        output.check(make_identity("b", 2), append=False, overwrite=False)
    assert "models was food version 1 (aaaaaaaa), now food version 2 (bbbbbbbb)" in caught.value.what
    with pytest.raises(OutputError, match="photos was uploads, now other"):
        output.check({**make_identity("a", 1), "photos": "other"}, append=False, overwrite=False)

"""Names of the directories of --partition_by label."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pytest

from batch.monitoring.stats import Stats
from batch.output.attempt import Attempt, check_partitions
from batch.query.views import create_views
from serving.errors import InputError

CYRILLIC = "д" * 41  # six characters for each letter, after "label="
"""The longest label of this letter whose directory file systems allow."""


def test_a_label_whose_directory_has_too_long_a_name_is_an_error_before_the_work() -> None:
    check_partitions("label", ["pizza", CYRILLIC, "x" * 249])
    with pytest.raises(InputError, match="would have a name of 258 bytes, and file systems allow 255"):
        check_partitions("label", ["pizza", CYRILLIC + "д"])
    with pytest.raises(InputError, match="name of 256 bytes"):
        check_partitions("label", ["x" * 250])


def test_labels_of_any_name_are_read_back_from_the_names_of_their_directories(tmp_path: Path) -> None:
    labels = [
        *("__hive_default_partition__", "NULL", "null", "nan", "01", "true"),
        *("%", "%41", "a=b", "a/b", "..", ".a", "_a", "a.", " a ", "a+b", "a\nb", "a\\b", "CON", "~"),
        *("é", "e\u0301", "🍕", ""),
        None,
    ]
    table = pa.table({"label": pa.array(labels, pa.string()), "row": list(range(len(labels)))})
    attempt = Attempt(str(tmp_path), "0" * 32, "label")
    shard = attempt.commit("1" * 32, "run", table, Stats(rows=len(labels)), {}, date="2026-05-31")
    for path, name in shard.row_files.items():
        target = tmp_path / "scores" / path
        target.parent.mkdir(parents=True)
        (tmp_path / name).rename(target)
    kinds = pyarrow.dataset.partitioning(pa.schema([("label", pa.string())]), flavor="hive")
    read = pyarrow.dataset.dataset(tmp_path / "scores", partitioning=kinds).to_table()
    by_arrow = dict(zip(read["row"].to_pylist(), read["label"].to_pylist(), strict=True))
    with duckdb.connect() as connection:
        create_views(connection, str(tmp_path))
        by_duckdb = dict(connection.execute("select row, label from scores").fetchall())
    assert by_arrow == by_duckdb == dict(enumerate(labels))


def test_the_label_that_hive_takes_for_none_is_an_error_before_the_work() -> None:
    with pytest.raises(InputError, match="cannot be told from those without a label"):
        check_partitions("label", ["pizza", "__HIVE_DEFAULT_PARTITION__"])


def test_the_length_of_labels_does_not_matter_without_their_directories() -> None:
    for partition_by in ("", "date"):
        check_partitions(partition_by, ["x" * 1000])

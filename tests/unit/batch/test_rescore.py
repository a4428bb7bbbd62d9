"""Inputs of rescoring: previous scores, decisions of a batch, and digests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.output import schema
from serving import contract
from serving.errors import InputError
from serving.storage import files


def test_incomplete_or_damaged_scores_are_rejected(tmp_path: Path) -> None:
    from batch.output.previous_scores import PreviousScores

    with pytest.raises(InputError, match="no scores"):
        PreviousScores(str(tmp_path))
    (tmp_path / "_hubhead").mkdir()
    with pytest.raises(InputError, match="not complete"):
        PreviousScores(str(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "scores-1.parquet").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be read"):
        PreviousScores(str(tmp_path))


def test_the_footers_of_previous_scores_are_read_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from batch.output.previous_scores import PreviousScores

    names = ("uri", "sha256", "status", "detail", "model", "version", "scored_at")
    rows = pa.table({name: pa.array([name], pa.string()) for name in names})
    for number in range(4):
        pq.write_table(rows, tmp_path / f"{number}.parquet")
    open_file, together = files.open_file, threading.Barrier(4, timeout=10)

    @contextmanager
    def open_with_others(uri: str) -> Iterator[BinaryIO]:
        together.wait()  # breaks where files are opened one after another
        with open_file(uri) as file:
            yield file

    monkeypatch.setattr(files, "open_file", open_with_others)
    assert PreviousScores(str(tmp_path)).rows == 4


@given(st.integers(1, 60), st.integers(0, 6), st.integers(1, 60), st.integers(0, 1 << 30))
def test_decisions_of_a_batch_equal_those_of_each_row(labels: int, rows: int, k: int, seed: int) -> None:
    k, draw = min(k, labels), np.random.default_rng(seed)
    probabilities = draw.integers(0, 6, (rows, labels)).astype(np.float32) / 8  # with many ties
    usable, known = draw.random(rows) < 0.7, draw.random(rows) < 0.7
    decisions = contract.decide(probabilities, usable, threshold=0.5, top_k=k, known=known)
    for row in range(rows):
        order = sorted(range(labels), key=lambda label: (-probabilities[row, label], label))[:k]
        assert decisions.top[row].tolist() == order
        assert decisions.scores[row].tolist() == probabilities[row, order].tolist()
        answered = usable[row] and known[row] and probabilities[row, order[0]] >= 0.5
        assert decisions.label[row] == (order[0] if answered else -1)


def test_threshold_is_compared_in_double_precision() -> None:
    score = np.float32(0.7)  # slightly below 0.7
    decisions = contract.decide(
        np.array([[score, 0.3]], np.float32), np.array([True]), threshold=0.7, top_k=1
    )
    assert decisions.label.tolist() == [-1]


def test_digests_are_parsed_from_hexadecimal() -> None:
    import pyarrow as pa

    values = [bytes(range(16)).hex(), None, "FF" * 16]
    found = schema.parse_hex_digests(pa.chunked_array([values[:1], values[1:]], pa.string()), 16)
    assert found.view("V16").tolist() == [bytes(range(16)), bytes(16), b"\xff" * 16]
    sliced = pa.array([*values, values[0]])[2:]
    assert schema.parse_hex_digests(sliced, 16).view("V16").tolist() == [b"\xff" * 16, bytes(range(16))]
    for wrong in ("00", "zz" * 16):
        with pytest.raises(ValueError, match="hexadecimal"):
            schema.parse_hex_digests(pa.array([wrong]), 16)


def test_null_and_unknown_statuses_have_a_negative_code() -> None:
    import pyarrow as pa

    column = pa.array(["ok", None, "of a later version", "corrupt", ""])
    codes = schema.encode_status_column(column)
    assert codes.dtype == np.int8
    assert codes.tolist() == [0, -1, -1, schema.STATUSES.index(contract.Status.CORRUPT), -1]
    assert schema.encode_status_column(column[3:]).tolist() == [codes[3], -1]
    assert schema.encode_status_column(
        pa.array([status.value for status in schema.STATUSES])
    ).tolist() == list(range(len(schema.STATUSES)))

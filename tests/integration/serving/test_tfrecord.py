"""TFRecord files: what TensorFlow writes is read, and what is written TensorFlow reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import BundleError
from serving.storage.tfrecord import read_records, write_records

RECORDS = [b"", b"a", b"\0" * 7, bytes(range(256)) * 300]


@pytest.mark.tf
def test_tensorflow_and_hubhead_read_each_other(tmp_path: Path) -> None:
    import tensorflow as tf

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_records(ours, RECORDS)
    with tf.io.TFRecordWriter(str(theirs)) as writer:
        for record in RECORDS:
            writer.write(record)
    assert ours.read_bytes() == theirs.read_bytes()
    assert list(read_records(theirs)) == RECORDS
    assert list(tf.data.TFRecordDataset(str(ours)).as_numpy_iterator()) == RECORDS


def test_every_damaged_byte_and_every_missing_end_is_found(tmp_path: Path) -> None:
    path = tmp_path / "records"
    write_records(path, [b"one", b"two"])
    content = path.read_bytes()
    damaged = [content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :] for index in range(38)]
    cut = [content[:index] for index in range(1, len(content)) if index != len(content) // 2]
    for changed in (*damaged, *cut):
        path.write_bytes(changed)
        with pytest.raises(BundleError, match="not a TFRecord file, or is corrupt"):
            list(read_records(path))

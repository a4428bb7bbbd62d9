"""Names of the directories of --partition_by label."""

from __future__ import annotations

import pytest

from batch.output.attempt import check_partitions
from serving.errors import InputError

CYRILLIC = "д" * 41  # six characters for each letter, after "label="
"""The longest label of this letter whose directory file systems allow."""


def test_a_label_whose_directory_has_too_long_a_name_is_an_error_before_the_work() -> None:
    check_partitions("label", ["pizza", CYRILLIC, "x" * 249])
    with pytest.raises(InputError, match="would have a name of 258 bytes, and file systems allow 255"):
        check_partitions("label", ["pizza", CYRILLIC + "д"])
    with pytest.raises(InputError, match="name of 256 bytes"):
        check_partitions("label", ["x" * 250])


def test_the_length_of_labels_does_not_matter_without_their_directories() -> None:
    for partition_by in ("", "date"):
        check_partitions(partition_by, ["x" * 1000])

"""The flag tables of docs/migration are those of the code."""

from __future__ import annotations

import re

import pytest

from serving.commands.common.label_image import FLAGS
from tests.support.repository import REPO
from trainer.commands.retrain_flag_table import ABSENT, LEGACY_FLAGS


def expected_rows(tool: str) -> list[tuple[str, str, str]]:
    """Return (flag, default, treatment) of each flag of a tool, without markup."""
    return [
        (f"--{flag.name}", "none" if default in (None, "") else str(default), flag.describe())
        for flag in LEGACY_FLAGS.values()
        if (default := getattr(flag, tool)) is not ABSENT
    ]


@pytest.mark.parametrize(
    ("page", "tool"), [("retrain.md", "retrain"), ("make-image-classifier.md", "classifier")]
)
def test_the_flag_table_of_a_migration_page_is_that_of_the_code(page: str, tool: str) -> None:
    text = (REPO / "docs" / "migration" / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`--\w+`) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    shown = [tuple(cell.replace("`", "") for cell in row) for row in rows]
    assert [row for row in shown if row[0].removeprefix("--") in LEGACY_FLAGS] == expected_rows(tool)


def test_the_table_of_label_image_is_that_of_the_code() -> None:
    text = (REPO / "docs/migration/tensorflow-for-poets.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`--\w+`) \| (.*?) \|$", text, re.MULTILINE)
    shown = [tuple(cell.replace("`", "") for cell in row) for row in rows]
    assert shown == [(f"--{flag.name}", flag.describe()) for flag in FLAGS]

"""The pages of docs/reference name every key that a real bundle has."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from serving import contract
from tests.support.reference.contents import SECTIONS
from tests.support.repository import REPO
from tests.support.trained import Trained

pytestmark = [pytest.mark.tf, pytest.mark.beam]

PAGE = REPO / "docs" / "reference" / "bundle.md"
BY_LABEL = ("recall", "precision", "f1", "confusion")


def read_metadata(trained: Trained) -> dict[str, Any]:
    text = (trained.result.bundle.path / contract.METADATA_FILE).read_text("utf-8")
    metadata: dict[str, Any] = json.loads(text)
    return metadata


def test_the_sections_of_hubhead_json_have_tables(trained: Trained) -> None:
    nested = {key for key, value in read_metadata(trained).items() if isinstance(value, dict)}
    assert nested == set(SECTIONS)


def test_every_key_of_hubhead_json_is_on_its_page(trained: Trained) -> None:
    metadata = read_metadata(trained)
    documented = set(re.findall(r"`([\w-]+)`", PAGE.read_text("utf-8")))
    keys = set(metadata) | {key for name in SECTIONS for key in metadata[name]}
    keys |= {key for figures in metadata["metrics"].values() if figures for key in figures}
    assert {"labels", "fingerprint", "temperature", "log_loss", "packages"} <= keys
    assert sorted(keys - documented) == []


def test_every_key_of_the_figures_of_a_set_is_in_the_table(trained: Trained) -> None:
    figures = read_metadata(trained)["metrics"]["test"]
    [table] = re.findall(
        r"<!-- generated: evaluation -->\n(.*?)<!-- end -->", PAGE.read_text("utf-8"), re.DOTALL
    )
    assert set(figures) == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert all(isinstance(figures[key], dict) for key in BY_LABEL)

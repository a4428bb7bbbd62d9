"""Figures of docs/seeds/many-labels.md are those of the training on the sample photos."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.repository import REPO
from trainer.evaluation.metrics import proportion

if TYPE_CHECKING:
    from tests.support.trained import Trained

KNOWN = ("fruits", "other vegetables", "marine fish")
"""Labels for many of whose kinds ImageNet has a class."""

pytestmark = [pytest.mark.tf, pytest.mark.beam]


def test_recall_of_labels_that_imagenet_knows_and_of_others_is_that_of_the_page(trained: Trained) -> None:
    bundle = trained.result.bundle.path
    metadata = json.loads((bundle / "assets.extra" / "hubhead.json").read_text("utf-8"))
    recall: dict[str, Any] = metadata["metrics"]["cross-validation"]["recall"]
    others = sorted(recall.keys() - set(KNOWN), key=lambda label: -recall[label]["value"])

    def describe(labels: Iterable[str]) -> tuple[str, str]:
        found = [recall[label] for label in labels]
        count = sum(one["n"] for one in found)
        share = proportion(round(sum(one["value"] * one["n"] for one in found)), count)
        value, low, high = (f"{100 * part:.1f} %" for part in (share.value, share.low, share.high))
        return f"{value} of {count}", f"{low} to {high}"

    text = (REPO / "docs/seeds/many-labels.md").read_text("utf-8")
    rows = re.findall(r"^\| (.+?) \| ([\d.]+ % of \d+)(?: photos)? \| (.+?) \|$", text, re.MULTILINE)
    assert rows == [
        (", ".join(KNOWN), *describe(KNOWN)),
        ("the seven others", *describe(others)),
        (f"of these the best: {others[0]}", *describe(others[:1])),
        (f"of these the worst: {others[-1]}", *describe(others[-1:])),
    ]

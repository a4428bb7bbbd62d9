"""Test data for the registry: bundles with verdicts, a model.config, and the command runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner

from hubhead import hubhead
from serving.bundle import BundleMetadata
from serving.registry import audit, verdict
from serving.registry.verdict import Check, Verdict
from tests.support.fake_model import write_fake_model

CONFIG = """# Kept by hand.
model_config_list {
  config {
    name: "other"  # of another team
    base_path: "%s"
    model_platform: "tensorflow"
  }
  config {
    name: "double"
    base_path: "%s"
    model_platform: "tensorflow"
  }
}
"""


def write_bundle(models: Path, number: int, *, blessed: bool | None = True, broken: bool = False) -> Path:
    """Write a bundle as the trainer does, with or without a verdict."""
    directory = write_fake_model(models / str(number))
    backbone = {"handle": "h", "fingerprint": "f", "dimension": 1}
    accuracy = {"value": 0.5 + number / 100, "n": 50, "low": 0.4, "high": 0.7}
    BundleMetadata(
        ["a", "b"],
        backbone,
        {},
        metrics={"test": {"accuracy": accuracy}},
        provenance={"created": f"2026-01-0{number}T00:00:00+00:00"},
    ).write(directory)
    if broken:
        (directory / "broken").touch()
    if blessed is not None:
        check = Check("accuracy", blessed, 0.5, 0.6, "0.5, at least 0.6 required")
        verdict.write(directory, Verdict(verdict.digest(directory), (check,), None, audit.now()))
    return directory


def command(*arguments: str | Path) -> Any:
    """Run a hubhead command and return click's result."""
    return CliRunner().invoke(hubhead, [str(argument) for argument in arguments])

"""The commands `hubhead backbone build` and `hubhead backbone show`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.hub_modules import small_module
from trainer.backbones.fingerprint import compute_fingerprint
from trainer.backbones.hub import Backbone
from trainer.commands.backbone import backbone as command
from trainer.dataset.download import cache_directory

pytestmark = pytest.mark.tf


def test_backbone_build_prints_the_directory(default_backbone: Backbone) -> None:
    result = CliRunner().invoke(
        command, ["build", "--cache_dir", str(cache_directory())], catch_exceptions=False
    )
    assert (result.exit_code, result.stdout) == (0, f"{default_backbone.path}\n")


def test_backbone_show_prints_the_licence_of_a_built_backbone() -> None:
    result = CliRunner().invoke(command, ["show", "efficientnet_lite0"], catch_exceptions=False)
    assert "licence     Apache-2.0\n" in result.stdout


def test_backbone_show_prints_the_interface(tmp_path: Path) -> None:
    path = small_module(tmp_path / "module")
    result = CliRunner().invoke(command, ["show", path, "--cache_dir", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    for expected in ("float32 [N,16,12,3] in [0,1]", "float32 [N,2]", compute_fingerprint(path), path):
        assert expected in result.stdout


def test_backbone_show_applies_image_size_and_value_range(tmp_path: Path) -> None:
    path = small_module(tmp_path / "module", shape=(None, None, None, 3))
    arguments = ["show", path, "--cache_dir", str(tmp_path), "--image_size", "40", "--value_range", "-1,1"]
    shown = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "float32 [N,40,40,3] in [-1,1]" in shown.stdout
    record = json.loads(CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert record["fingerprint"] in shown.stdout
    del record["fingerprint"]
    assert record == {
        "handle": path,
        "image_size": [40, 40],
        "value_range": [-1, 1],
        "preprocessing": None,
        "dtype": "float32",
        "dimension": 2,
        "path": path,
        "licence": "",
    }


def test_the_backbone_command_imports_tensorflow_lazily() -> None:
    script = (
        "import sys, trainer.commands.backbone\n"
        "print(sorted({'tensorflow', 'tensorflow_hub', 'numpy', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"

"""Pixel values of a backbone by the modes of keras.applications."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from serving.errors import InputError
from tests.support.hub_modules import small_module
from trainer.backbones import InputOptions, input_key
from trainer.backbones.hub import load
from trainer.commands.backbone import backbone as command

pytestmark = pytest.mark.tf


def test_modes_are_the_pixel_values_of_keras(tmp_path: Path) -> None:
    def sum_channels(photos: Any, _weights: Any) -> Any:
        return photos[:, 0, 0]

    path = small_module(tmp_path / "module", function=sum_channels)
    red = np.zeros([1, 16, 12, 3], np.float32)
    red[..., 0] = 1
    for mode, expected in (
        ("raw", [255, 0, 0]),
        ("tf", [1, -1, -1]),
        ("caffe", [-103.939, -116.779, 255 - 123.68]),
        ("torch", [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]),
    ):
        loaded = load(path, tmp_path, options=InputOptions(preprocessing=mode))
        np.testing.assert_allclose(loaded.apply(red)[0], expected, rtol=1e-5)
        again = load(path, tmp_path, options=loaded.interface.to_options())
        assert (again.fingerprint, again.interface.channels) == (
            loaded.fingerprint,
            loaded.interface.channels,
        )


def test_backbone_show_names_the_mode(tmp_path: Path) -> None:
    arguments = ["show", small_module(tmp_path / "module"), "--cache_dir", str(tmp_path)]
    shown = CliRunner().invoke(command, [*arguments, "--preprocessing", "torch"], catch_exceptions=False)
    assert "float32 [N,16,12,3] in [0,1], channels normalised as torch" in shown.stdout


def test_pixel_values_are_stated_once() -> None:
    with pytest.raises(InputError, match="both state the pixel values"):
        InputOptions(value_range=(0, 1), preprocessing="tf")
    with pytest.raises(InputError, match="bgr is not a mode of preprocessing"):
        InputOptions(preprocessing="bgr")
    assert input_key("module", InputOptions(preprocessing="caffe")) == [None, None, None, "caffe"]

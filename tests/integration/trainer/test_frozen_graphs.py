"""Frozen graphs of TensorFlow 1 as backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from serving.errors import InputError
from tests.support.frozen_graphs import BETA, EPSILON, GAMMA, KERNEL, MEAN, VARIANCE, write_graph
from tests.support.hub_modules import small_module
from trainer.backbones import InputOptions
from trainer.backbones.hub import Backbone, load
from trainer.commands.backbone import backbone as command

pytestmark = pytest.mark.tf


def compute_features(values: NDArray[np.float32], *, scales: bool = True) -> NDArray[np.float32]:
    """Return the features of pixels from 0 to 255, float32 [N,H,W,3]."""
    convolved = (values - 128) / 128 @ KERNEL
    normalised = (convolved - MEAN) / np.sqrt(VARIANCE + EPSILON) * (GAMMA if scales else 1) + BETA
    return np.maximum(normalised, 0).mean((1, 2))


def load_graph(
    file: str, source: str, target: str, lines: list[str] | None = None, **options: Any
) -> Backbone:
    """Load a frozen graph with a cache beside it."""
    stated = InputOptions(input_tensor=source, output_tensor=target, **options)
    cache = Path(file).parent / "cache"
    return load(file, cache, options=stated, progress=(lines if lines is not None else []).append)


@pytest.mark.parametrize("scales", [True, False])
def test_features_of_a_frozen_graph_equal_its_arithmetic(scales: bool, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph.pb", scales=scales)
    photos = np.random.default_rng(1).random((3, 16, 12, 3)).astype(np.float32)
    expected = compute_features(photos * 255, scales=scales)
    lines: list[str] = []
    before_scaling = load_graph(graph, "Resized:0", "pool_3:0", lines, preprocessing="raw")
    assert (before_scaling.image_size, before_scaling.dimension) == ((16, 12), 4)
    np.testing.assert_allclose(before_scaling.apply(photos), expected, rtol=1e-4)
    behind_it = load_graph(graph, "Mul", "pool_3", lines, value_range=(-1.0, 127 / 128))
    np.testing.assert_allclose(behind_it.apply(photos), expected, rtol=1e-4)
    assert lines == []


def test_the_resize_of_the_graph_can_be_part_of_the_backbone(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph.pb")
    loaded = load_graph(graph, "ExpandDims:0", "pool_3:0", preprocessing="raw", image_size=(32, 24))
    photos = np.random.default_rng(1).random((2, 16, 12, 3)).astype(np.float32)
    enlarged = photos.repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(loaded.apply(enlarged), compute_features(photos * 255), rtol=1e-4)


def test_unstated_pixel_values_are_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    loaded = load_graph(write_graph(tmp_path / "graph.pb"), "Mul:0", "pool_3:0", lines)
    assert loaded.interface.value_range == (0, 1)
    assert "does not state the pixel values of Mul:0: they are scaled to 0 to 1" in lines[0]


def test_each_pair_of_tensors_is_a_backbone_of_its_own(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph.pb")
    one = load_graph(graph, "Resized:0", "pool_3:0", preprocessing="raw")
    other = load_graph(graph, "Resized:0", "relu:0", preprocessing="raw")
    assert one.fingerprint != other.fingerprint
    photos = np.random.default_rng(1).random((2, 16, 12, 3)).astype(np.float32)
    np.testing.assert_allclose(one.apply(photos), other.apply(photos), rtol=1e-5)  # feature maps are averaged


def test_backbone_show_takes_the_tensors(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph.pb")
    arguments = ["show", graph, "--cache_dir", str(tmp_path / "cache"), "--preprocessing", "raw"]
    arguments += ["--input_tensor", "Resized:0", "--output_tensor", "pool_3:0"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "float32 [N,16,12,3] in [0,255]" in result.stdout
    assert "float32 [N,4]" in result.stdout


# Errors


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (None, None, "does not say where photos go in.*--input_tensor and --output_tensor"),
        ("Mul:0", None, "does not say where photos go in"),
        ("Mull:0", "pool_3:0", r"has no tensor Mull:0\. Did you mean Mul:0"),
        ("Mul:0", "pool3:0", r"has no tensor pool3:0\. Did you mean pool_3:0"),
        ("relu:0", "Mul:0", r"Mul:0 does not depend on relu:0"),
        ("Mul:0", "Mul:0", r"Mul:0 does not depend on Mul:0"),
        ("Mul:0", "with_rate:0", "also depends on the input rate"),
        ("Resized:0", "pool_3/_reshape:0", "does not compute feature vectors"),
        ("DecodeJpeg/contents:0", "pool_3:0", "cannot run on photos"),
    ],
)
def test_tensors_that_cannot_be_used_are_an_error(
    source: str, target: str, message: str, tmp_path: Path
) -> None:
    graph = write_graph(tmp_path / "graph.pb")
    with pytest.raises(InputError, match=message):
        load_graph(graph, source, target, preprocessing="raw")


def test_a_graph_that_is_not_frozen_is_an_error(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph.pb", frozen=False)
    with pytest.raises(InputError, match="not frozen: variable is a variable"):
        load_graph(graph, "Mul:0", "pool_3:0")


def test_a_damaged_graph_is_an_error(tmp_path: Path) -> None:
    graph = Path(write_graph(tmp_path / "graph.pb"))
    graph.write_bytes(graph.read_bytes()[:-20])
    with pytest.raises(InputError, match="is not a readable GraphDef"):
        load_graph(str(graph), "Mul:0", "pool_3:0")


def test_tensors_are_named_for_frozen_graphs_alone(tmp_path: Path) -> None:
    path = small_module(tmp_path / "module")
    with pytest.raises(InputError, match="name tensors of a frozen graph"):
        load(path, tmp_path, options=InputOptions(input_tensor="Mul:0", output_tensor="pool_3:0"))

"""The backbone in ONNX: compared with the TensorFlow graph on photos, left out where it cannot be made."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from serving import bundle, contract, runtime
from serving.bundle import Bundle
from serving.errors import BundleError
from serving.runtime.onnx_model import OnnxBackbone
from serving.runtime.session import ClassicSession
from serving.runtime.subgraph import Subgraph
from tests.support.hub_modules import small_module
from trainer.backbones.hub import load
from trainer.export import onnx_backbone
from trainer.export.bundle import HeadExport, export
from trainer.export.bundle_check import PASSED_FILE
from trainer.export.checks import sample_jpeg
from trainer.export.head_file import load_head
from trainer.export.templates import prepare_template

if TYPE_CHECKING:
    from tests.support.trained import Trained

pytestmark = [pytest.mark.tf, pytest.mark.beam]


@pytest.fixture(scope="module")
def food(trained: Trained) -> Bundle:
    return trained.result.bundle


@pytest.fixture(scope="module")
def photos(trained: Trained) -> list[bytes]:
    return [Path(path).read_bytes() for path, _ in trained.result.test_photos[:8]]


def hash_features(photos: Any, weights: Any) -> Any:
    """A feature vector of an operation that ONNX does not have."""
    import tensorflow as tf

    text = tf.strings.as_string(tf.reduce_sum(photos, [1, 2, 3]))
    return tf.cast(tf.strings.to_hash_bucket_fast(text, 100), tf.float32)[:, None] * weights


def test_a_backbone_that_cannot_be_converted_runs_on_tensorflow_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handle = small_module(tmp_path / "module", function=hash_features)
    with caplog.at_level(logging.WARNING):
        found = prepare_template(handle, tmp_path / "cache")
        assert prepare_template(handle, tmp_path / "cache").path == found.path
    said = [record.message for record in caplog.records if "runs on TensorFlow" in record.message]
    assert len(said) == 1
    assert "cannot be converted to ONNX" in said[0]
    assert not (found.path / contract.ONNX_FILE).exists()
    model = runtime.load(found.path)
    assert model.engine == "tensorflow"
    outputs = model.run(contract.EMBED, {contract.IMAGE_BYTES: [sample_jpeg(), b"text"]})
    assert outputs[contract.STATUS].tolist() == [b"ok", b"not_an_image"]
    assert outputs[contract.EMBEDDING].shape == (2, 2)
    with pytest.raises(BundleError, match="has no"):
        runtime.load(found.path, engine="onnx")


def test_the_engines_agree_on_photos_before_rounding(
    trained: Trained, food: Bundle, photos: list[bytes]
) -> None:
    with ClassicSession(food.path) as session:
        pixels = session.run(contract.DECODE, {contract.IMAGE_BYTES: photos})[contract.PIXELS]
    backbone = load(trained.settings.tfhub_module, trained.settings.cache)
    found = OnnxBackbone(str(food.path / contract.ONNX_FILE)).embed(pixels)
    expected = backbone.apply(pixels.astype(np.float32) / 255).numpy()
    assert np.abs(found - expected).max() <= contract.ENGINE_TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_a_bundle_is_published_without_an_onnx_file_that_differs_on_photos(
    factor: float,
    food: Bundle,
    photos: list[bytes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embed = OnnxBackbone.embed
    monkeypatch.setattr(OnnxBackbone, "embed", lambda self, pixels: embed(self, pixels) * np.float32(factor))
    head, novelty = load_head(food.path / contract.HEAD_FILE, food.metadata)
    part = HeadExport(head, food.metadata.labels, novelty=novelty)
    with caplog.at_level(logging.WARNING):
        published = export(food, part, tmp_path / "models" / "food", photos=photos)
    kept = (published.path / contract.ONNX_FILE).is_file()
    assert kept is (factor == 1.0)
    assert ("differs on a photo" in caplog.text) is not kept


def test_later_exports_of_the_same_photos_are_checked_on_onnx_runtime(
    trained: Trained, food: Bundle, photos: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = trained.settings
    shutil.copytree(prepare_template(settings.tfhub_module, settings.cache).path, tmp_path / "template")
    (tmp_path / "template" / PASSED_FILE).unlink(missing_ok=True)
    template = bundle.read(tmp_path / "template")
    head, novelty = load_head(food.path / contract.HEAD_FILE, food.metadata)
    part = HeadExport(head, food.metadata.labels, novelty=novelty)
    [outputs] = runtime.load(food.path).imap(contract.PROBABILITIES, contract.IMAGE_BYTES, photos)
    probabilities = outputs[contract.PROBABILITIES]
    compared: list[int] = []

    def compare(directory: Path, model: Subgraph, photos: Sequence[bytes]) -> None:
        compared.append(len(photos))
        check_photos(directory, model, photos)

    check_photos = onnx_backbone.check_photos
    monkeypatch.setattr(onnx_backbone, "check_photos", compare)

    def publish(
        source: Bundle, chosen: slice, part: HeadExport = part, probabilities: Any = probabilities
    ) -> None:
        given = probabilities[chosen] if probabilities is not None else None
        export(source, part, tmp_path / "models" / "food", photos=photos[chosen], probabilities=given)

    first, all_photos = slice(4), slice(None)
    publish(template, first)
    publish(template, first, replace(part, threshold=0.5))
    assert compared == [4], "the second head has other values of the same shapes"
    publish(template, all_photos)
    fewer = replace(head, kernel=head.kernel[:, :3], bias=head.bias[:3])
    publish(template, first, HeadExport(fewer, food.metadata.labels[:3]), None)
    assert compared == [4, 8, 4], "other photos, and other shapes"
    with pytest.raises(BundleError, match="probabilities differ"):
        publish(template, first, probabilities=1 - probabilities)
    assert compared == [4, 8, 4], "that was found by ONNX Runtime"
    publish(food, first)
    publish(food, first)
    assert compared == [4, 8, 4, 4, 4], "nothing is written into a published bundle"
    assert not (food.path / PASSED_FILE).exists()


def test_the_converter_checks_noise_and_flat_pictures() -> None:
    pixels = onnx_backbone.sample_pixels(8, (6, 5))
    assert pixels.shape == (8, 6, 5, 3)
    spread = [int(picture.max()) - int(picture.min()) for picture in pixels]
    assert spread[0] > 200
    assert 5 < spread[1] < 16
    assert (spread[2], spread[3]) == (0, 0)
    assert (int(pixels[2].max()), int(pixels[3].max())) == (0, 255)

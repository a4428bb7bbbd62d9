"""Files of Keras 2 and 3 as backbones: features, classifiers that are cut off, weights, errors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from serving.errors import InputError
from tests.support.hub_modules import small_module
from tests.support.keras_files import (
    CHANNELS,
    HEIGHT,
    WEIGHTS,
    WIDTH,
    build_keras_3,
    compute_features,
    draw_pixels,
    make_keras_2_config,
    write_keras_2,
    write_layers,
    write_old_resnet,
)
from trainer.backbones import InputOptions
from trainer.backbones.hub import Backbone, load
from trainer.backbones.keras_files import applications, prepare, weights
from trainer.backbones.keras_files.contents import read_contents
from trainer.backbones.keras_files.conversion import Facts, convert
from trainer.commands.backbone import backbone as command
from trainer.training.fine_tuning import trained_variables

pytestmark = [pytest.mark.tf, pytest.mark.slow(seconds=60)]


@pytest.fixture
def convert_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert in this process instead of one per file, which takes ten seconds."""

    def run(handle: str, directory: Path, application: str) -> None:
        from dataclasses import asdict
        from json import dumps

        facts = convert(Path(handle), directory, application)
        (directory / "keras.json").write_text(dumps(asdict(facts)))

    monkeypatch.setattr(prepare, "_run_conversion", run)


def load_file(file: Path, lines: list[str] | None = None, **options: Any) -> Backbone:
    """Load a Keras file with a cache beside it."""
    said = lines if lines is not None else []
    return load(str(file), file.parent / "cache", options=InputOptions(**options), progress=said.append)


def save(model: Any, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras advises against what some tests are about
        model.save(str(file))
    return file


# Formats


def test_a_model_of_keras_2_is_loaded_by_its_own_keras(tmp_path: Path) -> None:
    file, lines = write_keras_2(tmp_path / "model.h5"), list[str]()
    loaded = load_file(file, lines, preprocessing="caffe")
    pixels = draw_pixels()
    expected = compute_features(pixels[..., ::-1] * 255 - np.float32([103.939, 116.779, 123.68]))
    np.testing.assert_allclose(loaded.apply(pixels), expected, rtol=1e-4, atol=1e-4)
    assert (loaded.image_size, loaded.dimension) == ((HEIGHT, WIDTH), CHANNELS)
    assert lines == [f"Converting {file} with Keras; the result is kept"]
    # Once for all commands, by the content of the file.
    copy = tmp_path / "copy.h5"
    copy.write_bytes(file.read_bytes())
    lines.clear()
    assert load_file(copy, lines, preprocessing="caffe").fingerprint == loaded.fingerprint
    assert lines == []


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_model_of_keras_3_is_loaded_from_both_formats(
    name: str, tmp_path: Path, convert_here: None
) -> None:
    lines: list[str] = []
    loaded = load_file(save(build_keras_3(), tmp_path / name), lines)
    pixels = draw_pixels()
    np.testing.assert_allclose(loaded.apply(pixels), compute_features(pixels), rtol=1e-4, atol=1e-5)
    assert "does not state its pixel values" in lines[-1]
    variables = trained_variables(loaded, 1.0)
    assert len(variables) == 5  # moving averages are not trained


def test_a_conversion_again_has_the_same_fingerprint(tmp_path: Path, convert_here: None) -> None:
    import keras

    maps = build_keras_3()
    # Dropout has the state of a random number generator, which no file keeps.
    model = keras.Sequential([maps, keras.layers.Dropout(0.5), keras.layers.GlobalAveragePooling2D()])
    file = save(model, tmp_path / "model.keras")
    first = load_file(file)
    (tmp_path / "cache").rename(tmp_path / "other")
    assert load_file(file).fingerprint == first.fingerprint


def test_a_known_network_gets_the_pixel_values_of_its_preprocess_input(
    tmp_path: Path, convert_here: None
) -> None:
    import keras

    lines: list[str] = []
    network = build_keras_3(name="mobilenetv2_1.00_224", shape=(None, None, 3))
    model = keras.Sequential([keras.Input((None, None, 3)), network])
    loaded = load_file(save(model, tmp_path / "model.keras"), lines, image_size=(HEIGHT, WIDTH))
    pixels = draw_pixels()
    np.testing.assert_allclose(loaded.apply(pixels), compute_features(pixels * 2 - 1), rtol=1e-4, atol=1e-5)
    assert "is MobileNetV2 of keras.applications" in lines[-1]
    assert load_file(tmp_path / "model.keras").image_size == (224, 224)


def test_augmentation_in_the_file_does_nothing(tmp_path: Path, convert_here: None) -> None:
    import keras

    layers = [keras.Input((HEIGHT, WIDTH, 3)), keras.layers.RandomFlip(), keras.layers.Rescaling(2.0, -1.0)]
    file = save(keras.Sequential([*layers, build_keras_3()]), tmp_path / "model.keras")
    lines: list[str] = []
    loaded = load_file(file, lines)
    pixels = draw_pixels()
    expected = compute_features(pixels * 255 * 2 - 1)
    np.testing.assert_allclose(loaded.apply(pixels), expected, rtol=1e-4, atol=1e-3)
    assert "scales its input itself: it takes pixels from 0 to 255" in lines[-1]


# Classifiers


def make_classifier(kind: str) -> Any:
    """Return a model that ends in what its name says, on feature maps of build_keras_3."""
    import keras

    layers = keras.layers
    maps = build_keras_3()
    ends: dict[str, list[Any]] = {
        "softmax": [layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(2, "softmax")],
        "activation": [layers.GlobalAveragePooling2D(), layers.Dense(2), layers.Activation("softmax")],
        "sigmoid": [layers.GlobalAveragePooling2D(), layers.Dense(1, "sigmoid")],
        "imagenet_logits": [layers.GlobalAveragePooling2D(), layers.Dense(1000)],
        "flatten": [layers.Flatten(), layers.Dense(2, "softmax")],
        "convolution": [
            layers.GlobalAveragePooling2D(keepdims=True),
            layers.Dropout(0.2),
            layers.Conv2D(2, 1),
            layers.Reshape((2,)),
            layers.Activation("softmax"),
        ],
    }
    model = keras.Sequential([maps, *ends[kind.removeprefix("nested_")]])
    return keras.Sequential([keras.Input((HEIGHT, WIDTH, 3)), model]) if "nested" in kind else model


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("softmax", 2),
        ("activation", 2),
        ("sigmoid", 1),
        ("imagenet_logits", 1000),
        ("flatten", 2),
        ("convolution", 2),
        ("nested_softmax", 2),
    ],
)
def test_a_classifier_is_cut_off_and_reported(
    kind: str, labels: int, tmp_path: Path, convert_here: None
) -> None:
    lines: list[str] = []
    loaded = load_file(save(make_classifier(kind), tmp_path / "model.keras"), lines)
    pixels = draw_pixels()
    np.testing.assert_allclose(loaded.apply(pixels), compute_features(pixels), rtol=1e-4, atol=1e-5)
    assert f"ends in a classifier of {labels} labels, which is left out" in lines[1]


def test_a_classifier_of_keras_2_is_cut_off(tmp_path: Path) -> None:
    config = make_keras_2_config()
    dense = {"class_name": "Dense", "config": {"name": "top", "units": 2, "activation": "softmax"}}
    pooling = {"class_name": "GlobalAveragePooling2D", "config": {"name": "pool"}}
    with h5py.File(write_keras_2(tmp_path / "model.h5", None), "a") as opened:
        from json import dumps

        nested = {"class_name": "Sequential", "config": {"name": "mine", "layers": [config, pooling, dense]}}
        opened.attrs["model_config"] = dumps(nested).encode()
        del opened["model_weights"]
        every = {
            f"{layer}/{name}": value for layer, arrays in WEIGHTS.items() for name, value in arrays.items()
        }
        # Keras keeps the trainable weights of a nested model before its moving averages.
        order = sorted(every, key=lambda name: "moving" in name)
        top = {"kernel": np.ones((CHANNELS, 2), np.float32), "bias": np.zeros(2, np.float32)}
        nested_weights = {"model_1": {name: every[name] for name in order}, "top": top}
        write_layers(opened.create_group("model_weights"), nested_weights)
    lines: list[str] = []
    loaded = load_file(tmp_path / "model.h5", lines)
    pixels = draw_pixels()
    np.testing.assert_allclose(loaded.apply(pixels), compute_features(pixels), rtol=1e-4, atol=1e-5)
    assert (
        "classifier of 2 labels, which is left out: the features are the output of its layer pool" in lines[1]
    )


def test_a_last_layer_that_is_no_classifier_is_kept(tmp_path: Path, convert_here: None) -> None:
    import keras

    layers = [build_keras_3(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(7)]
    assert load_file(save(keras.Sequential(layers), tmp_path / "model.keras")).dimension == 7


# Weights


@pytest.fixture
def small_application(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Replace ResNet50 of keras.applications by the small network, with a classifier at its end if asked."""
    import keras

    def build(include_top: bool = True, weights: None = None) -> Any:
        maps = build_keras_3(name="resnet50")
        for layer in maps.layers:
            layer.set_weights([np.zeros_like(value) for value in layer.get_weights()])
        if not include_top:
            return maps
        pooled = keras.layers.GlobalAveragePooling2D()(maps.output)
        return keras.Model(maps.input, keras.layers.Dense(3, "softmax")(pooled), name="resnet50")

    monkeypatch.setattr(keras.applications, "ResNet50", build)
    return build


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, with NumPy 2
@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("form", ["layers.h5", "objects.weights.h5"])
def test_weights_are_loaded_into_the_named_network(
    form: str, top: bool, tmp_path: Path, convert_here: None, small_application: Callable[..., Any]
) -> None:
    file = tmp_path / form
    model = small_application(include_top=top)
    for layer, arrays in WEIGHTS.items():
        model.get_layer(layer).set_weights(list(arrays.values()))
    if form == "objects.weights.h5":
        model.save_weights(str(file))
    else:
        arrays = {
            layer.name: {weight.name: weight.numpy() for weight in layer.weights} for layer in model.layers
        }
        with h5py.File(file, "w") as opened:
            write_layers(opened, arrays)
    lines: list[str] = []
    loaded = load_file(file, lines, keras_application="ResNet50")
    pixels = draw_pixels()
    expected = compute_features(pixels[..., ::-1] * 255 - np.float32([103.939, 116.779, 123.68]))
    np.testing.assert_allclose(loaded.apply(pixels), expected, rtol=1e-4, atol=1e-4)
    assert ("classifier of 3 labels" in lines[1]) == top
    assert "is ResNet50 of keras.applications" in lines[-1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"conv": {"kernel": np.zeros((1, 1, 3, 4))}}, "has 1 arrays of weights; ResNet50 has 7, and 9 with"),
        (
            WEIGHTS | {"depthwise": {"depthwise_kernel": np.zeros((1, 1, 4, 2), np.float32)}},
            "do not fit ResNet50: .*shape",
        ),
    ],
)
def test_weights_of_another_network_are_an_error(
    arrays: dict[str, dict[str, Any]],
    message: str,
    tmp_path: Path,
    convert_here: None,
    small_application: Callable[..., Any],
) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as opened:
        write_layers(opened, arrays)
    with pytest.raises(InputError, match=f"other.h5 {message}.*Check --keras_application"):
        load_file(tmp_path / "other.h5", keras_application="resnet50")


def test_weights_of_the_old_resnet50_are_loaded_by_the_names_of_its_layers(tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(include_top=False, weights=None)
    chance = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([chance.uniform(0.5, 1, value.shape) for value in layer.get_weights()])
    file = tmp_path / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    arrays = write_old_resnet(file, model)
    contents = read_contents(file)
    assert weights.is_old_resnet(contents)
    application = applications.require_application("resnet50")
    built = weights.build_network(keras, application, contents, file, str(file))
    for name, expected in arrays.items():
        layer = built.get_layer(weights.rename_old_layer(name))
        for value, one in zip(layer.get_weights(), expected.values(), strict=True):
            np.testing.assert_array_equal(value, one)
        assert getattr(layer, "epsilon", weights.OLD_EPSILON) == weights.OLD_EPSILON


# Errors


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("gray", "takes N x 16 x 12 x 1; expected photos"),
        ("channels_first", r"takes N x 3 x 16 x 12 \(channels_first; expected channels_last\)"),
        ("sequence", "returns N x 192 x 4; expected feature vectors"),
        ("two", "has 2 inputs and 1 outputs"),
        ("no_input", "has no input shape"),
    ],
)
def test_models_that_are_no_backbone_are_errors(
    model: str, message: str, tmp_path: Path, convert_here: None
) -> None:
    import keras

    layers = keras.layers
    first, second = keras.Input((HEIGHT, WIDTH, 3)), keras.Input((HEIGHT, WIDTH, 3))
    built = {
        "gray": lambda: keras.Sequential([keras.Input((HEIGHT, WIDTH, 1)), layers.Conv2D(2, 1)]),
        "channels_first": lambda: keras.Sequential([keras.Input((3, HEIGHT, WIDTH)), layers.Flatten()]),
        "sequence": lambda: keras.Sequential([build_keras_3(), layers.Reshape((-1, CHANNELS))]),
        "two": lambda: keras.Model([first, second], layers.Add()([first, second])),
        "no_input": lambda: keras.Sequential([layers.Rescaling(1.0)]),
    }[model]()
    file = save(built, tmp_path / "model.keras")
    with pytest.raises(InputError, match=f"The model in {file} {message}"):
        load_file(file)


def test_options_that_contradict_a_file_are_errors(tmp_path: Path, convert_here: None) -> None:
    file = save(build_keras_3(name="resnet50"), tmp_path / "model.keras")
    with pytest.raises(InputError, match="is ResNet50 by its name, not VGG16"):
        load_file(file, keras_application="vgg16")
    with pytest.raises(InputError, match="only accepts photos of 16 x 12"):
        load_file(file, image_size=(32, 32))
    with pytest.raises(InputError, match="name tensors of a frozen graph"):
        load_file(file, input_tensor="Mul:0", output_tensor="pool_3:0")
    module = small_module(tmp_path / "module")
    with pytest.raises(InputError, match=r"names the network of a Keras file; .*module is none"):
        load_file(Path(module), keras_application="resnet50")
    with pytest.raises(InputError, match=r"gs://photos/model\.h5 is not on this machine"):
        load("gs://photos/model.h5", tmp_path)


def test_weights_without_the_name_of_their_network_are_an_error(tmp_path: Path, convert_here: None) -> None:
    file = tmp_path / "densenet121_notop.h5"
    with h5py.File(file, "w") as opened:
        write_layers(opened, WEIGHTS)
    with pytest.raises(
        InputError, match=r"weights without an architecture.*maybe --keras_application densenet121"
    ):
        load_file(file)


def test_a_lambda_is_rejected(tmp_path: Path, convert_here: None) -> None:
    import keras

    layers = [keras.Input((4, 4, 3)), keras.layers.Lambda(lambda pixels: pixels)]
    for name in ("model.keras", "model.h5"):
        file = save(keras.Sequential(layers), tmp_path / name)
        with pytest.raises(InputError, match=r"contains the class Lambda.*can run code from the file"):
            load_file(file)


def test_a_file_that_keras_rejects_is_an_error_in_one_line(tmp_path: Path) -> None:
    changed = make_keras_2_config(conv={"config": {"name": "conv", "filters": "many"}})
    file = write_keras_2(tmp_path / "model.h5", changed)
    arguments = ["show", str(file), "--cache_dir", str(tmp_path / "cache")]
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, InputError)
    assert re.fullmatch(
        rf"Keras 2\.[\d.]+ cannot load {file}: .*model\.export\(DIRECTORY\).*", str(result.exception)
    )


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", "the process was ended by SIGABRT"),
        ("raise MemoryError('no memory.')", r"MemoryError: no memory\. The file may be damaged"),
        ("raise SystemExit(3)", "the process ended with exit code 3"),
    ],
)
def test_a_process_that_dies_of_a_file_is_an_error(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_CODE", code)
    with pytest.raises(InputError, match=f"cannot be converted: {message}"):
        load_file(write_keras_2(tmp_path / "model.h5"))


def test_settings_of_the_user_for_keras_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, home = save(build_keras_3(), tmp_path / "model.keras"), tmp_path / "home"
    home.mkdir()
    (home / "keras.json").write_text('{"image_data_format": "channels_first", "backend": "jax"}')
    monkeypatch.setenv("KERAS_HOME", str(home))
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keras.py").write_text("raise SystemExit('this is not Keras')")
    pixels = draw_pixels()
    loaded = load_file(Path(file.name))
    np.testing.assert_allclose(loaded.apply(pixels), compute_features(pixels), rtol=1e-4, atol=1e-5)


def test_facts_are_those_of_the_file(tmp_path: Path) -> None:
    file = save(make_classifier("softmax"), tmp_path / "model.keras")
    (tmp_path / "out").mkdir()
    facts = convert(file, tmp_path / "out", "resnet50")
    assert facts == Facts("ResNet50", "caffe", False, True, facts.layer, 2)
    assert facts.layer.startswith("global_average_pooling2d")

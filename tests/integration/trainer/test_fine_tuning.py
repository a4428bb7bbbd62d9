"""Fine-tuning: it learns, it repeats itself, it can be stopped anywhere, and what comes out is a backbone."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.errors import InputError, OutputError
from trainer import preprocessing
from trainer.backbones import DEFAULT, Backbone, InputOptions, load
from trainer.dataset.download import cache_directory
from trainer.heads import Floats, Head, Ints, fit, log_loss
from trainer.preprocessing import Aspect, Augmentation, Preprocessing
from trainer.training import fine_tuning as module
from trainer.training.fine_tuning import (
    Epoch,
    FineTuned,
    FineTuneSettings,
    fine_tune,
    schedule,
    trained_variables,
)

pytestmark = pytest.mark.tf

SIZE = 16
SETTINGS = FineTuneSettings(
    epochs=4,
    batch_size=8,
    learning_rate=0.001,
    head_learning_rate=0.3,
    depth=1.0,
    augmentation=Augmentation(),
)


def tiny_backbone(directory: Path, *, trainable: bool = True, size: int | None = SIZE) -> str:
    """Save a feature vector as those of TF2 Hub: two convolutions, a batch norm, a mean."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    root = tf.train.Checkpoint()

    def variable(name: str, value: NDArray[Any], *, trained: bool = True) -> Any:
        return tf.Variable(value.astype(np.float32), name=name, trainable=trained and trainable)

    first = variable("first", random.normal(size=(3, 3, 3, 6)) / 3)
    scale = variable("scale", np.ones(6))
    mean = variable("mean", np.full(6, 0.1), trained=False)
    second = variable("second", random.normal(size=(3, 3, 6, 8)) / 5)

    @tf.function(autograph=False)
    def call(inputs: Any, training: bool = False) -> Any:
        x = tf.nn.conv2d(inputs, first, 2, "SAME")
        if training:
            mean.assign(tf.reduce_mean(x, [0, 1, 2]))
        x = tf.nn.relu((x - mean) * scale)
        return tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, second, 2, "SAME")), [1, 2])

    for training in (False, True):
        call.get_concrete_function(tf.TensorSpec([None, size, size, 3], name="inputs"), training=training)
    root.__call__ = call
    root.variables = [first, scale, mean, second]
    root.trainable_variables = [first, scale, second] if trainable else []
    root.regularization_losses = []
    tf.saved_model.save(root, str(directory))
    return str(directory)


def photos(count: int, *, seed: int = 0, side: int = 20, contrast: int = 60) -> tuple[list[bytes], Ints]:
    """PNGs of stripes that lie, stand or are none: three classes, hard to tell by their mean."""
    from PIL import Image

    random = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    encoded = []
    for target in targets:
        pixels = random.integers(0, 120, (side, side, 3))
        wave = contrast * (np.arange(side) // 2 % 2)
        pixels += [wave[:, None, None], wave[None, :, None], np.full((1, 1, 1), contrast // 2)][target]
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
        encoded.append(stream.getvalue())
    return encoded, targets.astype(np.int64)


def embed(backbone: Backbone, contents: list[bytes]) -> Floats:
    import tensorflow as tf

    height, width = backbone.image_size
    pixels = preprocessing.decode_photos(tf.constant(contents), Preprocessing(height=height, width=width))[0]
    return np.asarray(backbone.apply(tf.cast(pixels, tf.float32) / 255.0))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="module")
def backbone(path: str, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load(path, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def training() -> tuple[list[bytes], Ints]:
    return photos(48)


@pytest.fixture(scope="module")
def held() -> tuple[list[bytes], Ints]:
    return photos(24, seed=1)


@pytest.fixture(scope="module")
def head(backbone: Backbone, training: tuple[list[bytes], Ints]) -> Head:
    """An unsure one, so that there is something to learn."""
    fitted, _ = fit(embed(backbone, training[0]), training[1], 3)
    return replace(fitted, temperature=20 * fitted.temperature)


Run = Callable[..., FineTuned]


@pytest.fixture(scope="module")
def run(backbone: Backbone, head: Head, training: tuple[list[bytes], Ints]) -> Run:
    def call(directory: Path, settings: FineTuneSettings = SETTINGS, **options: Any) -> FineTuned:
        return fine_tune(backbone, head, *training, settings, checkpoint_directory=directory, **options)

    return call


@pytest.fixture(scope="module")
def undisturbed(run: Run, held: Any, tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    return run(tmp_path_factory.mktemp("undisturbed"), validation=held)


def weights(path: Path) -> dict[str, NDArray[Any]]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names if "OBJECT_GRAPH" not in name}


def assert_same_weights(first: FineTuned, second: FineTuned) -> None:
    values, others = weights(first.path), weights(second.path)
    assert values.keys() == others.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value, others[name])


def without_times(epochs: tuple[Epoch, ...]) -> list[Epoch]:
    return [replace(epoch, seconds=0.0) for epoch in epochs]


# What it does


def test_the_loss_falls_on_photos_trained_on_and_on_others(undisturbed: FineTuned) -> None:
    losses = [epoch.loss for epoch in undisturbed.epochs]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    assert undisturbed.before is not None
    assert undisturbed.after is not None
    assert undisturbed.after < undisturbed.before


def test_the_result_is_a_backbone_that_gives_the_tuned_features(
    undisturbed: FineTuned, backbone: Backbone, held: tuple[list[bytes], Ints], tmp_path: Path
) -> None:
    tuned = load(str(undisturbed.path), tmp_path, options=undisturbed.options)
    assert tuned.fingerprint != backbone.fingerprint
    assert (tuned.image_size, tuned.dimension) == (backbone.image_size, backbone.dimension)
    features = embed(tuned, held[0])
    assert not np.allclose(features, embed(backbone, held[0]), atol=1e-3)
    # Computed here from the weights in its checkpoint.
    import tensorflow as tf

    first, scale, mean, second = (variable.numpy() for variable in tuned.module.variables)
    size = Preprocessing(height=SIZE, width=SIZE)
    pixels = tf.cast(preprocessing.decode_photos(tf.constant(held[0]), size)[0], tf.float32) / 255.0
    x = tf.nn.relu((tf.nn.conv2d(pixels, first, 2, "SAME") - mean) * scale)
    expected = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, second, 2, "SAME")), [1, 2])
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    record = json.loads((undisturbed.path / module.RECORD).read_text())
    assert record["backbone"] == backbone.fingerprint
    assert len(record["epochs"]) == 4


def test_a_head_fitted_on_the_tuned_features_is_better(
    undisturbed: FineTuned,
    backbone: Backbone,
    training: tuple[list[bytes], Ints],
    held: tuple[list[bytes], Ints],
    tmp_path: Path,
) -> None:
    def loss(network: Backbone) -> float:
        model, _ = fit(embed(network, training[0]), training[1], 3)
        return log_loss(model.probabilities(embed(network, held[0])), held[1])

    assert loss(load(str(undisturbed.path), tmp_path, options=undisturbed.options)) < loss(backbone)


def test_the_tuned_backbone_can_be_tuned_again(
    undisturbed: FineTuned, training: tuple[list[bytes], Ints], tmp_path: Path
) -> None:
    tuned = load(str(undisturbed.path), tmp_path, options=undisturbed.options)
    model, _ = fit(embed(tuned, training[0]), training[1], 3)
    once = replace(SETTINGS, epochs=1)
    again = fine_tune(tuned, model, *training, once, checkpoint_directory=tmp_path / "run")
    assert load(str(again.path), tmp_path).fingerprint not in (tuned.fingerprint, "")


def test_the_backbone_given_stays_as_it_was(
    undisturbed: FineTuned, backbone: Backbone, path: str, tmp_path: Path
) -> None:
    for variable, fresh in zip(backbone.module.variables, load(path, tmp_path).module.variables, strict=True):
        np.testing.assert_array_equal(variable, fresh)


def test_statistics_stay_and_only_the_last_variables_move(
    run: Run, backbone: Backbone, tmp_path: Path
) -> None:
    tuned = load(str(run(tmp_path, replace(SETTINGS, depth=0.4, epochs=1)).path), tmp_path)
    moved = [
        bool((tuned_one.numpy() != given.numpy()).any())
        for tuned_one, given in zip(tuned.module.variables, backbone.module.variables, strict=True)
    ]
    assert moved == [False, False, False, True]


def test_keep_is_the_share_of_the_pretrained_weights(run: Run, backbone: Backbone, tmp_path: Path) -> None:
    def second(keep: float) -> NDArray[Any]:
        tuned = run(tmp_path, replace(SETTINGS, keep=keep, epochs=1))
        return np.asarray(load(str(tuned.path), tmp_path).module.variables[-1])

    given = np.asarray(backbone.module.variables[-1])
    np.testing.assert_allclose(second(0.75), 0.75 * given + 0.25 * second(0.0), atol=1e-6)


def test_the_last_epoch_is_taken_without_validation_and_the_best_one_with(
    run: Run, tmp_path: Path, training: tuple[list[bytes], Ints]
) -> None:
    blind = run(tmp_path / "blind")
    assert (blind.best, blind.before, blind.after) == (4, None, None)
    # Labels turned round: the more is learned, the worse.
    wrong = (training[0], (training[1] + 1) % 3)
    stopped = run(tmp_path / "wrong", replace(SETTINGS, epochs=9, patience=2), validation=wrong)
    assert (stopped.best, len(stopped.epochs)) == (1, 3)


# Again, and after a stop


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    run: Run, undisturbed: FineTuned, held: Any, tmp_path: Path
) -> None:
    again = run(tmp_path, validation=held)
    assert_same_weights(again, undisturbed)
    assert without_times(again.epochs) == without_times(undisturbed.epochs)
    other = run(tmp_path, replace(SETTINGS, seed=1), validation=held)
    assert other.epochs[-1].loss != undisturbed.epochs[-1].loss


class Stop:
    """Progress that is interrupted after some epochs."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, epoch: Epoch) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 3])
def test_stopped_and_run_again_gives_what_an_undisturbed_run_gives(
    run: Run, undisturbed: FineTuned, held: Any, tmp_path: Path, after: int
) -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validation=held, progress=Stop(after), say=said.append)
    assert said[-1].startswith(f"Stopped in epoch {after + 1} of 4; what came before is kept in {tmp_path}")
    assert said[-1].endswith("The same command goes on from there.")
    seen: list[Epoch] = []
    resumed = run(tmp_path, validation=held, progress=seen.append, say=said.append)
    assert f"Fine-tuning goes on after epoch {after}, from" in said[-1]
    assert [epoch.number for epoch in seen] == list(range(after + 1, 5))
    assert_same_weights(resumed, undisturbed)
    assert without_times(resumed.epochs) == without_times(undisturbed.epochs)
    assert resumed.before == undisturbed.before


def test_a_stop_in_the_middle_of_an_epoch_loses_that_epoch_alone(
    run: Run,
    backbone: Backbone,
    undisturbed: FineTuned,
    held: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = preprocessing.random_views, itertools.count(1)

    def views(*arguments: Any) -> Any:
        if next(calls) == 9:  # six batches an epoch
            raise KeyboardInterrupt
        return original(*arguments)

    before = [variable.numpy() for variable in backbone.module.variables]
    monkeypatch.setattr(preprocessing, "random_views", views)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validation=held)
    monkeypatch.setattr(preprocessing, "random_views", original)
    for variable, value in zip(backbone.module.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert [path.name for path in tmp_path.glob("*/*")] == ["epoch-00001"]
    assert_same_weights(run(tmp_path, validation=held), undisturbed)


def test_a_stop_before_the_first_epoch_ends_says_that_nothing_is_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def views(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    said: list[str] = []
    monkeypatch.setattr(preprocessing, "random_views", views)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, say=said.append)
    assert "nothing is kept yet" in said[-1]


def test_a_checkpoint_that_cannot_be_written_whole_leaves_the_one_before(
    run: Run, undisturbed: FineTuned, held: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module._Tuner.write

    def write(tuner: Any, directory: Path) -> None:
        original(tuner, directory)
        if len(tuner.epochs) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module._Tuner, "write", write)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validation=held)
    monkeypatch.setattr(module._Tuner, "write", original)
    assert [path.name for path in tmp_path.glob("*/*")] == ["epoch-00001"]
    assert_same_weights(run(tmp_path, validation=held), undisturbed)


def test_a_finished_run_is_not_done_again_and_leaves_no_checkpoint(run: Run, tmp_path: Path) -> None:
    once = replace(SETTINGS, epochs=1)
    first = run(tmp_path, once)

    def never(epoch: Epoch) -> None:
        raise AssertionError

    assert run(tmp_path, once, progress=never) == first
    assert [path.name for path in first.path.parent.iterdir()] == ["backbone"]


def test_other_photos_or_settings_do_not_go_on_from_a_checkpoint(
    run: Run, backbone: Backbone, head: Head, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=Stop(1))
    said: list[str] = []
    run(tmp_path, replace(SETTINGS, learning_rate=0.01, epochs=1), say=said.append)
    few = replace(SETTINGS, epochs=1)
    fine_tune(backbone, head, *photos(30), few, checkpoint_directory=tmp_path, say=said.append)
    assert said == []
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_checkpoint_is_an_error_with_its_remedy(run: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=Stop(1))
    (checkpoint,) = tmp_path.glob("*/epoch-*")
    for file in checkpoint.glob("variables.*"):
        file.write_bytes(b"torn")
    with pytest.raises(OutputError, match=r"cannot be read.*Remove that directory"):
        run(tmp_path)


# What is refused


def test_a_backbone_without_trainable_variables_is_refused(
    head: Head, training: tuple[list[bytes], Ints], tmp_path: Path
) -> None:
    frozen = load(tiny_backbone(tmp_path / "frozen", trainable=False), tmp_path)
    with pytest.raises(InputError, match=r"no trainable variables.*without fine-tuning"):
        fine_tune(frozen, head, *training, SETTINGS, checkpoint_directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_photos_of_a_label_are_refused(backbone: Backbone, head: Head, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs 5 training photos of each label; label number 2 has 4"):
        fine_tune(backbone, head, *photos(14), SETTINGS, checkpoint_directory=tmp_path)


def test_what_is_no_photo_is_refused(
    backbone: Backbone, head: Head, training: tuple[list[bytes], Ints], tmp_path: Path
) -> None:
    contents = [*training[0][:20], b"a text", *training[0][21:]]
    with pytest.raises(InputError, match="Photo number 20 cannot be decoded"):
        fine_tune(backbone, head, contents, training[1], SETTINGS, checkpoint_directory=tmp_path)
    with pytest.raises(InputError, match="47 photos were given, and the labels of 48"):
        fine_tune(backbone, head, training[0][:-1], training[1], SETTINGS, checkpoint_directory=tmp_path)


def test_a_learning_rate_that_is_too_high_is_an_error(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"diverged in epoch 1.*below 1e\+30"):
        run(tmp_path, replace(SETTINGS, learning_rate=1e30))


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"patience": 0},
        {"learning_rate": 0.0},
        {"head_learning_rate": float("nan")},
        {"depth": 0.0},
        {"depth": 1.1},
        {"keep": 1.0},
        {"warm_up": -0.1},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        FineTuneSettings(**values)


# Parts


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [schedule(step / 100, 0.1) for step in range(101)]
    assert 0 < rates[0] < 0.02
    assert max(rates) == rates[10] == 1.0
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0)
    assert schedule(0, 0) == 1.0


def test_large_photos_are_kept_reduced_for_training_and_others_as_they_are(tmp_path: Path) -> None:
    from PIL import Image

    (small,), _ = photos(1)
    (large,), _ = photos(1, side=200)
    size = Preprocessing(height=SIZE, width=SIZE)
    kept = module._read(iter([small, large]), np.array([0, 0]), size)
    assert kept.contents[0] == small
    with Image.open(io.BytesIO(kept.contents[1])) as image:
        assert (image.format, image.size) == ("JPEG", (24, 24))
    cropped = module._read([small, large], np.array([0, 0]), replace(size, aspect=Aspect.CROP))
    assert cropped.contents == [small, large]
    assert cropped.sha256 == kept.sha256


def test_an_open_input_size_is_handed_on(training: tuple[list[bytes], Ints], tmp_path: Path) -> None:
    stated = InputOptions(image_size=(12, 20), value_range=(-1.0, 1.0))
    given = load(tiny_backbone(tmp_path / "open", size=None), tmp_path, options=stated)
    model, _ = fit(embed(given, training[0]), training[1], 3)
    once = replace(SETTINGS, epochs=1)
    tuned = fine_tune(given, model, *training, once, checkpoint_directory=tmp_path / "run")
    assert tuned.options == stated
    assert load(str(tuned.path), tmp_path, options=tuned.options).image_size == (12, 20)


# The default backbone


@pytest.mark.slow
def test_the_default_is_tuned_and_a_stop_changes_nothing(tmp_path: Path) -> None:
    from tests.bench.accuracy import labelled
    from trainer.dataset.samples import fetch_sample_photos

    given = load(DEFAULT, cache_directory())
    contents, targets = labelled(fetch_sample_photos(cache_directory()).directory)
    chosen = np.concatenate([np.flatnonzero(targets == label)[:6] for label in (0, 2, 4)])
    contents, targets = [contents[row] for row in chosen], np.repeat(np.arange(3), 6)
    model, _ = fit(embed(given, contents), targets, 3)
    settings = FineTuneSettings(epochs=2, batch_size=9, augmentation=Augmentation())

    def run(name: str, **options: Any) -> FineTuned:
        return fine_tune(
            given, model, contents, targets, settings, checkpoint_directory=tmp_path / name, **options
        )

    whole = run("whole")
    assert whole.epochs[1].loss < whole.epochs[0].loss
    with pytest.raises(KeyboardInterrupt):
        run("stopped", progress=Stop(1))
    resumed = run("stopped")
    for (name, value), other in zip(weights(whole.path).items(), weights(resumed.path).values(), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-6, err_msg=name)
    tuned = load(str(whole.path), tmp_path)
    assert tuned.fingerprint != given.fingerprint
    assert np.abs(embed(tuned, contents) - embed(given, contents)).max() > 1e-3
    trained = trained_variables(given, settings.depth)
    assert (len(trained), trained[-1].name) == (49, "bn1/bias:0")

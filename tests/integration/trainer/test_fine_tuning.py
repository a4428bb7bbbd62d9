"""Fine-tuning: the loss falls, runs are deterministic and resumable, and the result is a backbone."""

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
from trainer.backbones import DEFAULT, InputOptions
from trainer.backbones.hub import Backbone, load
from trainer.dataset.download import cache_directory
from trainer.heads import Floats, Head, Ints, fit, log_loss
from trainer.preprocessing import Aspect, Augmentation, Preprocessing, random_views
from trainer.training import tuner
from trainer.training.fine_tune_types import Epoch, FineTuned, FineTuneSettings
from trainer.training.fine_tuning import fine_tune, trained_variables
from trainer.training.tuner import RECORD, Tuner, schedule
from trainer.training.tuning_photos import LabelledPhotos, TuningPhotos, prepare_photos

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
    """Save a feature-vector module like those of TF2 Hub: two convolutions, batch normalisation, a mean."""
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
    """Return PNGs with horizontal, vertical or no stripes: three classes that differ little in their mean."""
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
    """Return the embeddings of encoded photos."""
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
    """A head with a high temperature, so that there is something to learn."""
    fitted, _ = fit(embed(backbone, training[0]), training[1], 3)
    return replace(fitted, temperature=20 * fitted.temperature)


def tuning_photos(training: tuple[list[bytes], Ints], validation: Any = None) -> TuningPhotos:
    """Return training and validation photos, given as encoded photos and classes."""
    return TuningPhotos(LabelledPhotos(*training), LabelledPhotos(*validation) if validation else None)


Run = Callable[..., FineTuned]


@pytest.fixture(scope="module")
def run(backbone: Backbone, head: Head, training: tuple[list[bytes], Ints]) -> Run:
    def call(
        directory: Path, settings: FineTuneSettings = SETTINGS, validation: Any = None, **options: Any
    ) -> FineTuned:
        given = tuning_photos(training, validation)
        return fine_tune(backbone, head, given, settings, checkpoint_directory=directory, **options)

    return call


@pytest.fixture(scope="module")
def uninterrupted(run: Run, held: Any, tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    """The result of a run that is not interrupted."""
    return run(tmp_path_factory.mktemp("uninterrupted"), validation=held)


def weights(path: Path) -> dict[str, NDArray[Any]]:
    """Return the variables of a SavedModel by name."""
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


# --- Result ---------------------------------------------------------------------------------------------


def test_loss_falls_on_training_and_validation_photos(uninterrupted: FineTuned) -> None:
    losses = [epoch.loss for epoch in uninterrupted.epochs]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    assert uninterrupted.before is not None
    assert uninterrupted.after is not None
    assert uninterrupted.after < uninterrupted.before


def test_result_is_a_backbone_with_the_tuned_features(
    uninterrupted: FineTuned, backbone: Backbone, held: tuple[list[bytes], Ints], tmp_path: Path
) -> None:
    tuned = load(str(uninterrupted.path), tmp_path, options=uninterrupted.options)
    assert tuned.fingerprint != backbone.fingerprint
    assert (tuned.image_size, tuned.dimension) == (backbone.image_size, backbone.dimension)
    features = embed(tuned, held[0])
    assert not np.allclose(features, embed(backbone, held[0]), atol=1e-3)
    # The expected features are computed from the weights in its checkpoint.
    import tensorflow as tf

    first, scale, mean, second = (variable.numpy() for variable in tuned.module.variables)
    size = Preprocessing(height=SIZE, width=SIZE)
    pixels = tf.cast(preprocessing.decode_photos(tf.constant(held[0]), size)[0], tf.float32) / 255.0
    x = tf.nn.relu((tf.nn.conv2d(pixels, first, 2, "SAME") - mean) * scale)
    expected = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, second, 2, "SAME")), [1, 2])
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    record = json.loads((uninterrupted.path / RECORD).read_text())
    assert record["backbone"] == backbone.fingerprint
    assert len(record["epochs"]) == 4


def test_head_fitted_on_tuned_features_has_lower_log_loss(
    uninterrupted: FineTuned,
    backbone: Backbone,
    training: tuple[list[bytes], Ints],
    held: tuple[list[bytes], Ints],
    tmp_path: Path,
) -> None:
    def loss(network: Backbone) -> float:
        model, _ = fit(embed(network, training[0]), training[1], 3)
        return log_loss(model.probabilities(embed(network, held[0])), held[1])

    assert loss(load(str(uninterrupted.path), tmp_path, options=uninterrupted.options)) < loss(backbone)


def test_tuned_backbone_can_be_tuned_again(
    uninterrupted: FineTuned, training: tuple[list[bytes], Ints], tmp_path: Path
) -> None:
    tuned = load(str(uninterrupted.path), tmp_path, options=uninterrupted.options)
    model, _ = fit(embed(tuned, training[0]), training[1], 3)
    once = replace(SETTINGS, epochs=1)
    again = fine_tune(tuned, model, tuning_photos(training), once, checkpoint_directory=tmp_path / "run")
    assert load(str(again.path), tmp_path).fingerprint not in (tuned.fingerprint, "")


def test_given_backbone_is_unchanged(
    uninterrupted: FineTuned, backbone: Backbone, path: str, tmp_path: Path
) -> None:
    for variable, fresh in zip(backbone.module.variables, load(path, tmp_path).module.variables, strict=True):
        np.testing.assert_array_equal(variable, fresh)


def test_batch_norm_statistics_stay_and_only_the_last_variables_change(
    run: Run, backbone: Backbone, tmp_path: Path
) -> None:
    tuned = load(str(run(tmp_path, replace(SETTINGS, depth=0.4, epochs=1)).path), tmp_path)
    changed = [
        bool((tuned_one.numpy() != given.numpy()).any())
        for tuned_one, given in zip(tuned.module.variables, backbone.module.variables, strict=True)
    ]
    assert changed == [False, False, False, True]


def test_keep_is_the_weight_of_the_pretrained_variables(run: Run, backbone: Backbone, tmp_path: Path) -> None:
    def second(keep: float) -> NDArray[Any]:
        tuned = run(tmp_path, replace(SETTINGS, keep=keep, epochs=1))
        return np.asarray(load(str(tuned.path), tmp_path).module.variables[-1])

    given = np.asarray(backbone.module.variables[-1])
    np.testing.assert_allclose(second(0.75), 0.75 * given + 0.25 * second(0.0), atol=1e-6)


def test_last_epoch_is_taken_without_validation_photos_and_the_best_one_with_them(
    run: Run, tmp_path: Path, training: tuple[list[bytes], Ints]
) -> None:
    blind = run(tmp_path / "blind")
    assert (blind.best, blind.before, blind.after) == (4, None, None)
    # With wrong labels, validation gets worse with each epoch.
    wrong = (training[0], (training[1] + 1) % 3)
    stopped = run(tmp_path / "wrong", replace(SETTINGS, epochs=9, patience=2), validation=wrong)
    assert (stopped.best, len(stopped.epochs)) == (1, 3)


# --- Determinism and resuming ---------------------------------------------------------------------------


def test_same_seed_gives_the_same_weights_and_another_seed_does_not(
    run: Run, uninterrupted: FineTuned, held: Any, tmp_path: Path
) -> None:
    again = run(tmp_path, validation=held)
    assert_same_weights(again, uninterrupted)
    assert without_times(again.epochs) == without_times(uninterrupted.epochs)
    other = run(tmp_path, replace(SETTINGS, seed=1), validation=held)
    assert other.epochs[-1].loss != uninterrupted.epochs[-1].loss


class Interrupt:
    """Progress callback that raises KeyboardInterrupt after some epochs."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, epoch: Epoch) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_and_resumed_run_gives_the_weights_of_an_uninterrupted_run(
    run: Run, uninterrupted: FineTuned, held: Any, tmp_path: Path, after: int
) -> None:
    messages: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validation=held, progress=Interrupt(after), say=messages.append)
    assert messages[-1].startswith(
        f"Stopped in epoch {after + 1} of 4; earlier epochs are kept in {tmp_path}"
    )
    assert messages[-1].endswith("Run the same command again to resume.")
    seen: list[Epoch] = []
    resumed = run(tmp_path, validation=held, progress=seen.append, say=messages.append)
    assert f"Fine-tuning resumes after epoch {after}, from" in messages[-1]
    assert [epoch.number for epoch in seen] == list(range(after + 1, 5))
    assert_same_weights(resumed, uninterrupted)
    assert without_times(resumed.epochs) == without_times(uninterrupted.epochs)
    assert resumed.before == uninterrupted.before


def test_interrupt_within_an_epoch_loses_only_that_epoch(
    run: Run,
    backbone: Backbone,
    uninterrupted: FineTuned,
    held: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = random_views, itertools.count(1)

    def views(*arguments: Any) -> Any:
        if next(calls) == 9:  # six batches an epoch
            raise KeyboardInterrupt
        return original(*arguments)

    before = [variable.numpy() for variable in backbone.module.variables]
    monkeypatch.setattr(tuner, "random_views", views)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validation=held)
    monkeypatch.setattr(tuner, "random_views", original)
    for variable, value in zip(backbone.module.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert [path.name for path in tmp_path.glob("*/*")] == ["epoch-00001"]
    assert_same_weights(run(tmp_path, validation=held), uninterrupted)


def test_interrupt_in_the_first_epoch_reports_that_no_epoch_is_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def views(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    messages: list[str] = []
    monkeypatch.setattr(tuner, "random_views", views)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, say=messages.append)
    assert "no epoch is kept yet" in messages[-1]


def test_interrupted_checkpoint_write_leaves_the_previous_checkpoint(
    run: Run, uninterrupted: FineTuned, held: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Tuner.write

    def write(self: Any, directory: Path) -> None:
        original(self, directory)
        if len(self.epochs) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Tuner, "write", write)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validation=held)
    monkeypatch.setattr(Tuner, "write", original)
    assert [path.name for path in tmp_path.glob("*/*")] == ["epoch-00001"]
    assert_same_weights(run(tmp_path, validation=held), uninterrupted)


def test_finished_run_is_not_repeated_and_leaves_no_checkpoint(run: Run, tmp_path: Path) -> None:
    once = replace(SETTINGS, epochs=1)
    first = run(tmp_path, once)

    def never(epoch: Epoch) -> None:
        raise AssertionError

    assert run(tmp_path, once, progress=never) == first
    assert [path.name for path in first.path.parent.iterdir()] == ["backbone"]


def test_other_photos_or_settings_do_not_resume_from_a_checkpoint(
    run: Run, backbone: Backbone, head: Head, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=Interrupt(1))
    messages: list[str] = []
    run(tmp_path, replace(SETTINGS, learning_rate=0.01, epochs=1), say=messages.append)
    few = replace(SETTINGS, epochs=1)
    fine_tune(
        backbone, head, tuning_photos(photos(30)), few, checkpoint_directory=tmp_path, say=messages.append
    )
    assert messages == []
    assert len(list(tmp_path.iterdir())) == 3


def test_damaged_checkpoint_is_an_error_with_a_remedy(run: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=Interrupt(1))
    (checkpoint,) = tmp_path.glob("*/epoch-*")
    for file in checkpoint.glob("variables.*"):
        file.write_bytes(b"torn")
    with pytest.raises(OutputError, match=r"cannot be read.*Remove that directory"):
        run(tmp_path)


# --- Rejected input -------------------------------------------------------------------------------------


def test_backbone_without_trainable_variables_is_rejected(
    head: Head, training: tuple[list[bytes], Ints], tmp_path: Path
) -> None:
    frozen = load(tiny_backbone(tmp_path / "frozen", trainable=False), tmp_path)
    with pytest.raises(InputError, match=r"no trainable variables.*without fine-tuning"):
        fine_tune(frozen, head, tuning_photos(training), SETTINGS, checkpoint_directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_photos_of_a_label_are_rejected(backbone: Backbone, head: Head, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs 5 training photos of each label; label number 2 has 4"):
        fine_tune(backbone, head, tuning_photos(photos(14)), SETTINGS, checkpoint_directory=tmp_path)


def test_undecodable_photos_and_missing_photos_are_rejected(
    backbone: Backbone, head: Head, training: tuple[list[bytes], Ints], tmp_path: Path
) -> None:
    contents = [*training[0][:20], b"a text", *training[0][21:]]
    with pytest.raises(InputError, match="Photo number 20 cannot be decoded"):
        fine_tune(
            backbone,
            head,
            tuning_photos((contents, training[1])),
            SETTINGS,
            checkpoint_directory=tmp_path,
        )
    with pytest.raises(InputError, match="47 photos were given, but the labels of 48"):
        fine_tune(
            backbone,
            head,
            tuning_photos((training[0][:-1], training[1])),
            SETTINGS,
            checkpoint_directory=tmp_path,
        )


def test_diverging_learning_rate_is_an_error(run: Run, tmp_path: Path) -> None:
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
def test_settings_out_of_range_are_rejected(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        FineTuneSettings(**values)


# --- Schedule and photos --------------------------------------------------------------------------------


def test_learning_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    rates = [schedule(step / 100, 0.1) for step in range(101)]
    assert 0 < rates[0] < 0.02
    assert max(rates) == rates[10] == 1.0
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0)
    assert schedule(0, 0) == 1.0


def test_large_photos_are_reduced_for_training_and_small_ones_are_not(tmp_path: Path) -> None:
    from PIL import Image

    (small,), _ = photos(1)
    (large,), _ = photos(1, side=200)
    size = Preprocessing(height=SIZE, width=SIZE)
    targets = np.array([0, 0])
    kept = prepare_photos(LabelledPhotos(iter([small, large]), targets), size)
    assert kept.contents[0] == small
    with Image.open(io.BytesIO(kept.contents[1])) as image:
        assert (image.format, image.size) == ("JPEG", (24, 24))
    cropped = prepare_photos(LabelledPhotos([small, large], targets), replace(size, aspect=Aspect.CROP))
    assert cropped.contents == [small, large]
    assert cropped.sha256 == kept.sha256


def test_stated_input_size_and_value_range_are_kept(
    training: tuple[list[bytes], Ints], tmp_path: Path
) -> None:
    stated = InputOptions(image_size=(12, 20), value_range=(-1.0, 1.0))
    given = load(tiny_backbone(tmp_path / "open", size=None), tmp_path, options=stated)
    model, _ = fit(embed(given, training[0]), training[1], 3)
    once = replace(SETTINGS, epochs=1)
    tuned = fine_tune(given, model, tuning_photos(training), once, checkpoint_directory=tmp_path / "run")
    assert tuned.options == stated
    assert load(str(tuned.path), tmp_path, options=tuned.options).image_size == (12, 20)


# --- Default backbone -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_default_backbone_is_tuned(tmp_path: Path) -> None:
    from tests.bench.accuracy import read_labelled_photos
    from trainer.dataset.samples import fetch_sample_photos

    given = load(DEFAULT, cache_directory())
    contents, targets = read_labelled_photos(fetch_sample_photos(cache_directory()).directory)
    chosen = np.concatenate([np.flatnonzero(targets == label)[:6] for label in (0, 2, 4)])
    contents, targets = [contents[row] for row in chosen], np.repeat(np.arange(3), 6)
    model, _ = fit(embed(given, contents), targets, 3)
    settings = FineTuneSettings(epochs=2, batch_size=9, augmentation=Augmentation())

    found = fine_tune(
        given, model, tuning_photos((contents, targets)), settings, checkpoint_directory=tmp_path / "run"
    )
    assert found.epochs[1].loss < found.epochs[0].loss
    tuned = load(str(found.path), tmp_path)
    assert tuned.fingerprint != given.fingerprint
    assert np.abs(embed(tuned, contents) - embed(given, contents)).max() > 1e-3
    trained = trained_variables(given, settings.depth)
    assert (len(trained), trained[-1].name) == (49, "bn1/bias:0")

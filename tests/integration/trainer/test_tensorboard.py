"""TensorBoard logs: the tags of retrain.py with the right values, and the files of the projector."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.errors import OutputError
from tests.support.trainer_report import make_record
from trainer import heads
from trainer.dataset import Example, Subset
from trainer.evaluation import metrics
from trainer.evaluation.training_record import FittedHead, TrainingData
from trainer.training import projector, tensorboard

pytestmark = pytest.mark.tf

LABELS = ("blue sky", "rouge grenat 赤", "a\tb")
ROUND = (Subset.TRAINING, Subset.TRAINING, Subset.TRAINING, Subset.VALIDATION, Subset.TESTING)


@dataclass(frozen=True)
class Run:
    """Data of a training that is logged."""

    data: TrainingData
    fitted: FittedHead

    def write(self, directory: Path, test: metrics.Evaluation | None) -> Path:
        """Write the logs, and return the directory of the run."""
        return tensorboard.write(directory, self.data, replace(self.fitted, test=test))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    top = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    targets = np.repeat(np.arange(3), 30)
    embeddings = (np.eye(3, 16)[targets] + random.normal(0, 0.5, (90, 16))).astype(np.float16)
    examples = []
    for number, target in enumerate(targets.tolist()):
        path = top / f"{number}.png"
        Image.new("RGB", (20, 10), (2 * number, 90 * target, 0)).save(path)
        examples.append(Example(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), target))
    subsets = tuple(ROUND[number % len(ROUND)] for number in range(90))
    features = embeddings.astype(np.float32)
    seen = np.flatnonzero([subset is not Subset.TESTING for subset in subsets])
    fitted, selection = heads.fit(features[seen], targets[seen], 3)
    record = make_record(examples, subsets, LABELS, fitted, selection, fitted.probabilities(features))
    data = replace(record.data, features=replace(record.data.features, embeddings=features))
    return Run(data, record.fitted)


def read_events(directory: Path) -> dict[str, dict[int, Any]]:
    """Return the value or histogram of each tag at each step."""
    import tensorflow as tf

    (file,) = directory.glob("*tfevents*")
    found: dict[str, dict[int, Any]] = {}
    versions = []
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        versions.append(event.file_version)
        for value in event.summary.value:
            steps = found.setdefault(value.tag, {})
            assert event.step not in steps
            steps[event.step] = (
                tf.make_ndarray(value.tensor) if value.HasField("tensor") else value.simple_value
            )
    assert versions[0] == "brain.Event:2"
    return found


def read_files(directory: Path) -> dict[str, bytes]:
    """Return the content of all files below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_event_files_have_the_tags_of_retrain_with_values_for_each_candidate(
    run: Run, tmp_path: Path
) -> None:
    assert run.write(tmp_path / "logs", run.fitted.test) == tmp_path / "logs"
    train, validation = read_events(tmp_path / "logs/train"), read_events(tmp_path / "logs/validation")
    variables = {
        f"{variable}/summaries/{figure}"
        for variable in ("weights", "biases")
        for figure in ("mean", "stddev", "max", "min", "histogram")
    }
    evaluated = {"accuracy_1", "cross_entropy_1", "activations", "Wx_plus_b/pre_activations"}
    assert set(train) == evaluated | variables
    assert evaluated | {"selection/cross_entropy"} <= set(validation)
    for steps in (*train.values(), *(validation[tag] for tag in evaluated)):
        assert list(steps) == sorted(run.fitted.selection.losses)
    assert validation["selection/cross_entropy"] == pytest.approx(run.fitted.selection.losses)

    training, held = run.data.rows(Subset.TRAINING), run.data.rows(Subset.VALIDATION)
    candidates = tensorboard.fit_candidates(
        run.data.embeddings, run.data.targets, training, held, run.fitted.selection
    )
    for strength, candidate in candidates.items():
        for rows, found in ((training, train), (held, validation)):
            expected = metrics.evaluate(
                candidate.probabilities(run.data.embeddings[rows]), run.data.targets[rows], LABELS
            )
            assert found["accuracy_1"][strength] == pytest.approx(expected.accuracy.value)
            assert found["cross_entropy_1"][strength] == pytest.approx(expected.log_loss, abs=1e-5)
        assert train["weights/summaries/mean"][strength] == pytest.approx(candidate.kernel.mean(), abs=1e-6)
        assert train["biases/summaries/max"][strength] == pytest.approx(candidate.bias.max(), abs=1e-6)
        histogram = train["weights/summaries/histogram"][strength]
        left, right, count = histogram.T
        assert count.sum() == 16 * 3
        np.testing.assert_allclose(left[1:], right[:-1])
        assert right[-1] == pytest.approx(candidate.kernel.max(), rel=1e-5)


def test_candidates_have_the_log_loss_of_the_selection_by_validation_photos(run: Run) -> None:
    training, held = run.data.rows(Subset.TRAINING), run.data.rows(Subset.VALIDATION)
    _, selection = heads.fit(
        run.data.embeddings[training],
        run.data.targets[training],
        3,
        validation=(np.tile(run.data.embeddings[held], (30, 1)), np.tile(run.data.targets[held], 30)),
    )
    assert selection.method == "validation"
    candidates = tensorboard.fit_candidates(run.data.embeddings, run.data.targets, training, held, selection)
    for (strength, loss), candidate in zip(selection.losses.items(), candidates.values(), strict=True):
        loss_again = heads.log_loss(
            candidate.probabilities(run.data.embeddings[held]), run.data.targets[held]
        )
        assert loss_again == pytest.approx(loss, abs=2e-4), strength


@pytest.mark.parametrize(
    ("strengths", "steps"), [((30.0, 3.0, 10.0), [3, 10, 30]), ((0.1, 0.3, 1.0), [0, 1, 2])]
)
def test_each_candidate_has_a_distinct_step(run: Run, strengths: tuple[float, ...], steps: list[int]) -> None:
    found = tensorboard.number_steps(replace(run.fitted.selection, losses=dict.fromkeys(strengths, 1.0)))
    assert found == dict(zip(sorted(strengths), steps, strict=True))


def test_metrics_of_each_label_are_logged_unless_nan(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path, run.fitted.test)
    step = tensorboard.number_steps(run.fitted.selection)[run.fitted.selection.strength]
    for name, evaluation in (("validation", run.fitted.held_out), ("test", run.fitted.test)):
        found = read_events(tmp_path / name)
        for label in LABELS:
            for figure in ("recall", "precision", "f1"):
                value = getattr(evaluation, figure)[label].value
                tag = f"labels/{label}/{figure}"
                assert math.isnan(value) != (tag in found)
                if tag in found:
                    assert found[tag] == {step: pytest.approx(value)}


@pytest.mark.parametrize("why", ["kind", "class_weight", "many"])
def test_head_without_refitted_candidates_has_a_single_step(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "many":
        monkeypatch.setattr(heads, "LARGE_DATASET", 50)
    other = {"kind": {"kind": "hidden"}, "class_weight": {"class_weight": "balanced"}, "many": {}}[why]
    monkeypatch.setattr(projector, "POINTS", 40)
    settings = run.fitted.selection.settings | other
    changed = replace(
        run, fitted=replace(run.fitted, selection=replace(run.fitted.selection, settings=settings))
    )
    changed.write(tmp_path, run.fitted.test)
    train, validation = read_events(tmp_path / "train"), read_events(tmp_path / "validation")
    step = tensorboard.number_steps(run.fitted.selection)[run.fitted.selection.strength]
    assert all(list(steps) == [step] for steps in train.values())
    assert train["activations"][step][:, 2].sum() == 40 * 3
    assert train["weights/summaries/mean"][step] == pytest.approx(run.fitted.head.kernel.mean(), abs=1e-6)
    assert validation["accuracy_1"] == {step: pytest.approx(run.fitted.held_out.accuracy.value)}
    assert validation["selection/cross_entropy"] == pytest.approx(run.fitted.selection.losses)


def test_new_run_does_not_change_existing_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "events.out.tfevents.1.mine").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_text("mine")
    before = read_files(tmp_path)
    assert run.write(tmp_path, run.fitted.test) == tmp_path / "run-2"
    between = read_files(tmp_path)
    assert before.items() <= between.items()
    assert run.write(tmp_path, None) == tmp_path / "run-3"
    assert between.items() <= read_files(tmp_path).items()
    assert not (tmp_path / "run-3/test").exists()


def test_projector_files_agree_with_each_other(run: Run, tmp_path: Path) -> None:
    directory = run.write(tmp_path, run.fitted.test) / "train"
    config = (directory / "projector_config.pbtxt").read_text()
    for name in ("embeddings.tsv", "metadata.tsv", "sprite.png"):
        assert f'"{name}"' in config
    vectors = np.loadtxt(directory / "embeddings.tsv", delimiter="\t")
    np.testing.assert_array_equal(vectors.astype(np.float16), run.data.embeddings.astype(np.float16))
    header, *lines = (directory / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "label\tset\tpath"
    names = [label.replace("\t", " ") for label in LABELS]
    assert [tuple(line.split("\t")) for line in lines] == [
        (names[example.label], str(subset), example.uri)
        for example, subset in zip(run.data.examples, run.data.subsets, strict=True)
    ]
    with Image.open(directory / "sprite.png") as sheet:
        columns, side = 10, projector.SPRITE_SIDE
        assert sheet.size == (columns * side, columns * side)
        for number in (0, 9, 10, 47, 89):
            middle = (number % columns * side + side // 2, number // columns * side + side // 2)
            colour = (2 * number, 90 * int(run.data.targets[number]), 0)
            assert sheet.getpixel(middle) == pytest.approx(colour, abs=4)  # JPEG


def test_projector_samples_many_photos_and_omits_thumbnails(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "POINTS", 40)
    monkeypatch.setattr(projector, "MAX_SPRITES", 39)
    projector.write_projector(tmp_path, run.data)
    vectors = np.loadtxt(tmp_path / "embeddings.tsv", delimiter="\t")
    shown = [line.split("\t")[2] for line in (tmp_path / "metadata.tsv").read_text().splitlines()[1:]]
    assert len(vectors) == len(set(shown)) == 40
    row_of = {example.uri: row for row, example in enumerate(run.data.examples)}
    np.testing.assert_allclose(vectors, run.data.embeddings[[row_of[uri] for uri in shown]], rtol=1e-4)
    assert "sprite" not in (tmp_path / "projector_config.pbtxt").read_text()
    assert not (tmp_path / "sprite.png").exists()


def test_directory_that_cannot_be_written_is_an_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OutputError, match=r"logs.*cannot be written|cannot be written to .*logs"):
        run.write(tmp_path / "logs", None)

"""What TensorBoard is given: the tags of retrain.py with the right values, and a projector that agrees."""

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
from trainer import heads as head
from trainer.dataset import Example, Subset
from trainer.evaluation import metrics
from trainer.heads import Floats, Ints
from trainer.training import tensorboard

pytestmark = pytest.mark.tf

LABELS = ("blue sky", "rouge grenat 赤", "a\tb")
ROUND = (Subset.TRAINING, Subset.TRAINING, Subset.TRAINING, Subset.VALIDATION, Subset.TESTING)


@dataclass(frozen=True)
class Run:
    """What a training knows when it writes its summaries."""

    embeddings: Floats
    targets: Ints
    examples: tuple[Example, ...]
    subsets: tuple[Subset, ...]
    fitted: head.Head
    selection: head.Selection
    held_out: metrics.Evaluation
    test: metrics.Evaluation

    def rows(self, subset: Subset) -> Ints:
        return np.flatnonzero([found is subset for found in self.subsets])

    def write(self, directory: Path, test: metrics.Evaluation | None) -> Path:
        return tensorboard.write(
            directory,
            self.embeddings,
            self.examples,
            self.subsets,
            LABELS,
            fitted=self.fitted,
            selection=self.selection,
            held_out=self.held_out,
            test=test,
        )


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
    fitted, selection = head.fit(features[seen], targets[seen], 3)
    tested = np.flatnonzero([subset is Subset.TESTING for subset in subsets])
    return Run(
        features,
        targets,
        tuple(examples),
        subsets,
        fitted,
        selection,
        metrics.evaluate(selection.probabilities, selection.targets, LABELS),
        metrics.evaluate(fitted.probabilities(features[tested]), targets[tested], LABELS),
    )


def events(directory: Path) -> dict[str, dict[int, Any]]:
    """Tag -> step -> value or histogram."""
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
            steps[event.step] = value.histo if value.HasField("histo") else value.simple_value
    assert versions[0] == "brain.Event:2"
    return found


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_a_run_has_the_tags_of_retrain_with_the_values_of_each_candidate(run: Run, tmp_path: Path) -> None:
    assert run.write(tmp_path / "logs", run.test) == tmp_path / "logs"
    train, validation = events(tmp_path / "logs/train"), events(tmp_path / "logs/validation")
    variables = {
        f"{variable}/summaries/{figure}"
        for variable in ("weights", "biases")
        for figure in ("mean", "stddev", "max", "min", "histogram")
    }
    judged = {"accuracy_1", "cross_entropy_1", "activations", "Wx_plus_b/pre_activations"}
    assert set(train) == judged | variables
    assert judged | {"selection/cross_entropy"} <= set(validation)
    for steps in (*train.values(), *(validation[tag] for tag in judged)):
        assert list(steps) == sorted(run.selection.losses)
    assert validation["selection/cross_entropy"] == pytest.approx(run.selection.losses)

    training, held = run.rows(Subset.TRAINING), run.rows(Subset.VALIDATION)
    heads = tensorboard.candidates(run.embeddings, run.targets, training, held, run.selection)
    for strength, candidate in heads.items():
        for rows, found in ((training, train), (held, validation)):
            told = metrics.evaluate(candidate.probabilities(run.embeddings[rows]), run.targets[rows], LABELS)
            assert found["accuracy_1"][strength] == pytest.approx(told.accuracy.value)
            assert found["cross_entropy_1"][strength] == pytest.approx(told.log_loss, abs=1e-5)
        assert train["weights/summaries/mean"][strength] == pytest.approx(candidate.kernel.mean(), abs=1e-6)
        assert train["biases/summaries/max"][strength] == pytest.approx(candidate.bias.max(), abs=1e-6)
        histogram = train["weights/summaries/histogram"][strength]
        assert histogram.num == sum(histogram.bucket) == 16 * 3
        assert list(histogram.bucket_limit) == sorted(histogram.bucket_limit)
        assert histogram.bucket_limit[-1] == pytest.approx(histogram.max)


def test_a_candidate_is_the_head_that_is_chosen_where_there_are_validation_photos_enough(run: Run) -> None:
    training, held = run.rows(Subset.TRAINING), run.rows(Subset.VALIDATION)
    _, selection = head.fit(
        run.embeddings[training],
        run.targets[training],
        3,
        validation=(np.tile(run.embeddings[held], (30, 1)), np.tile(run.targets[held], 30)),
    )
    assert selection.method == "validation"
    heads = tensorboard.candidates(run.embeddings, run.targets, training, held, selection)
    for (strength, loss), candidate in zip(selection.losses.items(), heads.values(), strict=True):
        told = head.log_loss(candidate.probabilities(run.embeddings[held]), run.targets[held])
        assert told == pytest.approx(loss, abs=2e-4), strength


@pytest.mark.parametrize(
    ("strengths", "steps"), [((30.0, 3.0, 10.0), [3, 10, 30]), ((0.1, 0.3, 1.0), [0, 1, 2])]
)
def test_each_candidate_has_a_step_of_its_own(
    run: Run, strengths: tuple[float, ...], steps: list[int]
) -> None:
    found = tensorboard.steps_of(replace(run.selection, losses=dict.fromkeys(strengths, 1.0)))
    assert found == dict(zip(sorted(strengths), steps, strict=True))


def test_figures_of_each_label_are_told_and_unknown_ones_are_not(run: Run, tmp_path: Path) -> None:
    run.write(tmp_path, run.test)
    step = tensorboard.steps_of(run.selection)[run.selection.strength]
    for name, told in (("validation", run.held_out), ("test", run.test)):
        found = events(tmp_path / name)
        for label in LABELS:
            for figure in ("recall", "precision", "f1"):
                value = getattr(told, figure)[label].value
                tag = f"labels/{label}/{figure}"
                assert math.isnan(value) != (tag in found)
                if tag in found:
                    assert found[tag] == {step: pytest.approx(value)}


@pytest.mark.parametrize("why", ["kind", "class_weight", "many"])
def test_a_head_that_is_not_tried_again_has_one_step_its_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "many":
        monkeypatch.setattr(head, "MANY", 50)
    other = {"kind": {"kind": "cosine"}, "class_weight": {"class_weight": "balanced"}, "many": {}}[why]
    monkeypatch.setattr(tensorboard, "POINTS", 40)
    settings = run.selection.settings | other
    told = replace(run, selection=replace(run.selection, settings=settings))
    told.write(tmp_path, run.test)
    train, validation = events(tmp_path / "train"), events(tmp_path / "validation")
    step = tensorboard.steps_of(run.selection)[run.selection.strength]
    assert all(list(steps) == [step] for steps in train.values())
    assert train["activations"][step].num == 40 * 3
    assert train["weights/summaries/mean"][step] == pytest.approx(run.fitted.kernel.mean(), abs=1e-6)
    assert validation["accuracy_1"] == {step: pytest.approx(run.held_out.accuracy.value)}
    assert validation["selection/cross_entropy"] == pytest.approx(run.selection.losses)


def test_a_new_run_touches_nothing_that_was_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "events.out.tfevents.1.mine").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    assert run.write(tmp_path, run.test) == tmp_path / "run-2"
    between = contents(tmp_path)
    assert before.items() <= between.items()
    assert run.write(tmp_path, None) == tmp_path / "run-3"
    assert between.items() <= contents(tmp_path).items()
    assert not (tmp_path / "run-3/test").exists()
    assert not list(tmp_path.rglob(".staged"))


def test_the_projectors_files_agree_with_each_other(run: Run, tmp_path: Path) -> None:
    directory = run.write(tmp_path, run.test) / "train"
    told = (directory / "projector_config.pbtxt").read_text()
    for name in ("embeddings.tsv", "metadata.tsv", "sprite.png"):
        assert f'"{name}"' in told
    vectors = np.loadtxt(directory / "embeddings.tsv", delimiter="\t")
    np.testing.assert_array_equal(vectors.astype(np.float16), run.embeddings.astype(np.float16))
    header, *lines = (directory / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "label\tset\tpath"
    names = [label.replace("\t", " ") for label in LABELS]
    assert [tuple(line.split("\t")) for line in lines] == [
        (names[example.label], str(subset), example.uri)
        for example, subset in zip(run.examples, run.subsets, strict=True)
    ]
    with Image.open(directory / "sprite.png") as sheet:
        across, side = 10, tensorboard.SPRITE_SIDE
        assert sheet.size == (across * side, across * side)
        for number in (0, 9, 10, 47, 89):
            middle = (number % across * side + side // 2, number // across * side + side // 2)
            colour = (2 * number, 90 * int(run.targets[number]), 0)
            assert sheet.getpixel(middle) == pytest.approx(colour, abs=4)  # JPEG


def test_of_many_photos_the_projector_shows_some_and_no_pictures(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard, "POINTS", 40)
    monkeypatch.setattr(tensorboard, "SPRITES", 39)
    tensorboard.write_projector(tmp_path, run.embeddings, run.examples, run.subsets, LABELS)
    vectors = np.loadtxt(tmp_path / "embeddings.tsv", delimiter="\t")
    shown = [line.split("\t")[2] for line in (tmp_path / "metadata.tsv").read_text().splitlines()[1:]]
    assert len(vectors) == len(set(shown)) == 40
    row_of = {example.uri: row for row, example in enumerate(run.examples)}
    np.testing.assert_allclose(vectors, run.embeddings[[row_of[uri] for uri in shown]], rtol=1e-4)
    assert "sprite" not in (tmp_path / "projector_config.pbtxt").read_text()
    assert not (tmp_path / "sprite.png").exists()


def test_a_place_that_cannot_be_written_is_said(run: Run, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OutputError, match=r"logs.*cannot be written|cannot be written to .*logs"):
        run.write(tmp_path / "logs", None)

"""TensorBoard logs of a training: event files with the tags of retrain.py, and the embedding projector.

retrain.py wrote one point per gradient step. The head of hubhead is an exact minimum; what is searched is
C, the inverse regularisation strength. A step is therefore a candidate for C, its number is the value of
C, and its weights are those of a head fitted with it on the training photos alone:

- `train/` and `validation/`: `accuracy_1`, `cross_entropy_1`, and the histograms `activations`
  (probabilities) and `Wx_plus_b/pre_activations` (logits);
- `train/`: `weights/summaries/{mean,stddev,max,min,histogram}` and `biases/summaries/...`;
- `validation/`: `selection/cross_entropy`, the held-out log-loss that C was chosen by, and at the chosen
  C `labels/<label>/{recall,precision,f1}` of the held-out photos;
- `test/`, at the chosen C: `accuracy_1`, `cross_entropy_1` and `labels/...` of the exported head.

Candidates are not fitted again where that would take long: for a head of another kind than "linear",
balanced labels, or trainer.heads.LARGE_DATASET photos and more. There is then one step, that of the
exported head, with the metrics of a sample of the training photos under `train/` and of the held-out
photos under `validation/`. `test/` exists if there are test photos. The projector's files are in
`train/`, where TensorBoard looks for them.

Existing logs are never removed. The first run is written where retrain.py wrote it; the next ones are
written to `run-2/`, `run-3/` and so on, which TensorBoard shows as further runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import OutputError
from trainer import heads
from trainer.dataset import Subset
from trainer.evaluation.metrics import Evaluation
from trainer.evaluation.training_record import FittedHead, TrainingData
from trainer.heads import Floats, Head, Ints, Scaling, Selection, Vectors, log_loss
from trainer.heads.calibration import combine_linears, fit_mixture
from trainer.heads.fitter import EXACT_TOLERANCE, Fitter
from trainer.heads.selection import compute_logits
from trainer.training.projector import sample_rows, write_projector

DIRECTORIES = {Subset.TRAINING: "train", Subset.VALIDATION: "validation", Subset.TESTING: "test"}


def write(directory: Path, data: TrainingData, fitted: FittedHead) -> Path:
    """Write the logs of one run to `directory`, or to a sub-directory if it contains a run already.

    Args:
        directory: directory of the logs, created if missing.
        data: the photos.
        fitted: the exported head and its evaluation.

    Returns:
        The directory of this run.

    Raises:
        OutputError: the directory cannot be written.
    """
    try:
        run = _create_run_directory(directory)
        _write_steps(run, data, fitted)
        if test := fitted.test:
            with _open_events(run / DIRECTORIES[Subset.TESTING]) as events:
                step = number_steps(fitted.selection)[fitted.selection.strength]
                scalars = {"accuracy_1": test.accuracy.value, "cross_entropy_1": test.log_loss}
                events.add(step, scalars | _collect_label_scalars(test))
        write_projector(run / DIRECTORIES[Subset.TRAINING], data)
    except OSError as error:
        raise OutputError(
            f"The summaries cannot be written to {directory}: {error.strerror or error}.",
            remedy="Choose a writable directory on a disk with free space.",
        ) from error
    return run


def _create_run_directory(directory: Path) -> Path:
    """Create and return a directory with a new `train/`, so that no other run writes to it."""
    number = 1
    while True:
        run = directory if number == 1 else directory / f"run-{number}"
        taken = any((run / name).exists() for name in DIRECTORIES.values())
        try:
            if not taken:
                (run / DIRECTORIES[Subset.TRAINING]).mkdir(parents=True)
                return run
        except FileExistsError:
            # Another process created it first: try the next number. A file in its place is an error.
            if not (run / DIRECTORIES[Subset.TRAINING]).is_dir():
                raise
        number += 1


# --- Candidates -------------------------------------------------------------------------------------------


def _can_refit_candidates(data: TrainingData, selection: Selection) -> bool:
    """Return whether a head is fitted again for each candidate, which takes a moment only."""
    plain = {"kind": "linear", "class_weight": "none"}.items() <= selection.settings.items()
    return plain and len(data.rows(Subset.TRAINING, Subset.VALIDATION)) < heads.LARGE_DATASET


def _write_steps(run: Path, data: TrainingData, fitted: FittedHead) -> None:
    """Write a step for each candidate of C with a head of its own, or a single one for the exported head."""
    embeddings, targets = data.embeddings, data.targets
    head, selection, held_out = fitted.head, fitted.selection, fitted.held_out
    shown, held = data.rows(Subset.TRAINING), data.rows(Subset.VALIDATION)
    steps = number_steps(selection)
    with (
        _open_events(run / DIRECTORIES[Subset.TRAINING]) as train_events,
        _open_events(run / DIRECTORIES[Subset.VALIDATION]) as validation_events,
    ):
        if _can_refit_candidates(data, selection):
            calibration = held if len(held) else shown
            candidates = fit_candidates(embeddings, targets, shown, calibration, selection)
            for strength, candidate in candidates.items() if len(held) else ():
                evaluated = _evaluate_head(candidate, embeddings[held], targets[held])
                validation_events.add(steps[strength], *evaluated)
        else:
            candidates, shown = {selection.strength: head}, sample_rows(shown)
            scalars = {"accuracy_1": held_out.accuracy.value, "cross_entropy_1": held_out.log_loss}
            histograms = {"activations": selection.probabilities}
            validation_events.add(steps[selection.strength], scalars, histograms)
        for strength, candidate in candidates.items():
            train_events.add(steps[strength], *_evaluate_head(candidate, embeddings[shown], targets[shown]))
            for name, values in (("weights", candidate.kernel), ("biases", candidate.bias)):
                train_events.add(steps[strength], *_summarize_variable(name, values))
        _add_selection(validation_events, selection, held_out)


def _add_selection(events: _EventFile, selection: Selection, held_out: Evaluation) -> None:
    """Add the log-loss of each candidate, and the metrics by label at the chosen one."""
    steps = number_steps(selection)
    for strength, loss in sorted(selection.losses.items()):
        events.add(steps[strength], {"selection/cross_entropy": loss})
    events.add(steps[selection.strength], _collect_label_scalars(held_out))


def number_steps(selection: Selection) -> dict[float, int]:
    """Return the step of each candidate: its rounded value, or its rank where these are not distinct."""
    strengths = sorted(selection.losses)
    values = [round(strength) for strength in strengths]
    steps = values if len(set(values)) == len(values) else range(len(values))
    return dict(zip(strengths, steps, strict=True))


def fit_candidates(
    embeddings: Vectors, targets: Ints, training: Ints, calibration: Ints, selection: Selection
) -> dict[float, Head]:
    """Fit the linear head of trainer.heads for each candidate of C.

    Args:
        embeddings: float32 or float16 [N,D].
        targets: int64 [N], classes.
        training: int64 [n], rows to fit on.
        calibration: int64 [m], rows to fit the temperature on.
        selection: the candidates.
    """
    weights = np.ones(selection.probabilities.shape[1], np.float32)
    scaling = Scaling.from_embeddings(np.asarray(embeddings[training], np.float32))
    features, held = scaling.features(embeddings[training]), scaling.features(embeddings[calibration])
    candidates = {}
    with heads.single_blas_thread():
        fitter = Fitter.from_array(features, targets[training], weights, tolerance=EXACT_TOLERANCE)
        for strength in sorted(selection.losses):
            linears = fitter.fit(strength)
            mixture = fit_mixture(compute_logits(linears, held), targets[calibration])
            linear = combine_linears(mixture.weights, linears)
            candidates[strength] = Head(scaling, *linear, mixture.temperature)
    return candidates


def _evaluate_head(
    candidate: Head, embeddings: Vectors, targets: Ints
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """Return the scalars and histograms of a head on some photos."""
    probabilities = candidate.probabilities(embeddings)
    logits = candidate.logits(embeddings) * np.float32(candidate.temperature)
    return (
        {
            "accuracy_1": float((probabilities.argmax(axis=1) == targets).mean()),
            "cross_entropy_1": log_loss(probabilities, targets),
        },
        {"activations": probabilities, "Wx_plus_b/pre_activations": logits},
    )


def _summarize_variable(name: str, values: Floats) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    """Return the scalars and the histogram of a variable of the head."""
    scalars = {"mean": values.mean(), "stddev": values.std(), "max": values.max(), "min": values.min()}
    return (
        {f"{name}/summaries/{statistic}": float(value) for statistic, value in scalars.items()},
        {f"{name}/summaries/histogram": values},
    )


def _collect_label_scalars(evaluation: Evaluation) -> dict[str, float]:
    """Return recall, precision and F1 of each label by tag."""
    return {
        f"labels/{label}/{name}": getattr(evaluation, name)[label].value
        for name in ("recall", "precision", "f1")
        for label in evaluation.labels
    }


# --- Event files ------------------------------------------------------------------------------------------


class _EventFile:
    """An event file of TensorBoard.

    Args:
        directory: directory of the file, created if missing.
    """

    def __init__(self, directory: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(directory))

    def add(
        self, step: int, scalars: Mapping[str, float], histograms: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        """Add scalars and histograms at a step; scalars that are NaN are left out."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.histogram.summary_v2 import histogram_pb

        event = Event(wall_time=time.time(), step=step)
        for tag, value in scalars.items():
            if not math.isnan(value):
                event.summary.value.add(tag=tag, simple_value=value)
        for tag, values in (histograms or {}).items():
            event.summary.MergeFrom(histogram_pb(tag, values.astype(np.float64)))
        self._writer.add_event(event)

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


def _open_events(directory: Path) -> closing[_EventFile]:
    """Open a new event file, which is complete when the block is left."""
    return closing(_EventFile(directory))

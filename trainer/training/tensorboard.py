"""What TensorBoard shows of a training: event files with the tags of retrain.py, and the embedding projector.

retrain.py wrote a point a gradient step. The head here is an exact minimum, and what is tried out is
C, the strength of its regularisation. So a step is a candidate for C, its number the value of C, and
its weights are those of a head fitted with it on the training photos alone:

- `train/` and `validation/`: `accuracy_1`, `cross_entropy_1`, and the histograms `activations`
  (probabilities) and `Wx_plus_b/pre_activations` (logits);
- `train/`: `weights/summaries/{mean,stddev,max,min,histogram}` and `biases/summaries/...`;
- `validation/`: `selection/cross_entropy`, the held-out log-loss that C was chosen by, and at the C
  taken `labels/<label>/{recall,precision,f1}` of the held-out photos;
- `test/`, at the C taken: `accuracy_1`, `cross_entropy_1` and `labels/...` of the exported head.

Where candidates cannot be fitted again in a moment (a head of another kind than "linear", balanced
labels, or trainer.heads.MANY photos and more) there is one step, that of the exported head, with figures
of POINTS training photos at most under `train/` and the held-out ones under `validation/`.
`test/` is there where photos are held out for it. The projector's files are in `train/`, where
TensorBoard looks for them.

Nothing is ever removed. The first run lies where retrain.py put it; where there is one already, the
next lies in `run-2/`, then `run-3/`, which TensorBoard shows beside it.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import OutputError
from serving.photos.thumbnails import make_thumbnails
from trainer.dataset import Example, Subset
from trainer.evaluation.metrics import Evaluation
from trainer.heads import (
    MANY,
    Floats,
    Head,
    Ints,
    Scaling,
    Selection,
    Vectors,
    discriminate,
    fit_temperature,
    log_loss,
    minimise,
)

DIRECTORIES = {Subset.TRAINING: "train", Subset.VALIDATION: "validation", Subset.TESTING: "test"}

POINTS = 5000
"""Photos in the projector; of more, as many are drawn. Each takes some 9 KB with 1,280 dimensions."""

SPRITES = 1500
"""Photos up to which the projector shows small pictures, for which each is decoded once more."""

SPRITE_SIDE = 48

_BUCKETS = 30


def write(
    directory: Path,
    embeddings: Vectors,
    examples: Sequence[Example],
    subsets: Sequence[Subset],
    labels: Sequence[str],
    *,
    fitted: Head,
    selection: Selection,
    held_out: Evaluation,
    test: Evaluation | None,
) -> Path:
    """Write one run, and return its directory: `directory`, or one in it where it holds a run already.

    Args:
        directory: of the summaries; made where it is missing.
        embeddings: float32 or float16 [N,D], in memory or mapped from a file.
        examples: N distinct photos.
        subsets: N, their sets.
        labels: K.
        fitted: the head.
        selection: how its settings were chosen.
        held_out: on the photos that they were chosen by.
        test: on the test photos, None where there are none.

    Raises:
        OutputError: the directory cannot be written.
    """
    targets = np.array([example.label for example in examples], np.int64)
    rows = {subset: np.flatnonzero([found is subset for found in subsets]) for subset in Subset}
    try:
        run = _claim(directory)
        if _tried_again(selection, rows):
            _write_steps(run, embeddings, targets, rows, selection, held_out)
        else:
            _write_step(run, embeddings, targets, rows[Subset.TRAINING], fitted, selection, held_out)
        if test:
            with _events(run / DIRECTORIES[Subset.TESTING]) as events:
                step = steps_of(selection)[selection.strength]
                figures = {"accuracy_1": test.accuracy.value, "cross_entropy_1": test.log_loss}
                events.add(step, figures | _label_figures(test))
        write_projector(run / DIRECTORIES[Subset.TRAINING], embeddings, examples, subsets, labels)
    except OSError as error:
        raise OutputError(
            f"The summaries cannot be written to {directory}: {error.strerror or error}.",
            remedy="Choose a directory you may write to, with room left.",
        ) from error
    return run


def _claim(directory: Path) -> Path:
    """A directory whose `train/` is new, so that no other run has written there."""
    number = 1
    while True:
        run = directory if number == 1 else directory / f"run-{number}"
        taken = any((run / name).exists() for name in DIRECTORIES.values())
        try:
            if not taken:
                (run / DIRECTORIES[Subset.TRAINING]).mkdir(parents=True)
                return run
        except FileExistsError:
            # Another run was quicker. A file in the directory's place is nobody's run.
            if not (run / DIRECTORIES[Subset.TRAINING]).is_dir():
                raise
        number += 1


# --- Candidates -------------------------------------------------------------------------------------------


def _tried_again(selection: Selection, rows: Mapping[Subset, Ints]) -> bool:
    """Whether a head is fitted for each candidate."""
    plain = {"kind": "linear", "class_weight": "none"}.items() <= selection.settings.items()
    return plain and len(rows[Subset.TRAINING]) + len(rows[Subset.VALIDATION]) < MANY


def _write_step(
    run: Path,
    embeddings: Vectors,
    targets: Ints,
    training: Ints,
    fitted: Head,
    selection: Selection,
    held_out: Evaluation,
) -> None:
    """The one step of a head that is not tried again."""
    shown = _drawn(training)
    step = steps_of(selection)[selection.strength]
    with _events(run / DIRECTORIES[Subset.TRAINING]) as events:
        events.add(step, *_judged(fitted, embeddings[shown], targets[shown]))
        for name, values in (("weights", fitted.kernel), ("biases", fitted.bias)):
            events.add(step, *_variable(name, values))
    with _events(run / DIRECTORIES[Subset.VALIDATION]) as events:
        figures = {"accuracy_1": held_out.accuracy.value, "cross_entropy_1": held_out.log_loss}
        events.add(step, figures, {"activations": selection.probabilities})
        _add_selection(events, selection, held_out)


def _write_steps(
    run: Path,
    embeddings: Vectors,
    targets: Ints,
    rows: Mapping[Subset, Ints],
    selection: Selection,
    held_out: Evaluation,
) -> None:
    training, validation = rows[Subset.TRAINING], rows[Subset.VALIDATION]
    steps = steps_of(selection)
    with (
        _events(run / DIRECTORIES[Subset.TRAINING]) as train_events,
        _events(run / DIRECTORIES[Subset.VALIDATION]) as validation_events,
    ):
        judging = validation if len(validation) else training
        heads = candidates(embeddings, targets, training, judging, selection)
        for strength, candidate in heads.items():
            step = steps[strength]
            train_events.add(step, *_judged(candidate, embeddings[training], targets[training]))
            if len(validation):
                validation_events.add(step, *_judged(candidate, embeddings[validation], targets[validation]))
        for strength, candidate in heads.items():
            for name, values in (("weights", candidate.kernel), ("biases", candidate.bias)):
                train_events.add(steps[strength], *_variable(name, values))
        _add_selection(validation_events, selection, held_out)


def _add_selection(events: _Events, selection: Selection, held_out: Evaluation) -> None:
    steps = steps_of(selection)
    for strength, loss in sorted(selection.losses.items()):
        events.add(steps[strength], {"selection/cross_entropy": loss})
    events.add(steps[selection.strength], _label_figures(held_out))


def _drawn(rows: Ints) -> Ints:
    """At most POINTS of these rows."""
    if len(rows) <= POINTS:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, POINTS, replace=False))


def steps_of(selection: Selection) -> dict[float, int]:
    """The step of each candidate: its value, or its place where values below 1 would fall together."""
    strengths = sorted(selection.losses)
    values = [round(strength) for strength in strengths]
    steps = values if len(set(values)) == len(values) else range(len(values))
    return dict(zip(strengths, steps, strict=True))


def candidates(
    embeddings: Vectors, targets: Ints, training: Ints, judging: Ints, selection: Selection
) -> dict[float, Head]:
    """For each C the linear head that trainer.heads makes of the training photos, calibrated by `judging`."""
    from threadpoolctl import threadpool_limits

    classes = selection.probabilities.shape[1]
    scaling = Scaling.of(np.asarray(embeddings[training], np.float32))
    features, judged = scaling.features(embeddings[training]), scaling.features(embeddings[judging])
    known, strengths = targets[training], sorted(selection.losses)

    def temperature(kernel: Floats, bias: Floats) -> np.float32:
        return np.float32(fit_temperature(judged @ kernel + bias, targets[judging]))

    with threadpool_limits(1, user_api="blas"):
        other = discriminate(features, known, classes)
        fits = minimise(features, known, classes, strengths)
        found = {}
        for strength, fit in zip(strengths, fits, strict=True):
            shares = [np.float32(0.5) / temperature(*linear) for linear in (fit, other)]
            kernel, bias = (shares[0] * one + shares[1] * two for one, two in zip(fit, other, strict=True))
            found[strength] = Head(scaling, kernel, bias, float(temperature(kernel, bias)))
    return found


def _judged(
    candidate: Head, embeddings: Vectors, targets: Ints
) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    probabilities = candidate.probabilities(embeddings)
    logits = candidate.logits(embeddings) * np.float32(candidate.temperature)
    return (
        {
            "accuracy_1": float((probabilities.argmax(axis=1) == targets).mean()),
            "cross_entropy_1": log_loss(probabilities, targets),
        },
        {"activations": probabilities, "Wx_plus_b/pre_activations": logits},
    )


def _variable(name: str, values: Floats) -> tuple[dict[str, float], dict[str, NDArray[Any]]]:
    figures = {"mean": values.mean(), "stddev": values.std(), "max": values.max(), "min": values.min()}
    return (
        {f"{name}/summaries/{figure}": float(value) for figure, value in figures.items()},
        {f"{name}/summaries/histogram": values},
    )


def _label_figures(evaluation: Evaluation) -> dict[str, float]:
    return {
        f"labels/{label}/{name}": figure[label].value
        for name, figure in (
            ("recall", evaluation.recall),
            ("precision", evaluation.precision),
            ("f1", evaluation.f1),
        )
        for label in evaluation.labels
    }


# --- Event files ------------------------------------------------------------------------------------------


class _Events:
    """An event file being written.

    Args:
        writer: of TFRecords.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(
        self, step: int, figures: Mapping[str, float], histograms: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        """Add what is known at a step; a figure that is NaN is not."""
        import tensorflow as tf

        event = tf.compat.v1.Event(wall_time=time.time(), step=step)
        for tag, value in figures.items():
            if not math.isnan(value):
                event.summary.value.add(tag=tag, simple_value=value)
        for tag, values in (histograms or {}).items():
            event.summary.value.add(tag=tag, histo=_histogram(values))
        self._writer.write(event.SerializeToString())


@contextmanager
def _events(directory: Path) -> Iterator[_Events]:
    """An event file that TensorBoard takes for one when it is whole."""
    import tensorflow as tf

    directory.mkdir(parents=True, exist_ok=True)
    now = time.time()
    staged = directory / ".staged"
    try:
        with tf.io.TFRecordWriter(str(staged)) as writer:
            version = tf.compat.v1.Event(wall_time=now, file_version="brain.Event:2")
            writer.write(version.SerializeToString())
            yield _Events(writer)
    except tf.errors.OpError as error:
        raise OSError(error.message) from error
    staged.rename(directory / f"events.out.tfevents.{int(now)}.hubhead")


def _histogram(values: NDArray[Any]) -> Any:
    """The proto of a histogram: counts below rising limits, and the moments."""
    import tensorflow as tf

    flat = values.astype(np.float64).ravel()
    counts, edges = np.histogram(flat, bins=_BUCKETS)
    return tf.compat.v1.HistogramProto(
        min=flat.min(),
        max=flat.max(),
        num=len(flat),
        sum=flat.sum(),
        sum_squares=(flat**2).sum(),
        bucket_limit=edges[1:].tolist(),
        bucket=counts.tolist(),
    )


# --- The embedding projector ------------------------------------------------------------------------------


def write_projector(
    directory: Path,
    embeddings: Vectors,
    examples: Sequence[Example],
    subsets: Sequence[Subset],
    labels: Sequence[str],
) -> None:
    """Write the embeddings, what each is of, and, where they are not too many, small pictures.

    Raises:
        OSError: the directory cannot be written.
    """
    rows = _drawn(np.arange(len(examples)))
    with (directory / "embeddings.tsv").open("w", encoding="utf-8") as file:
        for row in rows.tolist():
            file.write("\t".join(f"{number:.5g}" for number in embeddings[row].tolist()) + "\n")
    with (directory / "metadata.tsv").open("w", encoding="utf-8", errors="replace") as file:
        file.write("label\tset\tpath\n")
        for row in rows.tolist():
            cells = labels[examples[row].label], str(subsets[row]), examples[row].uri
            file.write("\t".join(" ".join(cell.split()) for cell in cells) + "\n")
    config = [
        "embeddings {",
        '  tensor_name: "embeddings"',
        '  tensor_path: "embeddings.tsv"',
        '  metadata_path: "metadata.tsv"',
    ]
    if len(rows) <= SPRITES:
        (directory / "sprite.png").write_bytes(_sprite([examples[row].uri for row in rows.tolist()]))
        side = f"single_image_dim: {SPRITE_SIDE}"
        config += ["  sprite {", '    image_path: "sprite.png"', f"    {side}", f"    {side}", "  }"]
    (directory / "projector_config.pbtxt").write_text("\n".join([*config, "}", ""]), encoding="utf-8")


def _sprite(uris: Sequence[str]) -> bytes:
    """One PNG of all pictures, row by row in a square; grey where a photo gives none."""
    from PIL import Image, ImageOps  # noqa: TID251  # decodes our own pictures, no photo

    across, side = math.ceil(math.sqrt(len(uris))), SPRITE_SIDE
    sheet = Image.new("RGB", (across * side, across * side), (128, 128, 128))
    small = make_thumbnails(uris, side)
    for number, uri in enumerate(uris):
        if uri in small:
            down, right = divmod(number, across)
            with Image.open(io.BytesIO(small[uri])) as picture:
                sheet.paste(ImageOps.fit(picture, (side, side)), (right * side, down * side))
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()

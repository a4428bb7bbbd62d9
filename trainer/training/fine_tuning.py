"""Fine-tuning: the last layers of a backbone are trained together with a head that was fitted before.

The result is a backbone like any other, a SavedModel directory with a fingerprint of its own, so that
everything after it (embed, fit the head, export) is unchanged.

With few photos a backbone overfits soon, so it is changed little: training starts from the fitted head,
with a small learning rate under a warm-up and a cosine schedule, and batch normalisation keeps its
pretrained statistics. The result is the mean of the pretrained weights and the tuned ones (Wortsman et
al. 2022, "Robust fine-tuning of zero-shot models"). The tuned ones alone fit their training photos so
well that the head fitted next is overconfident. With some 300 photos the gain of all this is within
chance (tests/bench/fine_tune.py; --keep 0 shows the tuned weights alone).

All random numbers follow from the seed, the epoch and the photo's number, and each epoch ends with a
checkpoint. A run that was stopped is therefore resumed as if it had not been stopped, as exactly as
TensorFlow is deterministic on the machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import InputError
from trainer.backbones.hub import Backbone
from trainer.dataset.download import create_once, no_progress
from trainer.heads import Floats, Head, Ints
from trainer.preprocessing import Preprocessing
from trainer.training.fine_tune_types import Epoch, FineTuned, FineTuneSettings
from trainer.training.tuner import RECORD, Tuner, restored_afterwards
from trainer.training.tuning_photos import PreparedPhotos, TuningPhotos, prepare_photos

RECIPE = 1
"""Version of the algorithm: raise it when the same settings give another backbone."""

MIN_PHOTOS = 5
"""Training photos that each label needs."""


def fine_tune(
    backbone: Backbone,
    head: Head,
    photos: TuningPhotos,
    settings: FineTuneSettings,
    *,
    preprocessing: Preprocessing | None = None,
    checkpoint_directory: Path,
    say: Callable[[str], None] = no_progress,
    progress: Callable[[Epoch], None] | None = None,
) -> FineTuned:
    """Train the last layers of a backbone, starting from a head that was fitted on its embeddings.

    The given backbone is unchanged afterwards. A run with the same photos, backbone, head and settings
    resumes where an earlier one was stopped; a finished run is not repeated.

    Args:
        backbone: backbone to start from.
        head: head that was fitted on the embeddings of the training photos.
        photos: training photos, and validation photos if there are any.
        settings: settings of fine-tuning.
        preprocessing: aspect and limits; the size is replaced by the backbone's.
        checkpoint_directory: directory of the checkpoints and of the tuned backbone.
        say: function that is called with lines of text for the user.
        progress: function that is called after each epoch.

    Raises:
        InputError: the backbone cannot be trained, there are too few photos, or training diverged.
        OutputError: the directory cannot be written.
        KeyboardInterrupt: the run was interrupted; `say` was called with how to resume it.
    """
    _check_inputs(photos.training.targets, head)
    variables = trained_variables(backbone, settings.depth)
    height, width = backbone.image_size
    preprocessing = replace(preprocessing or Preprocessing(), height=height, width=width)
    training = prepare_photos(photos.training, preprocessing)
    validation = photos.validation
    held = prepare_photos(validation, preprocessing) if validation and len(validation.targets) else None
    run = checkpoint_directory / _compute_key(backbone, head, training, held, preprocessing, settings)
    tuned = run / "backbone"
    if not tuned.is_dir():
        with restored_afterwards(variables):
            tuner = Tuner(backbone, head, variables, preprocessing, settings)
            _run_epochs(tuner, training, held, run, say, progress)
            with create_once(tuned) as staged:
                tuner.save(staged)
        for checkpoint in _list_checkpoints(run):
            shutil.rmtree(checkpoint, ignore_errors=True)
    return _read_result(tuned, backbone)


def trained_variables(backbone: Backbone, depth: float) -> list[Any]:
    """Return the last trainable variables of a backbone, a fraction `depth` of all.

    Raises:
        InputError: it has none.
    """
    variables = list(getattr(backbone.module, "trainable_variables", ()))
    if not variables:
        raise InputError(
            f"The backbone {backbone.handle} has no trainable variables: it is a module in TensorFlow 1's "
            "format, or its weights were frozen when it was exported.",
            remedy="Train without fine-tuning, or choose a TF2 module (hubhead backbone list).",
        )
    return variables[-max(1, round(depth * len(variables))) :]


def _check_inputs(targets: Ints, head: Head) -> None:
    """Check the head and the number of photos.

    Raises:
        InputError: the head has a hidden layer, or a label has fewer than MIN_PHOTOS photos.
    """
    if getattr(head, "hidden", None) is not None:
        raise InputError(
            "Fine-tuning starts from a linear head; this one has a hidden layer.",
            remedy="Fit a linear head for it; the head that is fitted afterwards may be of any kind.",
        )
    counts = np.bincount(targets, minlength=head.kernel.shape[1])
    if counts.min() < MIN_PHOTOS:
        raise InputError(
            f"Fine-tuning needs {MIN_PHOTOS} training photos of each label; label number {counts.argmin()} "
            f"has {counts.min()}.",
            remedy="Add photos, or train without fine-tuning.",
        )


def _run_epochs(
    tuner: Tuner,
    training: PreparedPhotos,
    held: PreparedPhotos | None,
    run: Path,
    say: Callable[[str], None],
    progress: Callable[[Epoch], None] | None,
) -> None:
    """Run the remaining epochs, with a checkpoint at the end of each."""
    if checkpoints := _list_checkpoints(run):
        tuner.restore(checkpoints[-1])
        say(f"Fine-tuning resumes after epoch {len(tuner.epochs)}, from {checkpoints[-1]}")
    elif held:
        tuner.before = tuner.validate(held)[0]
    try:
        while not tuner.is_done:
            tuner.run_epoch(training, held)
            _write_checkpoint(tuner, run)
            if progress:
                progress(tuner.epochs[-1])
    except KeyboardInterrupt:
        done = len(tuner.epochs)
        say(
            f"Stopped in epoch {done + 1} of {tuner.settings.epochs}; "
            + (f"earlier epochs are kept in {run}. " if _list_checkpoints(run) else "no epoch is kept yet. ")
            + "Run the same command again to resume."
        )
        raise


def _list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, the last one last."""
    return sorted(run.glob("epoch-*"))


def _write_checkpoint(tuner: Tuner, run: Path) -> None:
    """Write the checkpoint of an epoch, then remove the earlier ones."""
    earlier = _list_checkpoints(run)
    with create_once(run / f"epoch-{len(tuner.epochs):05}") as staged:
        tuner.write(staged)
    for checkpoint in earlier:
        shutil.rmtree(checkpoint, ignore_errors=True)


def _compute_key(
    backbone: Backbone,
    head: Head,
    training: PreparedPhotos,
    held: PreparedPhotos | None,
    preprocessing: Preprocessing,
    settings: FineTuneSettings,
) -> str:
    """Return a name for everything that determines a run's result."""
    weights: tuple[Floats, ...] = (head.scaling.mean, head.scaling.scale, head.kernel, head.bias)
    content = [
        RECIPE,
        backbone.fingerprint,
        backbone.image_size,
        hashlib.sha256(b"".join(np.asarray(array, "<f4").tobytes() for array in weights)).hexdigest(),
        head.temperature,
        training.sha256,
        held.sha256 if held else None,
        preprocessing.to_dict(),
        asdict(settings),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _read_result(tuned: Path, backbone: Backbone) -> FineTuned:
    """Return the result of a finished run from its record."""
    record = json.loads((tuned / RECORD).read_text())
    return FineTuned(
        path=tuned,
        options=backbone.interface.to_options(),
        epochs=tuple(Epoch(**epoch) for epoch in record["epochs"]),
        best=record["best"],
        before=record["before"],
    )

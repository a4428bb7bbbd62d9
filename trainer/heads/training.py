"""Training of a head: settings are selected by held-out log-loss, then the head is fitted on all photos.

Few photos are handled in memory: they are cross-validated, or the validation photos are held out if there
are enough. From LARGE_DATASET photos on they are read in blocks that need not fit in memory: one part is
held out, candidates are fitted on a sample, and the best one on all photos (`block_training`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.heads.block_training import ENOUGH_VALIDATION, BlockTraining, hold_out, prepare_features
from trainer.heads.fitter import EXACT_TOLERANCE, TOLERANCE, Fitter, single_blas_thread
from trainer.heads.head import Floats, Head, Ints, Scaling, Vectors
from trainer.heads.hidden import LayerTraining, record_layer, train_layers
from trainer.heads.linear import SHRINKAGE
from trainer.heads.refit import fit_selected
from trainer.heads.selection import (
    FOLDS,
    Fold,
    record_selection,
    select_strength,
    stratified_folds,
)
from trainer.heads.settings import LARGE_DATASET, HeadSettings, Selection, class_weights
from trainer.heads.streaming import Blocks, ShuffledRows


def fit(
    embeddings: Vectors,
    targets: Ints,
    classes: int,
    *,
    validation: tuple[Vectors, Ints] | None = None,
    views: Sequence[Vectors] = (),
    settings: HeadSettings | None = None,
    seed: int = 0,
) -> tuple[Head, Selection]:
    """Fit as `fit_blocks` does, on arrays.

    Args:
        embeddings: float32 or float16 [N,D], in memory or mapped from a file.
        targets: int64 [N], each of 0 to classes-1 at least once.
        classes: number of labels, K.
        validation: embeddings and targets of M validation photos.
        views: other embeddings of the same photos, with those of `validation` after the others, each
            [N+M,D].
        settings: kind, label weights and memory.
        seed: seed of the folds and of everything else that is random.
    """
    all_targets = targets if validation is None else np.append(targets, validation[1])
    return fit_blocks(
        Blocks.from_array(embeddings, targets),
        classes,
        validation=None if validation is None else Blocks.from_array(*validation),
        views=[Blocks.from_array(view, all_targets) for view in views],
        settings=settings,
        seed=seed,
    )


def fit_blocks(
    blocks: Blocks,
    classes: int,
    *,
    validation: Blocks | None = None,
    views: Sequence[Blocks] = (),
    settings: HeadSettings | None = None,
    seed: int = 0,
) -> tuple[Head, Selection]:
    """Select strength and temperatures by log-loss on held-out photos, then fit on all photos.

    If there are at least ENOUGH_VALIDATION validation photos, they are held out. Otherwise they join
    the other photos, and five-fold cross-validation is used.

    From LARGE_DATASET photos on, they need not fit in memory: time is linear in N, memory constant.
    Candidates are fitted on at most CHOOSING photos and evaluated on at most HELD_OUT: those of
    `validation`, or every fifth photo of each label (or fewer). The best candidate is fitted on all
    photos that are not held out, for the mixture and its temperature, and then, starting there, on all
    photos. If the features fit in `settings.memory`, they are computed once; otherwise in each of about
    40 passes, with the same result.

    Args:
        blocks: embeddings (`Blocks.from_array` for arrays), each label of 0 to classes-1 at least once.
        classes: number of labels, K.
        validation: validation photos.
        views: other embeddings of the photos of `blocks`, row by row, and after them of `validation`.
            Classifiers are fitted on them as well, but evaluated only on `blocks` and `validation`. With
            many photos C is selected without views, and views of photos held out are not used.
        settings: kind, label weights and memory.
        seed: seed of the rows held out and of everything else that is random.
    """
    settings = settings or HeadSettings()
    if blocks.count + (validation.count if validation else 0) < LARGE_DATASET:
        apart = validation is not None and validation.count >= ENOUGH_VALIDATION
        embeddings, targets = (blocks.chain(validation) if validation else blocks).gather()
        photos = np.stack([embeddings, *(view.gather()[0] for view in views)]).astype(np.float32)
        return _fit_in_memory(photos, targets, classes, blocks.count if apart else None, settings, seed)
    with single_blas_thread():
        rest, held, views, counts = hold_out(blocks, validation, views, classes, seed)
        data = prepare_features(rest, held, views, settings.memory)
        weights = class_weights(counts, settings.class_weight)
        return BlockTraining(data, weights, settings, 1 + len(views), seed).run()


def list_held_out(targets: Ints, validation: int, classes: int, seed: int) -> Ints:
    """Return the rows that `fit_blocks` holds out, int64 [n], in the order of `Selection.probabilities`.

    Args:
        targets: labels of the photos and, after them, of the validation photos, int64 [N].
        validation: number of validation photos.
        classes: number of labels, K.
        seed: seed of the fit.
    """
    count = len(targets)
    rows, first = np.arange(count), count - validation
    if count < LARGE_DATASET:
        return rows[first:] if validation >= ENOUGH_VALIDATION else rows
    # The row numbers are split as the embeddings are.
    numbers: Any = rows[:, None]
    apart = Blocks.from_array(numbers[first:], targets[first:]) if validation else None
    _, held, _, _ = hold_out(Blocks.from_array(numbers[:first], targets[:first]), apart, (), classes, seed)
    return np.asarray(held.gather()[0][:, 0], np.int64)


def _fit_in_memory(
    photos: Floats, targets: Ints, classes: int, held_from: int | None, settings: HeadSettings, seed: int
) -> tuple[Head, Selection]:
    """Fit on few photos.

    Args:
        photos: embeddings of N photos and of their views, float32 [1+views,N,D].
        targets: labels, int64 [N].
        classes: number of labels, K.
        held_from: first row held out; None to hold out each row in one of five folds.
        settings: kind and label weights.
        seed: seed of the folds and of the hidden layer.
    """
    rows = np.arange(len(targets))
    if held_from is None:
        method, held_targets = "cross-validation", targets
        splits = list(stratified_folds(targets, FOLDS, seed))
    else:
        method, held_targets = "validation", targets[held_from:]
        splits = [(rows[:held_from], rows[held_from:])]
    weights = class_weights(np.bincount(targets, minlength=classes), settings.class_weight)
    held_weights = weights[held_targets]

    def prepare(chosen: Ints, tolerance: float) -> tuple[Scaling, Fitter]:
        """Return the scaling of some photos with all their views, and the fitter on their features."""
        stacked = np.concatenate(photos[:, chosen])
        scaling = Scaling.from_embeddings(stacked)
        features, labels = scaling.features(stacked), np.tile(targets[chosen], len(photos))
        return scaling, Fitter.from_array(features, labels, weights, tolerance=tolerance, copies=len(photos))

    with single_blas_thread():
        folds = []
        for fitted, held in splits:
            scaling, fitter = prepare(fitted, TOLERANCE)
            folds.append(Fold(fitter, scaling.features(photos[0, held]), held - (held_from or 0)))
        best = select_strength(folds, held_targets, held_weights)
        selection = record_selection(
            method, best, held_targets, settings, shrinkage=SHRINKAGE, streamed=False
        )
        if settings.kind == "hidden":
            # The folds show how many epochs pay off; the layer of the head learns as long on all photos.
            trainings = [
                LayerTraining(
                    fold.fitter.basis,
                    ShuffledRows(fold.fitter.features, seed),
                    best.mixture.calibrate(linears),
                    fold.held,
                    fold.places,
                )
                for fold, linears in zip(folds, best.linears, strict=True)
            ]
            stop = train_layers(trainings, held_targets, held_weights, weights, settings.width, seed)
            selection = record_layer(selection, stop, seed)
        # The final fit on all photos, to a smaller tolerance than that of the candidates.
        return fit_selected(*prepare(rows, EXACT_TOLERANCE), weights, selection), selection

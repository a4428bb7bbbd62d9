"""Training of a head: settings are selected by held-out log-loss, then the head is fitted on all photos.

`fit` takes arrays and handles few photos in memory: it cross-validates, or uses the validation photos
if there are enough. `fit_blocks` takes photos in blocks that need not fit in memory: it holds out one
part, selects on a sample, and fits the best candidate on all photos. Each hands over to the other by
the number of photos (LARGE_DATASET), so that a caller may use either. The steps of `fit_blocks` are in
`block_training`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.heads.block_training import ENOUGH_VALIDATION, BlockTraining, hold_out, prepare_features
from trainer.heads.fitter import (
    FitOptions,
    Fitter,
    single_blas_thread,
)
from trainer.heads.head import Floats, Head, Ints, Scaling, Vectors
from trainer.heads.hidden import LayerTraining, record_layer, train_layers
from trainer.heads.linear import EXACT_TOLERANCE, SHRINKAGE
from trainer.heads.selection import (
    FOLDS,
    Fold,
    build_head,
    calibrate,
    record_selection,
    select_strength,
    stratified_folds,
    weights_of_photos,
)
from trainer.heads.settings import LARGE_DATASET, HeadSettings, Selection, class_weights
from trainer.heads.streaming import Blocks


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
    """Select strength and temperatures by log-loss on held-out photos, then fit on all photos.

    If there are at least ENOUGH_VALIDATION validation photos, they are held out. Otherwise they join
    the other photos, and five-fold cross-validation is used. From LARGE_DATASET photos on, `fit_blocks`
    does the fit.

    Args:
        embeddings: float32 or float16 [N,D], in memory or mapped from a file.
        targets: int64 [N], each of 0 to classes-1 at least once.
        classes: number of labels, K.
        validation: embeddings and targets of the validation photos.
        views: other embeddings of the same photos, with those of `validation` after the others, each
            [N+M,D]. Classifiers are fitted on them as well, but evaluated only on `embeddings`.
        settings: kind, label weights and memory.
        seed: seed of the folds and of everything else that is random.
    """
    settings = settings or HeadSettings()
    extra = 0 if validation is None else len(validation[1])
    # Row at which the photos held out begin once both parts are stacked; None for cross-validation.
    held_from = len(targets) if extra >= ENOUGH_VALIDATION else None
    if len(targets) + extra >= LARGE_DATASET:
        join = held_from is None
        blocks, held, others = _to_blocks(embeddings, targets, validation, views, join=join)
        return fit_blocks(blocks, classes, validation=held, views=others, settings=settings, seed=seed)
    rows = np.asarray(embeddings, np.float32)
    copies = [np.asarray(view, np.float32) for view in views]
    if validation is not None:
        rows = np.vstack([rows, np.asarray(validation[0], np.float32)])
        targets = np.append(targets, validation[1])
    return _fit_in_memory(_Photos(rows, copies, targets), classes, held_from, settings, seed)


def _to_blocks(
    embeddings: Vectors,
    targets: Ints,
    validation: tuple[Vectors, Ints] | None,
    views: Sequence[Vectors],
    *,
    join: bool,
) -> tuple[Blocks, Blocks | None, list[Blocks]]:
    """Return the photos, the validation photos and the views as blocks; `join` appends the validation."""
    blocks, held = Blocks.from_array(embeddings, targets), None
    if validation is not None:
        held = Blocks.from_array(*validation)
        if join:
            blocks, held = blocks.chain(held), None
    others = []
    for view in views:
        own = Blocks.from_array(view[: len(targets)], targets)
        if validation is not None and join:
            own = own.chain(Blocks.from_array(view[len(targets) :], validation[1]))
        others.append(own)
    return blocks, held, others


# --- Few photos, in memory ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Photos:
    """Photos in memory.

    Attributes:
        embeddings: float32 [N,D].
        views: other embeddings of the same photos, each float32 [N,D].
        targets: labels, int64 [N].
    """

    embeddings: Floats
    views: Sequence[Floats]
    targets: Ints

    @property
    def copies(self) -> int:
        """Embeddings per photo."""
        return 1 + len(self.views)

    def training_rows(self, chosen: Ints) -> tuple[Scaling, Floats, Ints]:
        """Return the scaling of some photos with all their views, and their features and labels."""
        stacked = np.vstack([self.embeddings[chosen], *(view[chosen] for view in self.views)])
        scaling = Scaling.from_embeddings(stacked)
        return scaling, scaling.features(stacked), np.tile(self.targets[chosen], self.copies)


def _fit_in_memory(
    photos: _Photos, classes: int, held_from: int | None, settings: HeadSettings, seed: int
) -> tuple[Head, Selection]:
    """Fit as `fit` does; rows from `held_from` on are held out, or each row in five folds if it is None."""
    rows = np.arange(len(photos.targets))
    if held_from is None:
        method, held_targets = "cross-validation", photos.targets
        splits = list(stratified_folds(photos.targets, FOLDS, seed))
    else:
        method, held_targets = "validation", photos.targets[held_from:]
        splits = [(rows[:held_from], rows[held_from:])]
    weights = class_weights(np.bincount(photos.targets, minlength=classes), settings.class_weight)
    held_weights = weights_of_photos(weights, held_targets, settings)
    options = FitOptions(copies=photos.copies)

    with single_blas_thread():
        folds, training = [], []
        for fitted, held in splits:
            scaling, features, labels = photos.training_rows(fitted)
            fitter = Fitter.from_array(features, labels, weights, options)
            folds.append(Fold(fitter, scaling.features(photos.embeddings[held]), held - (held_from or 0)))
            training.append((features, labels))
        best = select_strength(folds, held_targets, held_weights)

        # The final fit on all photos, to a smaller tolerance than that of the candidates.
        scaling, features, labels = photos.training_rows(rows)
        exact = replace(options, tolerance=EXACT_TOLERANCE)
        fitter = Fitter.from_array(features, labels, weights, exact)
        final = fitter.fit(best.strength)
        head = build_head(scaling, best.mixture, final)
        selection = record_selection(
            method, best, held_targets, settings, shrinkage=SHRINKAGE, streamed=False
        )
        if settings.kind != "hidden":
            return head, selection
        trainings = [
            LayerTraining.from_features(
                *fold_rows, calibrate(best.mixture, linears), held=fold.held, places=fold.places
            )
            for fold_rows, linears, fold in zip(training, best.linears, folds, strict=True)
        ]
        width, stop = train_layers(trainings, held_targets, held_weights, weights, settings.width, seed)
        selection = record_layer(selection, width, stop, seed)
        if not stop.epochs:
            return head, selection
        # The folds have shown how many epochs pay off; the layer of the head learns as long on all photos.
        whole = LayerTraining.from_features(features, labels, calibrate(best.mixture, final))
        network = whole.build_network(width, weights, seed)
        for _ in range(stop.epochs):
            network.run_epoch()
    layer = network.layer.lift(whole.basis)
    return Head(scaling, *whole.base, stop.temperature, layer), selection


# --- Many photos, in blocks -----------------------------------------------------------------------------


def fit_blocks(
    blocks: Blocks,
    classes: int,
    *,
    validation: Blocks | None = None,
    views: Sequence[Blocks] = (),
    settings: HeadSettings | None = None,
    seed: int = 0,
) -> tuple[Head, Selection]:
    """Fit as `fit` does on photos that need not fit in memory: time is linear in N, memory constant.

    Candidates are fitted on at most CHOOSING photos and evaluated on at most HELD_OUT: those of
    `validation`, or every fifth photo of each label (or fewer). The best candidate is fitted on all
    photos that are not held out, for the mixture and its temperature, and then, starting there, on all
    photos. If the features fit in `settings.memory`, they are computed once; otherwise in each of about
    40 passes, with the same result.

    Args:
        blocks: embeddings (`Blocks.from_array` for arrays), each label of 0 to classes-1 at least once.
        classes: number of labels, K.
        validation: photos to hold out; fewer than ENOUGH_VALIDATION join the others.
        views: other embeddings of the photos of `blocks`, row by row; not possible if `validation`
            joins them. C is selected without views, and views of photos held out are not used.
        settings: kind, label weights and memory.
        seed: seed of the rows held out and of everything else that is random.
    """
    settings = settings or HeadSettings()
    if blocks.count + (validation.count if validation else 0) < LARGE_DATASET:
        return fit(
            *blocks.gather(),
            classes,
            validation=validation.gather() if validation else None,
            views=[view.gather()[0] for view in views],
            settings=settings,
            seed=seed,
        )
    with single_blas_thread():
        rest, held, views, counts = hold_out(blocks, validation, views, classes, seed)
        data = prepare_features(rest, held, views, settings.memory)
        weights = class_weights(counts, settings.class_weight)
        return BlockTraining(data, weights, settings, 1 + len(views), seed).run()

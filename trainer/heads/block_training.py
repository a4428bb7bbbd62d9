"""The steps of a fit on many photos, which are read in blocks and need not fit in memory.

One part of the photos is held out. Candidates are fitted on a sample, the best one on all photos that
are not held out, to calibrate it, and finally on all photos.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np

from trainer.heads.calibration import fit_mixture
from trainer.heads.fitter import Fitter, compute_scaling, count_rows_by_label
from trainer.heads.head import Floats, Head, Ints, Linear, Scaling
from trainer.heads.hidden import EarlyStop, LayerTraining, record_layer, train_layers
from trainer.heads.linear import Moments
from trainer.heads.refit import fit_selected
from trainer.heads.selection import (
    FOLDS,
    BestStrength,
    Fold,
    compute_logits,
    record_selection,
    select_shrinkage,
    select_strength,
)
from trainer.heads.settings import HeadSettings, Selection
from trainer.heads.streaming import Blocks, ShuffledRows

ENOUGH_VALIDATION = 500
"""Validation photos that suffice to compare values of C: the log-loss then has a standard error of .03."""

HELD_OUT = 10_000
"""Maximum of photos that settings are selected by: the log-loss then has a standard error of .01."""

CHOOSING = 32_768
"""Maximum of photos that candidates are fitted on.

C weighs the loss against the prior of the weights, which does not depend on the number of photos, so
the C selected on a sample is valid for all photos.
"""


@dataclass(frozen=True)
class BlockData:
    """Features of many photos, split into a part to fit on and a part held out.

    Attributes:
        scaling: scaling of the embeddings to features.
        photos: rows to fit on, one per photo; candidates are fitted on these.
        rows: the same with the rows of the views.
        held: rows held out.
        held_features: features of the rows held out, float32 [n,D].
        held_targets: their labels, int64 [n].
        streamed: true if the features are computed in every pass, since they do not fit in memory.
    """

    scaling: Scaling
    photos: Blocks
    rows: Blocks
    held: Blocks
    held_features: Floats
    held_targets: Ints
    streamed: bool


def hold_out(
    blocks: Blocks, validation: Blocks | None, views: Sequence[Blocks], classes: int, seed: int
) -> tuple[Blocks, Blocks, Sequence[Blocks], Ints]:
    """Split photos into a part to fit on and at most HELD_OUT photos held out.

    Returns:
        The rows to fit on, the rows held out, the views of the rows to fit on, and the photos of each
        label in both parts, int64 [K].
    """
    if validation is not None and validation.count < ENOUGH_VALIDATION:
        blocks, validation = blocks.chain(validation), None
    counts = count_rows_by_label(blocks, classes)
    if validation is None:
        stride = max(FOLDS, -(-blocks.count // HELD_OUT))
        rest, held = blocks.split_every(counts, stride, seed)
        return rest, held, [view.split_every(counts, stride, seed)[0] for view in views], counts
    rest, held = blocks, validation
    if held.count > HELD_OUT:
        held_counts = count_rows_by_label(held, classes)
        more, held = held.split_every(held_counts, -(-held.count // HELD_OUT), seed)
        rest = rest.chain(more)
    views = [view.first(blocks.count) for view in views]
    return rest, held, views, counts + count_rows_by_label(validation, classes)


def prepare_features(rest: Blocks, held: Blocks, views: Sequence[Blocks], memory: int) -> BlockData:
    """Scale the embeddings to features, and load them if they fit in `memory` bytes."""
    # The scaling is that of the photos to fit on, without views, so that it does not see those held out.
    scaling = compute_scaling(rest)
    photos, held = (replace(part, scaling=scaling) for part in (rest, Blocks.from_array(*held.gather())))
    rows, loaded = photos, held.load_features()
    for view in views:
        rows = rows.chain(replace(view, scaling=scaling))
    streamed = 4 * rows.count * rows.dimension > memory
    if not streamed:
        rows, held = rows.load_features(), loaded
        # The photos come first among the rows, so they are a slice of the same array.
        whole, labels = rows.gather()
        photos = Blocks.from_array(whole[: photos.count], labels[: photos.count]) if views else rows
    held_features, held_targets = loaded.gather()
    return BlockData(
        scaling, photos, rows, held, np.asarray(held_features, np.float32), held_targets, streamed
    )


class BlockTraining:
    """The steps of `fit_blocks` on features that are split into a part to fit on and a part held out.

    Args:
        data: features of the photos.
        weights: label weights, float32 [K].
        settings: settings of the head.
        copies: rows per photo, views included.
        seed: seed of the sample and of the hidden layer.
    """

    def __init__(
        self, data: BlockData, weights: Floats, settings: HeadSettings, copies: int, seed: int
    ) -> None:
        self._data, self._weights, self._settings = data, weights, settings
        self._copies, self._seed = copies, seed
        self._held_weights = weights[data.held_targets]
        self._moments = Moments.from_blocks(data.rows, weights)
        self._shrinkage = select_shrinkage(
            self._moments, data.held_features, data.held_targets, self._held_weights
        )
        self._sample = _sample(data.photos, len(weights), seed)

    def run(self) -> tuple[Head, Selection]:
        """Select the strength, train the hidden layer if there is one, and fit on all photos."""
        data = self._data
        best = self._select()
        selection = record_selection(
            "validation",
            best,
            data.held_targets,
            self._settings,
            shrinkage=self._shrinkage,
            streamed=data.streamed,
        )
        if self._settings.kind == "hidden":
            base = best.mixture.calibrate(best.linears[0])
            stop = self._train_layer(base)
            selection = record_layer(selection, stop, self._seed)
            # The layer complements this very linear head, so neither is fitted again on all photos.
            if stop.epochs:
                return Head(data.scaling, *base, stop.temperature, stop.layers[0]), selection
        # The final fit on all photos begins at the best candidate, so that it takes few passes.
        moments = self._moments + Moments.from_blocks(data.held, self._weights)
        fitter = self._fitter(data.rows.chain(data.held), moments, best.linears[0][0], self._copies)
        return fit_selected(data.scaling, fitter, self._weights, selection), selection

    def _select(self) -> BestStrength:
        """Select the strength on the sample, then fit and calibrate it on all rows not held out."""
        data = self._data
        fitter = self._fitter(self._sample, self._moments, None, 1)
        fold = Fold(fitter, data.held_features, np.arange(len(data.held_targets)))
        best = select_strength([fold], data.held_targets, self._held_weights)
        if self._sample is data.photos and self._copies == 1:
            return best  # the candidates were fitted on these very rows
        fitter = self._fitter(data.rows, self._moments, best.linears[0][0], self._copies)
        linears = fitter.fit(best.strength)
        logits = compute_logits(linears, data.held_features)
        mixture = fit_mixture(logits, data.held_targets, self._held_weights)
        return replace(best, linears=[linears], mixture=mixture)

    def _fitter(self, rows: Blocks, moments: Moments, start: Linear | None, copies: int) -> Fitter:
        return Fitter(rows, moments, self._weights, start=start, shrinkage=self._shrinkage, copies=copies)

    def _train_layer(self, base: Linear) -> EarlyStop:
        """Select the width of the layer on the sample, then train the layer on all rows not held out."""
        data, settings, seed = self._data, self._settings, self._seed
        places = np.arange(len(data.held_targets))

        def train(rows: Blocks, width: int | None, directory: str | None) -> EarlyStop:
            training = LayerTraining(
                None, ShuffledRows(rows, seed, directory), base, data.held_features, places
            )
            return train_layers([training], data.held_targets, self._held_weights, self._weights, width, seed)

        width = settings.width or train(self._sample, None, None).width
        files = tempfile.TemporaryDirectory(dir=settings.directory) if data.streamed else nullcontext()
        with files as directory:
            return train(data.rows, width, directory)


def _sample(blocks: Blocks, classes: int, seed: int) -> Blocks:
    """Return about CHOOSING rows of all labels in memory, or all rows if there are not more."""
    if blocks.count <= CHOOSING:
        return blocks
    counts = count_rows_by_label(blocks, classes)
    stride = -(-blocks.count // CHOOSING)
    return blocks.split_every(counts, stride, seed, first=True)[1].load_features()

"""Fit of a head with known settings: for a fold, or for other photos than those of the selection."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from trainer.heads.calibration import combine_linears
from trainer.heads.fitter import (
    EXACT_TOLERANCE,
    Fitter,
    compute_scaling,
    count_rows_by_label,
    single_blas_thread,
)
from trainer.heads.head import Floats, Head, Scaling
from trainer.heads.hidden import Network
from trainer.heads.linear import SHRINKAGE, Moments, project_linear
from trainer.heads.settings import LARGE_DATASET, HeadSettings, Selection, class_weights
from trainer.heads.streaming import Blocks, ShuffledRows


def refit(
    blocks: Blocks, classes: int, selection: Selection, *, settings: HeadSettings | None = None
) -> Head:
    """Fit a head with the settings that were selected on other photos; nothing is held out.

    A hidden layer is trained for the number of epochs that was best then. Memory is constant, as in
    `fit_blocks`.

    Args:
        blocks: embeddings. A label without rows gets a probability of about 0.
        classes: number of labels, K.
        selection: selection of the head whose settings are used.
        settings: memory and directory; everything else is taken from the selection.
    """
    settings = settings or HeadSettings()
    chosen = selection.settings
    weights = class_weights(count_rows_by_label(blocks, classes), chosen["class_weight"])
    shrinkage = chosen.get("shrinkage", SHRINKAGE)
    with single_blas_thread(), ExitStack() as stack:
        directory: str | None = None
        if blocks.count < LARGE_DATASET:
            # Few photos: in memory, to the exact tolerance, as coordinates in their span.
            embeddings, targets = blocks.gather()
            rows = np.asarray(embeddings, np.float32)
            scaling = Scaling.from_embeddings(rows)
            fitter = Fitter.from_array(
                scaling.features(rows), targets, weights, tolerance=EXACT_TOLERANCE, shrinkage=shrinkage
            )
        else:
            scaling = compute_scaling(blocks)
            parts = replace(blocks, scaling=scaling)
            if 4 * blocks.count * blocks.dimension <= settings.memory:
                parts = parts.load_features()
            elif chosen.get("epochs"):
                directory = stack.enter_context(tempfile.TemporaryDirectory(dir=settings.directory))
            fitter = Fitter(parts, Moments.from_blocks(parts, weights), weights, shrinkage=shrinkage)
        return fit_selected(scaling, fitter, weights, selection, directory)


def fit_selected(
    scaling: Scaling, fitter: Fitter, weights: Floats, selection: Selection, directory: str | None = None
) -> Head:
    """Fit a head on the rows of a fitter with the settings of a selection.

    Args:
        scaling: scaling of the embeddings to the features of the fitter.
        fitter: fitter of the linear classifiers.
        weights: label weights, float32 [K].
        selection: selection of the head whose settings are used.
        directory: directory for the rows of a hidden layer; None if the features are in memory.
    """
    chosen = selection.settings
    linears = fitter.fit(selection.strength)
    if not chosen.get("epochs"):
        return Head(scaling, *combine_linears(chosen["shares"], linears), chosen["temperature"])
    base = combine_linears(chosen["shares"], linears, chosen["temperature"])
    rows = ShuffledRows(fitter.features, chosen["seed"], directory)
    network = Network(rows, project_linear(fitter.basis, base), chosen["width"], weights, chosen["seed"])
    for _ in range(chosen["epochs"]):
        network.run_epoch()
    return Head(scaling, *base, chosen["layer_temperature"], network.layer.lift(fitter.basis))

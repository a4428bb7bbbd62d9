"""Fit of a head with known settings: for a fold, or for other photos than those of the selection."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.heads.fitter import (
    FitOptions,
    Fitter,
    combine_calibrated,
    compute_scaling,
    count_rows_by_label,
    single_blas_thread,
)
from trainer.heads.head import Floats, Head, Scaling
from trainer.heads.hidden import Network
from trainer.heads.linear import EXACT_TOLERANCE, Moments, compute_span, project_linear
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
    options = FitOptions(shrinkage=chosen["shrinkage"]) if "shrinkage" in chosen else FitOptions()
    with single_blas_thread(), ExitStack() as stack:
        basis: Floats | None = None
        directory: Path | None = None
        if blocks.count < LARGE_DATASET:
            # Few photos: in memory, to the exact tolerance, as coordinates in their span.
            embeddings, targets = blocks.gather()
            rows = np.asarray(embeddings, np.float32)
            scaling = Scaling.from_embeddings(rows)
            features = scaling.features(rows)
            exact = replace(options, tolerance=EXACT_TOLERANCE)
            fitter = Fitter.from_array(features, targets, weights, exact)
            basis, coordinates = compute_span(features)
            parts = Blocks.from_array(coordinates, targets)
        else:
            scaling = compute_scaling(blocks)
            parts = blocks.with_scaling(scaling)
            if 4 * blocks.count * blocks.dimension <= settings.memory:
                parts = parts.load_features()
            elif chosen.get("epochs"):
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=settings.directory)))
            moments = Moments.from_blocks(parts, weights)
            fitter = Fitter(parts, moments, weights, options=options)
        linear = combine_calibrated(chosen["shares"], 1.0, fitter.fit(selection.strength))
        if not chosen.get("epochs"):
            return Head(scaling, *linear, chosen["temperature"])
        base = linear[0] / np.float32(chosen["temperature"]), linear[1] / np.float32(chosen["temperature"])
        network = Network(
            ShuffledRows(parts, chosen["seed"], directory),
            project_linear(basis, base),
            chosen["width"],
            weights,
            chosen["seed"],
        )
        for _ in range(chosen["epochs"]):
            network.run_epoch()
    return Head(scaling, *base, chosen["layer_temperature"], network.layer.lift(basis))

"""A head of known settings: for a fold, or for other photos than those it was chosen by."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from trainer.heads.fitter import Fitter, count_labels, one_thread, scaling_of, tempered
from trainer.heads.head import Floats, Head, Linear, Scaling
from trainer.heads.hidden import Network
from trainer.heads.linear import EXACT, Moments, span
from trainer.heads.settings import MANY, HeadSettings, Selection, class_weights
from trainer.heads.streaming import Blocks, Shuffled


def refit(
    blocks: Blocks, classes: int, selection: Selection, *, settings: HeadSettings | None = None
) -> Head:
    """Fit with the settings that were chosen by other photos; nothing is held out.

    A hidden layer learns for as many epochs as was best then. As in `fit_blocks` memory is flat.

    Args:
        blocks: embeddings. A label without rows gets hardly any probability.
        classes: K.
        selection: of the head that this one is to be like.
        settings: memory and directory are taken from it; all else is as it was chosen.
    """
    settings = settings or HeadSettings()
    chosen = selection.settings
    weights = class_weights(count_labels(blocks, classes), chosen["class_weight"])
    shrinkage = {"shrinkage": chosen["shrinkage"]} if "shrinkage" in chosen else {}
    with one_thread(), ExitStack() as stack:
        basis: Floats | None = None
        directory: Path | None = None
        if blocks.count < MANY:
            embeddings, targets = blocks.gather()
            rows = np.asarray(embeddings, np.float32)
            scaling = Scaling.of(rows)
            features = scaling.features(rows)
            fitter = Fitter.on_few(chosen["kind"], features, targets, weights, decrease=EXACT, **shrinkage)
            basis, coordinates = span(features)
            parts = Blocks.of(coordinates, targets)
        else:
            scaling = scaling_of(blocks)
            parts = blocks.scaled(scaling)
            if 4 * blocks.count * blocks.dimension <= settings.memory:
                parts = parts.cached()
            elif chosen.get("epochs"):
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=settings.directory)))
            fitter = Fitter(chosen["kind"], parts, Moments.of(parts, weights), weights, **shrinkage)
        linear = tempered(chosen["shares"], 1.0, fitter.at(selection.strength))
        if not chosen.get("epochs"):
            return Head(scaling, *linear, chosen["temperature"])
        base = linear[0] / np.float32(chosen["temperature"]), linear[1] / np.float32(chosen["temperature"])
        network = Network(
            Shuffled(parts, chosen["seed"], directory),
            _in(basis, base),
            chosen["width"],
            weights,
            chosen["seed"],
        )
        for _ in range(chosen["epochs"]):
            network.epoch()
    return Head(scaling, *base, chosen["layer_temperature"], network.layer.lifted(basis))


def _in(basis: Floats | None, linear: Linear) -> Linear:
    """The classifier for coordinates in a basis [D,N], of that for features."""
    return linear if basis is None else (basis.T @ linear[0], linear[1])

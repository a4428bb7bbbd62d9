"""Settings by held-out log-loss, then the fit on all photos."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.heads.calibration import Mixture, mix
from trainer.heads.fitter import Fitter, count_labels, one_thread, scaling_of, tempered
from trainer.heads.head import Floats, Head, Ints, Linear, Scaling, Vectors, softmax
from trainer.heads.hidden import WIDTHS, Network, Stopped, stop_early
from trainer.heads.linear import EXACT, SHRINKAGE, Moments, span
from trainer.heads.settings import MANY, HeadSettings, Kind, Selection, class_weights
from trainer.heads.streaming import Blocks, Shuffled

STRENGTHS = (3.0, 10.0, 30.0, 100.0)
"""Candidates for C, the weight of the summed loss against half the squared weights.

Features of length one need far larger values than standardised ones do; on the sample
photos the minimum lies between 10 and 30. Where the best one is at the edge, the next of
`LADDER` is tried.
"""

LADDER = (0.1, 0.3, 1.0, *STRENGTHS, 300.0, 1000.0)

SCALES = (8.0, 16.0, 32.0)
"""The same for the scale of the cosine head."""

SCALE_LADDER = (2.0, 4.0, *SCALES, 64.0)

SHRINKAGES = (0.5, 0.2, 0.05, 0.01)
"""Candidates for the discriminant's, where there are many photos; with few it is half."""

FOLDS = 5

ENOUGH_VALIDATION = 500
"""Validation photos that can tell one C from the next: log-loss then has a standard error of some .03."""

HELD_OUT = 10_000
"""Most photos that settings are chosen by: log-loss then has a standard error of some .01."""

CHOOSING = 32_768
"""Most photos that candidates are fitted on.

C weighs the loss against what is known beforehand of the weights, which does not depend on the number of
photos; so the C found is then used with all.
"""

_GAIN = 1e-3
"""In log-loss, below which candidates beyond the first ones are not worth going for."""


@dataclass(frozen=True)
class _Part:
    """Photos held out, and what is fitted on others.

    Attributes:
        fitter: on the others.
        held: float32 [n,D], features held out.
        places: int64 [n], where they stand among all photos held out.
    """

    fitter: Fitter
    held: Floats
    places: Ints


@dataclass(frozen=True)
class _Choice:
    """The best strength, and what it did.

    Attributes:
        strength: C or scale.
        linears: of each part, the classifiers.
        mixture: of their logits.
        losses: of all candidates.
    """

    strength: float
    linears: list[list[Linear]]
    mixture: Mixture
    losses: dict[float, float]


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
    """Choose strength and temperatures by log-loss on held-out photos, then fit on all photos given.

    Held out are the validation photos where there are enough of them to choose by; else
    they join the others, and five-fold cross-validation takes their place. From `MANY` photos on it
    is `fit_blocks` that fits.

    Args:
        embeddings: float32 or float16 [N,D], in memory or mapped from a file.
        targets: int64 [N], each of 0 to classes-1 at least once.
        classes: K.
        validation: embeddings and targets of photos that are to be held out.
        views: other embeddings of the same photos, those of `validation` behind the others, each
            [N+M,D]. Classifiers are fitted on them as well, and judged by `embeddings` alone.
        settings: kind, weights of the labels, memory.
        seed: of the folds, and of all that is random.
    """
    settings = settings or HeadSettings()
    more = 0 if validation is None else len(validation[1])
    apart = len(targets) if more >= ENOUGH_VALIDATION else None
    if len(targets) + more >= MANY:
        blocks, held = Blocks.of(embeddings, targets), None
        if validation is not None:
            held = Blocks.of(*validation)
            if apart is None:
                blocks, held = blocks.then(held), None
        others = []
        for view in views:
            own = Blocks.of(view[: len(targets)], targets)
            if validation is not None and apart is None:
                own = own.then(Blocks.of(view[len(targets) :], validation[1]))
            others.append(own)
        return fit_blocks(blocks, classes, validation=held, views=others, settings=settings, seed=seed)
    rows = np.asarray(embeddings, np.float32)
    copies = [np.asarray(view, np.float32) for view in views]
    if validation is not None:
        rows = np.vstack([rows, np.asarray(validation[0], np.float32)])
        targets = np.append(targets, validation[1])
    return _fit_few(rows, targets, classes, apart, copies, settings, seed)


def _fit_few(
    embeddings: Floats,
    targets: Ints,
    classes: int,
    apart: int | None,
    views: Sequence[Floats],
    settings: HeadSettings,
    seed: int,
) -> tuple[Head, Selection]:
    """`fit` on few photos; those from row `apart` on are held out, None: each one, in five folds."""
    rows, copies = np.arange(len(targets)), 1 + len(views)
    if apart is None:
        method, held_targets = "cross-validation", targets
        folds = list(stratified_folds(targets, FOLDS, seed))
    else:
        method, held_targets = "validation", targets[apart:]
        folds = [(rows[:apart], rows[apart:])]
    weights = class_weights(np.bincount(targets, minlength=classes), settings.class_weight)
    held_weights = _of_photos(weights, held_targets, settings)

    def seen(chosen: Ints) -> tuple[Scaling, Floats, Ints]:
        """The scaling of some photos and all their views, their features and targets."""
        stacked = np.vstack([embeddings[chosen], *(view[chosen] for view in views)])
        scaling = Scaling.of(stacked)
        return scaling, scaling.features(stacked), np.tile(targets[chosen], copies)

    with one_thread():
        parts, training = [], []
        for fitted, held in folds:
            scaling, features, labels = seen(fitted)
            fitter = Fitter.on_few(settings.kind, features, labels, weights, copies=copies)
            parts.append(_Part(fitter, scaling.features(embeddings[held]), held - (apart or 0)))
            training.append((features, labels))
        choice = _choose(parts, held_targets, held_weights, settings.kind)

        scaling, features, labels = seen(rows)
        fitter = Fitter.on_few(settings.kind, features, labels, weights, decrease=EXACT, copies=copies)
        final = fitter.at(choice.strength)
        head = _head(scaling, choice.mixture, final)
        selection = _selection(method, choice, held_targets, settings, shrinkage=SHRINKAGE, streamed=False)
        if settings.kind != "hidden":
            return head, selection
        lessons = [
            _Lesson(*_in_span(*rows), _calibrated(choice.mixture, linears), part.held, part.places)
            for rows, linears, part in zip(training, choice.linears, parts, strict=True)
        ]
        width, stopped = _learn(lessons, held_targets, held_weights, weights, settings.width, seed)
        nothing = np.zeros((0, features.shape[1]), np.float32), np.zeros(0, np.int64)
        last = _Lesson(*_in_span(features, labels), _calibrated(choice.mixture, final), *nothing)
        selection = _with_layer(selection, width, stopped, seed)
        if not stopped.epochs:
            return head, selection
        network = last.network(width, weights, seed)
        for _ in range(stopped.epochs):
            network.epoch()
    layer = network.layer.lifted(last.basis)
    return Head(scaling, *last.base, stopped.temperature, layer), selection


def fit_blocks(
    blocks: Blocks,
    classes: int,
    *,
    validation: Blocks | None = None,
    views: Sequence[Blocks] = (),
    settings: HeadSettings | None = None,
    seed: int = 0,
) -> tuple[Head, Selection]:
    """`fit` on photos that need not fit in memory: time is linear in N, memory flat.

    Candidates are fitted on `CHOOSING` photos at most and held against `HELD_OUT` at most: those of
    `validation`, or of every label each fifth photo or fewer. The best is fitted on all others, for
    the weights of its parts and the temperature; then, from there on, on all photos, those held out too.
    Where the features fit into `settings.memory` they are made once, else in each of some 40
    passes; the head is the same.

    Args:
        blocks: embeddings (Blocks.of for arrays), each label of 0 to classes-1 at least once.
        classes: K.
        validation: photos that are to be held out; fewer than `ENOUGH_VALIDATION` join the others.
        views: other embeddings of the photos of `blocks`, row by row, where `validation` does not join
            them. C is chosen without them; those of photos held out are left out.
        settings: kind, weights of the labels, memory.
        seed: of what is held out, and of all that is random.
    """
    settings = settings or HeadSettings()
    if blocks.count + (validation.count if validation else 0) < MANY:
        return fit(
            *blocks.gather(),
            classes,
            validation=validation.gather() if validation else None,
            views=[view.gather()[0] for view in views],
            settings=settings,
            seed=seed,
        )
    with one_thread(), ExitStack() as stack:
        if validation is not None and validation.count < ENOUGH_VALIDATION:
            if views:
                raise ValueError("views need the validation photos among the blocks, or enough of them")
            blocks, validation = blocks.then(validation), None
        counts = count_labels(blocks, classes)
        if validation is None:
            stride = max(FOLDS, -(-blocks.count // HELD_OUT))
            rest, held = blocks.parted(counts, stride, seed)
            views = [view.parted(counts, stride, seed)[0] for view in views]
        else:
            rest, held = blocks, validation
            if held.count > HELD_OUT:
                of_held = count_labels(held, classes)
                more, held = held.parted(of_held, -(-held.count // HELD_OUT), seed)
                rest = rest.then(more)
            counts = counts + count_labels(validation, classes)
        weights = class_weights(counts, settings.class_weight)

        scaling = scaling_of(rest)
        rest, held = rest.scaled(scaling), Blocks.of(*held.gather()).scaled(scaling)
        rows = rest
        for view in views:
            rows = rows.then(view.scaled(scaling))
        streamed = 4 * rows.count * rows.dimension > settings.memory
        if not streamed:
            rows, held = rows.cached(), held.cached()
            whole, labels = rows.gather()
            rest = Blocks.of(whole[: rest.count], labels[: rest.count]) if views else rows
        held_features, held_targets = held.gather()
        if held.scaling:
            held_features = scaling.features(held_features)
        held_features = np.asarray(held_features, np.float32)
        held_weights = _of_photos(weights, held_targets, settings)
        moments = Moments.of(rows, weights)
        shrinkage = _choose_shrinkage(moments, held_features, held_targets, held_weights, settings.kind)

        copies = 1 + len(views)

        def fitter(part: Blocks, of: Moments, start: Linear | None, copies: int) -> Fitter:
            return Fitter(settings.kind, part, of, weights, start=start, shrinkage=shrinkage, copies=copies)

        sample, places = _sample(rest, classes, seed), np.arange(len(held_targets))
        first = _Part(fitter(sample, moments, None, 1), held_features, places)
        choice = _choose([first], held_targets, held_weights, settings.kind)
        start = choice.linears[0][0]
        if sample is not rest or views:
            linears = fitter(rows, moments, start, copies).at(choice.strength)
            mixture = mix(_logits(linears, held_features), held_targets, held_weights)
            choice = replace(choice, linears=[linears], mixture=mixture)
            start = linears[0]
        selection = _selection(
            "validation", choice, held_targets, settings, shrinkage=shrinkage, streamed=streamed
        )
        if settings.kind == "hidden":
            base = _calibrated(choice.mixture, choice.linears[0])

            def learn(of: Blocks, width: int | None, place: Path | None) -> tuple[int, Stopped]:
                lesson = _Lesson(None, Shuffled(of, seed, place), base, held_features, places)
                return _learn([lesson], held_targets, held_weights, weights, width, seed)

            width = settings.width or learn(sample, None, None)[0]
            directory = (
                Path(stack.enter_context(tempfile.TemporaryDirectory(dir=settings.directory)))
                if streamed
                else None
            )
            _, stopped = learn(rows, width, directory)
            selection = _with_layer(selection, width, stopped, seed)
            if stopped.epochs:
                return Head(scaling, *base, stopped.temperature, stopped.layers[0]), selection
        all_moments = moments + Moments.of(held, weights)
        final = fitter(rows.then(held), all_moments, start, copies).at(choice.strength)
    return _head(scaling, choice.mixture, final), selection


def stratified_folds(targets: Ints, folds: int, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield (rows to fit on, rows held out), each label spread evenly over the folds."""
    random = np.random.default_rng(seed)
    fold_of = np.empty(len(targets), np.int64)
    offset = 0
    for label in np.unique(targets):
        rows = random.permutation(np.flatnonzero(targets == label))
        fold_of[rows] = (np.arange(len(rows)) + offset) % folds
        offset += len(rows)
    for fold in range(folds):
        yield np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)


def _choose(parts: Sequence[_Part], targets: Ints, weights: Floats | None, kind: Kind) -> _Choice:
    """The strength with the least log-loss; while the best is at the edge, the next beyond is tried."""
    candidates, ladder = (SCALES, SCALE_LADDER) if kind == "cosine" else (STRENGTHS, LADDER)
    tried: dict[float, tuple[list[list[Linear]], Mixture]] = {}

    def attempt(strength: float) -> None:
        linears = [part.fitter.at(strength) for part in parts]
        logits = [np.empty((len(targets), linears[0][0][1].shape[0]), np.float32) for _ in linears[0]]
        for part, of_part in zip(parts, linears, strict=True):
            for whole, found in zip(logits, _logits(of_part, part.held), strict=True):
                whole[part.places] = found
        tried[strength] = linears, mix(logits, targets, weights)

    for strength in candidates:
        attempt(strength)
    best = min(tried, key=lambda strength: tried[strength][1].loss)
    step = {candidates[0]: -1, candidates[-1]: 1}.get(best, 0)
    beyond = ladder[ladder.index(best) + step :: step] if step else ()
    for strength in beyond:
        attempt(strength)
        if tried[strength][1].loss > tried[best][1].loss - _GAIN:
            break
        best = strength
    linears, mixture = tried[best]
    losses = {strength: tried[strength][1].loss for strength in sorted(tried)}
    return _Choice(best, linears, mixture, losses)


def _choose_shrinkage(
    moments: Moments, held: Floats, targets: Ints, weights: Floats | None, kind: Kind
) -> float:
    """The discriminant's, by its log-loss at its best temperature."""
    if kind == "cosine":
        return SHRINKAGE
    losses = [mix(_logits([moments.discriminant(s)], held), targets, weights).loss for s in SHRINKAGES]
    return SHRINKAGES[int(np.argmin(losses))]


def _logits(linears: Sequence[Linear], features: Floats) -> list[Floats]:
    """float32 [N,K] of each classifier."""
    return [features @ kernel + bias for kernel, bias in linears]


def _of_photos(weights: Floats, targets: Ints, settings: HeadSettings) -> Floats | None:
    """The weights of the photos' labels; None where all are equal."""
    return None if settings.class_weight == "none" else weights[targets]


def _head(scaling: Scaling, mixture: Mixture, linears: Sequence[Linear]) -> Head:
    kernel, bias = mixture.of(linears)
    return Head(scaling, kernel, bias, mixture.temperature)


def _calibrated(mixture: Mixture, linears: Sequence[Linear]) -> Linear:
    return tempered(mixture.weights, mixture.temperature, linears)


def _selection(
    method: str,
    choice: _Choice,
    targets: Ints,
    settings: HeadSettings,
    *,
    shrinkage: float,
    streamed: bool,
) -> Selection:
    chosen: dict[str, Any] = {
        "kind": settings.kind,
        "class_weight": settings.class_weight,
        "strength": choice.strength,
        "shares": [float(weight) for weight in choice.mixture.weights],
        "temperature": choice.mixture.temperature,
        "held_out": len(targets),
        "streamed": streamed,
    }
    if settings.kind != "cosine":
        chosen["shrinkage"] = shrinkage
    return Selection(method, choice.strength, choice.losses, choice.mixture.probabilities, targets, chosen)


def _sample(blocks: Blocks, classes: int, seed: int) -> Blocks:
    """At most about CHOOSING rows, of all labels, in memory."""
    if blocks.count <= CHOOSING:
        return blocks
    counts = count_labels(blocks, classes)
    return blocks.parted(counts, -(-blocks.count // CHOOSING), seed, first=True)[1].cached()


@dataclass(frozen=True)
class _Lesson:
    """What a hidden layer learns from, and is held against.

    Attributes:
        basis: float32 [D,N] of which the rows are coordinates, None for features.
        rows: to learn from.
        base: the linear classifier of the features, calibrated.
        held: float32 [n,D], features held out.
        places: int64 [n], where they stand among all photos held out.
    """

    basis: Floats | None
    rows: Shuffled
    base: Linear
    held: Floats
    places: Ints

    def network(self, width: int, weights: Floats, seed: int) -> Network:
        """One that has learned nothing yet."""
        kernel, bias = self.base
        base = kernel if self.basis is None else self.basis.T @ kernel
        return Network(self.rows, (base, bias), width, weights, seed)


def _in_span(features: Floats, targets: Ints) -> tuple[Floats | None, Shuffled]:
    basis, coordinates = span(features)
    return basis, Shuffled(Blocks.of(coordinates, targets), 0, None)


def _learn(
    lessons: Sequence[_Lesson],
    targets: Ints,
    held_weights: Floats | None,
    weights: Floats,
    width: int | None,
    seed: int,
) -> tuple[int, Stopped]:
    """The width and the epochs with the least log-loss, and the layers there."""
    held = [
        (lesson.held if lesson.basis is None else lesson.held @ lesson.basis, lesson.places)
        for lesson in lessons
    ]

    def of_width(width: int) -> Stopped:
        networks = [lesson.network(width, weights, seed) for lesson in lessons]
        return stop_early(networks, held, targets, held_weights)

    tried = {width: of_width(width) for width in ((width,) if width else WIDTHS)}
    best = min(tried, key=lambda width: tried[width].loss)
    layers = tuple(
        layer.lifted(lesson.basis) for lesson, layer in zip(lessons, tried[best].layers, strict=True)
    )
    return best, replace(tried[best], layers=layers)


def _with_layer(selection: Selection, width: int, stopped: Stopped, seed: int) -> Selection:
    """The record of a hidden layer; where that was stopped at once, figures stay those of the linear head."""
    settings = selection.settings | {"width": width, "epochs": stopped.epochs, "seed": seed}
    if not stopped.epochs:
        return replace(selection, settings=settings)
    settings["layer_temperature"] = stopped.temperature
    probabilities = softmax(stopped.logits / np.float32(stopped.temperature))
    return replace(selection, probabilities=probabilities, settings=settings)

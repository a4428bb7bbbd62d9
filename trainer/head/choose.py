"""Settings by held-out log-loss, then the fit on all photos."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.head.blocks import Blocks, Shuffled
from trainer.head.calibrate import Mixture, mix
from trainer.head.hidden import WIDTHS, Network, Stopped, stop_early
from trainer.head.linear import (
    EXACT,
    SHRINKAGE,
    Cosine,
    Logistic,
    Moments,
    lifted,
    span,
)
from trainer.head.model import Floats, Head, HiddenLayer, Ints, Linear, Scaling, Vectors, softmax

Kind = Literal["linear", "hidden", "cosine"]
ClassWeight = Literal["none", "balanced"]

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

MANY = 5000
"""Photos from which on a part is held out once, instead of in five folds, and `fit_blocks` fits."""

HELD_OUT = 10_000
"""Most photos that settings are chosen by: log-loss then has a standard error of some .01."""

CHOOSING = 32_768
"""Most photos that candidates are fitted on.

C weighs the loss against what is known beforehand of the weights, which does not depend on the number of
photos; so the C found is then used with all.
"""

MEMORY = 2 << 30
"""Bytes that the features may take, 4 a number: 420,000 photos of 1280 dimensions.

A constant, and no share of the memory that happens to be free, so that the same photos give the
same head everywhere.
"""

_GAIN = 1e-3
"""In log-loss, below which candidates beyond the first ones are not worth going for."""

_ENOUGH = 1e-5
"""Decrease of the log-loss by a step at which the minimum counts as found, to choose by or of many photos."""


@dataclass(frozen=True)
class HeadSettings:
    """What a head is to be.

    Attributes:
        kind: "linear": the mean of logistic regression and a discriminant. "hidden": that, and a
            hidden layer whose output is added to its logits. "cosine": a scale times the cosine
            with one direction a label, and a bias.
        class_weight: "none": every photo counts alike, and probabilities are calibrated for the
            labels' shares among the training photos. That is the default, since it is what a
            probability means as long as the photos to come have those shares. "balanced": every
            label counts alike, in all parts of the fit and in the calibration: rare labels are
            found more often, and probabilities are those where all labels are equally frequent.
        width: of the hidden layer; None lets the held-out log-loss choose.
        memory: bytes that the features may take; beyond, they are read anew in every pass.
    """

    kind: Kind = "linear"
    class_weight: ClassWeight = "none"
    width: int | None = None
    memory: int = MEMORY

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "hidden", "cosine"):
            raise ValueError(f"kind {self.kind!r} is none of linear, hidden, cosine")
        if self.class_weight not in ("none", "balanced"):
            raise ValueError(f"class_weight {self.class_weight!r} is neither none nor balanced")


@dataclass(frozen=True)
class Selection:
    """How the head's settings were chosen.

    Attributes:
        method: "validation" or "cross-validation".
        strength: the C taken; of a cosine head the scale.
        losses: log-loss for each candidate C or scale, weighted as the settings say.
        probabilities: float32 [N,K] of the held-out photos, calibrated, at the settings taken.
        targets: int64 [N], their classes.
        settings: for the records: kind, class_weight, and what was chosen: strength, shrinkage,
            width, epochs, photos held out, whether the features were streamed.
    """

    method: str
    strength: float
    losses: dict[float, float]
    probabilities: Floats
    targets: Ints
    settings: dict[str, Any] = field(default_factory=dict)


def class_weights(counts: Ints, how: ClassWeight) -> Floats:
    """float32 [K]: ones, or what makes every label that has photos count alike and all photos together N.

    Args:
        counts: int64 [K], photos of each label.
        how: "none" or "balanced".
    """
    if how == "none":
        return np.ones(len(counts), np.float32)
    present = counts > 0
    weights = counts.sum() / (max(int(present.sum()), 1) * np.maximum(counts, 1))
    return np.asarray(np.where(present, weights, 1.0), np.float32)


class _Fitter:
    """The linear classifiers of a kind on some rows: one a C or scale, and one that needs none.

    Args:
        kind: "cosine" or another.
        features: the rows.
        moments: of them, or of more of their kind.
        weights: float32 [K], of the labels.
        start: where the descent begins.
        decrease: at which it ends.
        shrinkage: of the discriminant.
        basis: float32 [D,N] of which the rows are coordinates.
        copies: rows of each photo. C weighs the sum over rows: with more of them less, so that it
            means the same.
    """

    def __init__(
        self,
        kind: Kind,
        features: Blocks,
        moments: Moments,
        weights: Floats,
        *,
        start: Linear | None = None,
        decrease: float = _ENOUGH,
        shrinkage: float = SHRINKAGE,
        basis: Floats | None = None,
        copies: int = 1,
    ) -> None:
        self._basis = basis
        self._share = 1.0 if kind == "cosine" else 1.0 / copies
        family = Cosine if kind == "cosine" else Logistic
        self._family = family(features, moments, weights, start=start, decrease=decrease)
        self._fixed: list[Linear] = []
        if kind != "cosine":
            dimension = None if basis is None else len(basis)
            self._fixed = [lifted(basis, moments.discriminant(shrinkage, dimension))]

    @classmethod
    def on_few(
        cls,
        kind: Kind,
        features: Floats,
        targets: Ints,
        weights: Floats,
        *,
        decrease: float = _ENOUGH,
        copies: int = 1,
    ) -> _Fitter:
        """On rows that are solved in their span: float32 [N,D], int64 [N]."""
        basis, coordinates = span(features)
        blocks = Blocks.of(coordinates, targets)
        moments = Moments.of(blocks, weights)
        return cls(kind, blocks, moments, weights, basis=basis, decrease=decrease, copies=copies)

    def at(self, strength: float) -> list[Linear]:
        """For a C or scale; the descent begins where the one before it ended."""
        return [lifted(self._basis, self._family.at(strength * self._share)), *self._fixed]


@dataclass(frozen=True)
class _Part:
    """Photos held out, and what is fitted on others.

    Attributes:
        fitter: on the others.
        held: float32 [n,D], features held out.
        places: int64 [n], where they stand among all photos held out.
    """

    fitter: _Fitter
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

    with _one_thread():
        parts, training = [], []
        for fitted, held in folds:
            scaling, features, labels = seen(fitted)
            fitter = _Fitter.on_few(settings.kind, features, labels, weights, copies=copies)
            parts.append(_Part(fitter, scaling.features(embeddings[held]), held - (apart or 0)))
            training.append((features, labels))
        choice = _choose(parts, held_targets, held_weights, settings.kind)

        scaling, features, labels = seen(rows)
        fitter = _Fitter.on_few(settings.kind, features, labels, weights, decrease=EXACT, copies=copies)
        final = fitter.at(choice.strength)
        head = _head(scaling, choice.mixture, final)
        selection = _selection(method, choice, held_targets, settings, shrinkage=SHRINKAGE, streamed=False)
        if settings.kind != "hidden":
            return head, selection
        lessons = [
            _Lesson(*_in_span(*rows), _tempered(choice.mixture, linears), part.held, part.places)
            for rows, linears, part in zip(training, choice.linears, parts, strict=True)
        ]
        width, stopped = _learn(lessons, held_targets, held_weights, weights, settings.width, seed)
        nothing = np.zeros((0, features.shape[1]), np.float32), np.zeros(0, np.int64)
        last = _Lesson(*_in_span(features, labels), _tempered(choice.mixture, final), *nothing)
        selection = _with_layer(selection, width, stopped)
        if not stopped.epochs:
            return head, selection
        network = last.network(width, weights, seed)
        for _ in range(stopped.epochs):
            network.epoch()
    layer = last.layer(network.layer)
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
    with _one_thread(), ExitStack() as stack:
        if validation is not None and validation.count < ENOUGH_VALIDATION:
            if views:
                raise ValueError("views need the validation photos among the blocks, or enough of them")
            blocks, validation = blocks.then(validation), None
        counts = _counts(blocks, classes)
        if validation is None:
            stride = max(FOLDS, -(-blocks.count // HELD_OUT))
            rest, held = blocks.parted(counts, stride, seed)
            views = [view.parted(counts, stride, seed)[0] for view in views]
        else:
            rest, held = blocks, validation
            if held.count > HELD_OUT:
                of_held = _counts(held, classes)
                more, held = held.parted(of_held, -(-held.count // HELD_OUT), seed)
                rest = rest.then(more)
            counts = counts + _counts(validation, classes)
        weights = class_weights(counts, settings.class_weight)

        scaling = _scaling(rest)
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

        def fitter(part: Blocks, of: Moments, start: Linear | None, copies: int) -> _Fitter:
            return _Fitter(settings.kind, part, of, weights, start=start, shrinkage=shrinkage, copies=copies)

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
            base = _tempered(choice.mixture, choice.linears[0])

            def learn(of: Blocks, width: int | None, place: Path | None) -> tuple[int, Stopped]:
                lesson = _Lesson(None, Shuffled(of, seed, place), base, held_features, places)
                return _learn([lesson], held_targets, held_weights, weights, width, seed)

            width = settings.width or learn(sample, None, None)[0]
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory())) if streamed else None
            _, stopped = learn(rows, width, directory)
            selection = _with_layer(selection, width, stopped)
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """A BLAS on one thread: of matrices this small its threads wait for each other longer than they work.

    Measured on two cores, 3 s of processor time with one thread and 39 s with two. Blocks are
    worked on in parallel instead (Blocks.each).
    """
    from threadpoolctl import threadpool_limits

    # SciPy brings a BLAS of its own, which can be limited only once it is loaded.
    import_module("scipy.linalg")
    with threadpool_limits(1, user_api="blas"):
        yield


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


def _tempered(mixture: Mixture, linears: Sequence[Linear]) -> Linear:
    """The classifiers as one, whose logits are calibrated."""
    kernel, bias = mixture.of(linears)
    return kernel / np.float32(mixture.temperature), bias / np.float32(mixture.temperature)


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
        "held_out": len(targets),
        "streamed": streamed,
    }
    if settings.kind != "cosine":
        chosen["shrinkage"] = shrinkage
    return Selection(method, choice.strength, choice.losses, choice.mixture.probabilities, targets, chosen)


def _counts(blocks: Blocks, classes: int) -> Ints:
    """int64 [K], rows of each label."""
    counts = np.zeros(classes, np.int64)
    for _, targets in blocks.read():
        counts += np.bincount(targets, minlength=classes)
    return counts


def _scaling(blocks: Blocks) -> Scaling:
    """As Scaling.of, in one pass (Chan, Golub and LeVeque 1983, pairwise)."""

    def work(rows: Floats, _: Ints) -> tuple[int, Floats, Floats]:
        mean = rows.mean(axis=0)
        rows = rows - mean
        return len(rows), mean, np.einsum("nd,nd->d", rows, rows)

    count, mean, squares = 0, np.zeros(blocks.dimension), np.zeros(blocks.dimension)
    for more, of_block, spread in blocks.each(work):
        gap = of_block - mean
        total = count + more
        squares += spread + gap**2 * (count * more / total)
        mean += gap * (more / total)
        count = total
    deviation = np.sqrt(squares / count)
    return Scaling.from_moments(mean.astype(np.float32), deviation.astype(np.float32))


def _sample(blocks: Blocks, classes: int, seed: int) -> Blocks:
    """At most about CHOOSING rows, of all labels, in memory."""
    if blocks.count <= CHOOSING:
        return blocks
    counts = _counts(blocks, classes)
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

    def layer(self, layer: HiddenLayer) -> HiddenLayer:
        """For the features."""
        return layer if self.basis is None else replace(layer, kernel=self.basis @ layer.kernel)


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
    layers = tuple(map(_Lesson.layer, lessons, tried[best].layers))
    return best, replace(tried[best], layers=layers)


def _with_layer(selection: Selection, width: int, stopped: Stopped) -> Selection:
    """The record of a hidden layer; where that was stopped at once, figures stay those of the linear head."""
    settings = selection.settings | {"width": width, "epochs": stopped.epochs}
    if not stopped.epochs:
        return replace(selection, settings=settings)
    probabilities = softmax(stopped.logits / np.float32(stopped.temperature))
    return replace(selection, probabilities=probabilities, settings=settings)

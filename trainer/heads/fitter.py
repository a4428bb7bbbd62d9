"""The linear classifiers of a kind on some rows, and what every fit of them needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import numpy as np

from trainer.heads.calibration import sum_of
from trainer.heads.head import Floats, Ints, Linear, Scaling
from trainer.heads.linear import SHRINKAGE, Cosine, Logistic, Moments, lifted, span
from trainer.heads.settings import Kind
from trainer.heads.streaming import Blocks

ENOUGH = 1e-5
"""Decrease of the log-loss by a step at which the minimum counts as found, to choose by or of many photos."""


class Fitter:
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
        decrease: float = ENOUGH,
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
        decrease: float = ENOUGH,
        shrinkage: float = SHRINKAGE,
        copies: int = 1,
    ) -> Fitter:
        """On rows that are solved in their span: float32 [N,D], int64 [N]."""
        basis, coordinates = span(features)
        blocks = Blocks.of(coordinates, targets)
        moments = Moments.of(blocks, weights)
        return cls(
            kind,
            blocks,
            moments,
            weights,
            basis=basis,
            decrease=decrease,
            shrinkage=shrinkage,
            copies=copies,
        )

    def at(self, strength: float) -> list[Linear]:
        """For a C or scale; the descent begins where the one before it ended."""
        return [lifted(self._basis, self._family.at(strength * self._share)), *self._fixed]


@contextmanager
def one_thread() -> Iterator[None]:
    """A BLAS on one thread within: of small matrices its threads wait for each other longer than they work.

    Measured on two cores, 3 s of processor time with one thread and 39 s with two. Blocks are
    worked on in parallel instead (Blocks.each).
    """
    from threadpoolctl import threadpool_limits

    # SciPy brings a BLAS of its own, which can be limited only once it is loaded.
    import_module("scipy.linalg")
    with threadpool_limits(1, user_api="blas"):
        yield


def count_labels(blocks: Blocks, classes: int) -> Ints:
    """int64 [K], rows of each label."""
    counts = np.zeros(classes, np.int64)
    for _, targets in blocks.read():
        counts += np.bincount(targets, minlength=classes)
    return counts


def scaling_of(blocks: Blocks) -> Scaling:
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


def tempered(shares: Sequence[float | np.float32], temperature: float, linears: Sequence[Linear]) -> Linear:
    """The sum of classifiers, each times its share, as one whose logits are calibrated."""
    factors = [np.float32(share) for share in shares]
    kernels, biases = zip(*linears, strict=True)
    kernel, bias = sum_of(factors, kernels), sum_of(factors, biases)
    return kernel / np.float32(temperature), bias / np.float32(temperature)

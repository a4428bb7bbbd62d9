"""Novelty score: rejects photos that are unlike all photos of the known labels.

Scores compared on the sample photos, with 3 (2) of the 10 labels hidden from training in 20 draws each
and known photos out of fold (`tests.support.open_set`). The columns show how many hidden photos are
rejected at the stated fraction of known photos kept:

| score | AUROC | at 95 % kept | at 90 % kept |
|---|---|---|---|
| best probability (Hendrycks and Gimpel 2017) | .73 (.73) | 16 % (16 %) | 28 % (27 %) |
| energy: logsumexp of the logits (Liu et al. 2020) | .77 (.76) | 21 % (21 %) | 35 % (34 %) |
| largest logit (Hendrycks et al. 2022) | .76 (.75) | 19 % (19 %) | 31 % (32 %) |
| Mahalanobis of features, shrunken covariance (Lee et al. 2018) | .75 (.74) | 29 % (28 %) | 38 % (36 %) |
| the same on the discriminant's K-1 directions | .69 (.70) | 11 % (10 %) | 23 % (22 %) |
| relative Mahalanobis of features (Ren et al. 2021) | .75 (.75) | 21 % (22 %) | 35 % (33 %) |
| 10 nearest neighbours of features (Sun et al. 2022) | .74 (.73) | 28 % (28 %) | 38 % (36 %) |
| residual of features outside 32 principal directions | .74 (.73) | 31 % (30 %) | 38 % (37 %) |
| energy and Mahalanobis of features | .78 (.77) | 29 % (28 %) | 41 % (40 %) |
| energy and residual of features | .78 (.77) | 30 % (30 %) | 42 % (40 %) |
| energy and Mahalanobis of embeddings of length one | .79 (.78) | 28 % (29 %) | 41 % (40 %) |
| energy and 10 nearest neighbours of the same | .79 (.78) | 25 % (26 %) | 39 % (40 %) |
| energy and residual of the same: **chosen** | .79 (.78) | 29 % (29 %) | 41 % (41 %) |

The energy detects photos that activate no label; a distance detects those that activate one and lie
elsewhere. Blank pictures (grey, white, black, noise) are not detected by the features, which are relative
to the known photos' mean and deviation, but they are by embeddings of length one. The residual is the
distance that costs least in a graph. The sum is that of ViM (Wang et al. 2022, "ViM: Out-Of-Distribution
with Virtual-logit Matching"); here both terms are in units of their standard deviation over known photos
out of fold, so that nothing is tuned on unknown ones.

The hidden labels are foods as the known ones are, the hardest kind of unknown photo. A score of this kind
separates them about as well as the head separates the known labels (Vaze et al. 2022, "Open-Set
Recognition: a Good Closed-Set Classifier is All You Need?").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from serving.errors import InputError
from trainer import heads
from trainer.evaluation.metrics import Proportion, proportion
from trainer.heads import Blocks, Doubles, Floats, Head, HeadSettings, Ints, Selection, Vectors

Bools = NDArray[np.bool_]

DIRECTIONS = 32
"""Principal directions of the known photos: 16 detect a little less on the sample photos, 64 nothing more."""

MAX_DIRECTIONS = 256
"""Upper limit where there are many labels: one direction a label, since their means lie apart."""

FOLDS = 10
"""Folds of the known photos that the threshold is chosen by.

A score fitted on fewer photos finds an unseen one more novel. On the sample photos a threshold that
is to keep 95 % then keeps 97 % with 5 folds, 96 % with 10 and 95 % with 20.
"""

KEPT = 0.95
"""Fraction of known photos that the novelty score accepts by default."""

ENOUGH_HELD_OUT = 2000
"""Held-out photos after which no more folds are fitted: enough to keep 95 % to within one percent."""


@dataclass(frozen=True)
class Novelty:
    """A score of how unlike the known photos a photo is, computed from its embedding.

    With e the embedding float32 [N,D] and the head's own mean, scale, kernel, bias and temperature:

        features = l2_normalize((e - mean) * scale)                                      # [N,D]
        energy   = logsumexp((features @ kernel + bias) / temperature, axis=1)           # [N]
                   # with a hidden layer its part of the logits too (trainer.heads.Head)
        off      = l2_normalize(e) - centre                                              # [N,D]
        residual = sqrt(max(sum(off**2, axis=1) - sum((off @ directions)**2, axis=1), 0))
        score    = residual_weight * residual - energy_weight * energy                   # [N]

    The photo is rejected where score > threshold. The logits are those that the head computes anyway,
    so the score costs one product with a matrix [D,R].

    Attributes:
        head: head whose scaling, kernel, bias and temperature are used.
        centre: float32 [D], mean of the known photos' embeddings of length one.
        directions: float32 [D,R], their principal directions, orthonormal.
        residual_weight, energy_weight: reciprocal of each term's standard deviation over known photos
            out of fold.
        threshold: highest score that is accepted.
        known: float32 [M], ascending, scores of known photos out of fold, from which `with_kept`
            chooses the threshold.
    """

    head: Head
    centre: Floats
    directions: Floats
    residual_weight: float
    energy_weight: float
    threshold: float
    known: Floats = field(repr=False)

    @classmethod
    def fit(
        cls,
        fitted: Head,
        selection: Selection,
        embeddings: Vectors,
        targets: Ints,
        *,
        rows: Ints | None = None,
        kept: float = KEPT,
        settings: HeadSettings | None = None,
        seed: int = 0,
    ) -> Novelty:
        """Fit the score on the photos that the head was fitted on; weights and threshold come out of fold.

        For each fold a head with the same settings is fitted on the other folds, since a head is more
        confident of photos that it has seen. It stops when ENOUGH_HELD_OUT photos have been held out.
        Photos are processed in blocks, so that they need not fit in memory.

        Args:
            fitted: head fitted on all these photos.
            selection: how the head's settings were chosen.
            embeddings: float32 or float16 [N,D], in memory or mapped from a file.
            targets: int64 [N], classes.
            rows: int64 [n], the photos that the head was fitted on; None for all.
            kept: fraction of known photos to accept, above 0, at most 1.
            settings: settings of the head, of which memory and directory are used.
            seed: seed of the folds.

        Raises:
            InputError: `kept` is out of range.
        """
        check_kept(kept)
        rows = np.arange(len(targets)) if rows is None else rows
        classes = len(fitted.bias)

        def blocks(chosen: Ints) -> Blocks:
            return Blocks.from_array(embeddings, targets, chosen=rows[chosen])

        with heads.single_blas_thread():
            parts: list[Floats] = []
            for rest, held in heads.stratified_folds(targets[rows], FOLDS, seed):
                if sum(part.shape[1] for part in parts) >= ENOUGH_HELD_OUT:
                    break
                # Everything that is fitted sees `rest` alone, so that the scores of `held` are unbiased.
                model = heads.refit(blocks(rest), classes, selection, settings=settings)
                parts.append(compute_terms(model, *_fit_directions(blocks(rest), classes), blocks(held)))
            centre, directions = _fit_directions(blocks(np.arange(len(rows))), classes)
        terms = np.concatenate(parts, axis=1)
        weights = _inverse_deviation(terms[0]), _inverse_deviation(terms[1])
        known = np.sort(_subtract_energy(terms, *weights))
        return cls(fitted, centre, directions, *weights, math.inf, known).with_kept(kept)

    def with_kept(self, kept: float) -> Novelty:
        """Return a copy with the lowest threshold that accepts this fraction of the known photos.

        Raises:
            InputError: `kept` is out of range.
        """
        check_kept(kept)
        place = math.ceil(kept * len(self.known) - 1e-9) - 1
        return replace(self, threshold=float(self.known[place]))

    @property
    def kept(self) -> Proportion:
        """Fraction of the known photos out of fold that are accepted."""
        return proportion(int((self.known <= self.threshold).sum()), len(self.known))

    def score(self, embeddings: Vectors) -> Floats:
        """Return the scores float32 [N] of embeddings float32 or float16 [N,D].

        The higher a score, the less the photo is like the known ones.
        """
        blocks = Blocks.from_array(embeddings, np.zeros(len(embeddings), np.int64))
        terms = compute_terms(self.head, self.centre, self.directions, blocks)
        return _subtract_energy(terms, self.residual_weight, self.energy_weight)

    def is_novel(self, embeddings: Vectors) -> Bools:
        """Return bool [N]: True for photos that are rejected as unlike the known ones."""
        return self.score(embeddings) > np.float32(self.threshold)


def check_kept(kept: float) -> None:
    """Check a fraction of known photos to keep.

    Raises:
        InputError: it is not above 0 and at most 1.
    """
    if not 0 < kept <= 1:
        raise InputError(
            f"The fraction of photos to keep, {kept:g}, is out of range.",
            remedy="Give one above 0, and at most 1, such as 0.95.",
        )


def compute_terms(model: Head, centre: Floats, directions: Floats, embeddings: Blocks) -> Floats:
    """Return residual and energy, float32 [2,N]."""

    def compute_block(rows: Floats, _: Ints) -> Floats:
        logits = model.logits(rows)
        highest = logits.max(axis=1)
        # logsumexp; the highest logit is taken out so that exp does not overflow.
        energy = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        off = _l2_normalize(rows) - centre
        outside = (off**2).sum(axis=1) - ((off @ directions) ** 2).sum(axis=1)
        return np.stack([np.sqrt(np.maximum(outside, 0)), energy]).astype(np.float32)

    return np.concatenate([np.zeros((2, 0), np.float32), *embeddings.map(compute_block)], axis=1)


def _l2_normalize(embeddings: Floats) -> Floats:
    """Return the rows float32 [N,D] scaled to length one; a row of zeros stays as it is."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(lengths, 1e-12), np.float32)


def _fit_directions(embeddings: Blocks, classes: int) -> tuple[Floats, Floats]:
    """Return the mean [D] and the principal directions [D,R] of embeddings scaled to length one.

    R is DIRECTIONS or the number of labels, but at most MAX_DIRECTIONS, at most a quarter of the photos,
    so that the directions are well determined, and at most half of the dimensions, so that something
    is left outside.
    """
    from scipy.linalg import eigh

    count, dimension = embeddings.count, embeddings.dimension
    rank = max(1, min(max(DIRECTIONS, classes), MAX_DIRECTIONS, count // 4, dimension // 2))
    if count < dimension:
        # Fewer photos than dimensions: the Gram matrix [N,N] has the same spectrum and is smaller.
        points = _l2_normalize(np.asarray(embeddings.gather()[0], np.float32))
        centre = points.mean(axis=0, dtype=np.float64).astype(np.float32)
        off = points - centre
        gram = (off @ off.T).astype(np.float64)
        _, vectors = eigh(gram, subset_by_index=(count - rank, count - 1))
        directions, _ = np.linalg.qr(off.T.astype(np.float64) @ vectors)
        return centre, np.ascontiguousarray(directions, np.float32)

    def sum_block(rows: Floats, _: Ints) -> tuple[Doubles, Floats]:
        points = _l2_normalize(rows)
        return points.sum(axis=0, dtype=np.float64), points.T @ points

    # Otherwise the covariance [D,D], summed block by block in float64.
    total, products = embeddings.sum(sum_block)
    mean = total / count
    scatter = products - count * np.outer(mean, mean)
    _, directions = eigh(scatter, subset_by_index=(dimension - rank, dimension - 1))
    return mean.astype(np.float32), np.ascontiguousarray(directions, np.float32)


def _subtract_energy(terms: Floats, residual_weight: float, energy_weight: float) -> Floats:
    """Return the scores float32 [N] of residuals and energies, float32 [2,N]."""
    return np.float32(residual_weight) * terms[0] - np.float32(energy_weight) * terms[1]


def _inverse_deviation(values: Floats) -> float:
    """Return 1 / standard deviation, or 0 for constant values, which carry no information."""
    deviation = float(values.std(dtype=np.float64))
    return float(np.float32(1 / deviation)) if deviation > 1e-6 else 0.0

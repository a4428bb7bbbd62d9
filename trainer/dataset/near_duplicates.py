"""Duplicate photos: identical files, the same photo under different labels, and near-duplicates.

Near-duplicates are photos whose embeddings have a cosine similarity of THRESHOLD or more: re-encoded,
scaled or slightly cropped copies, and shots of one scene. If one of them is in the test set and
another in the training set, the test figures are too optimistic (train-test leakage).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batch.monitoring.stats import Progress
from serving.errors import InputError
from trainer.dataset.dataset import Example, Subset, group_identical
from trainer.dataset.similarity_graph import SimilarityGraph

THRESHOLD = 0.93
"""Minimum cosine similarity of near-duplicates.

Measured with EfficientNet-Lite0 on the 406 distinct sample photos. No two of them show the same
picture; the most similar of their 82,215 pairs have .921 and .889: two foods arranged alike on
the same table. Of copies made of every second photo, these shares are at .93 or above:

    JPEG quality 90          100 %      cropped to 95 % of each side    94 %
    JPEG quality 75           99 %      cropped to 90 %                 77 %
    JPEG quality 40           92 %      cropped to 80 %                 21 %
    scaled to double size    100 %      mirrored                        98 %
    scaled to half size       45 %      15 % brighter                   98 %

The photos are 307 pixels wide; half of that is below the backbone's 224, so the copies are blurred.
A threshold of .90 would find 71 % of the halved copies and 93 % of the crops to 90 %, with one wrong
pair; .95 finds 20 % and 52 %. Subtracting the mean embedding first separates worse. Other backbones,
and photos that all look alike, such as those of one fixed camera, need their own threshold.
"""

LIMIT = 100_000
"""Maximum number of photos for which every pair is compared. The time grows quadratically: this many
embeddings of 1,280 floats (EfficientNet-Lite0) take minutes on two cores."""

LARGE_GROUP_SHARE = 0.1
"""A group with more than this share of the photos indicates that the threshold is too low."""

_BLOCK = 1024

_DIRECTIONS = 96
"""Number of principal directions in the upper bound on the cosines: see `_sketch`."""

_DIRECTIONS_SAMPLE = 4096
"""Photos that the directions are computed from; with fewer photos the bound does not pay off."""

_SLACK = 1e-3
"""Tolerance for rounding errors in the upper bound."""

_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class NearDuplicates:
    """Near-duplicates among some embeddings.

    Attributes:
        together: ascending rows of each connected component of near-duplicates, in the order of their
            first rows; each photo is a near-duplicate of another in it, not of every other.
        similarities: float32 [N], each photo's highest cosine with a near-duplicate; 0 if it has none.
        threshold: minimum cosine of near-duplicates.
        compared: number of photos that were compared with all others.
        photos: number of all photos.
    """

    together: tuple[tuple[int, ...], ...]
    similarities: _Floats
    threshold: float
    compared: int
    photos: int


@dataclass(frozen=True)
class DuplicatePhoto:
    """One photo of a group of duplicates.

    Attributes:
        uri: path or address of the photo.
        label: name of the label.
        subset: set that the photo is in, or was predefined for.
        similarity: highest cosine with another photo of the group; 1 for identical files.
    """

    uri: str
    label: str
    subset: Subset
    similarity: float = 1.0


@dataclass(frozen=True)
class DuplicateGroup:
    """Photos that are duplicates of one another."""

    pictures: tuple[DuplicatePhoto, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the photos, each once, sorted."""
        return tuple(sorted({picture.label for picture in self.pictures}))

    @property
    def subsets(self) -> frozenset[Subset]:
        """Sets that the photos are in."""
        return frozenset(picture.subset for picture in self.pictures)

    @property
    def across_sets(self) -> bool:
        """True if the photos are in different sets, which makes the figures of these sets dependent."""
        return len(self.subsets) > 1


@dataclass(frozen=True)
class DuplicateReport:
    """Duplicates of a dataset, as the report shows them.

    Attributes:
        exact: groups of identical files, of one label or of several.
        near: groups of near-duplicates, with identical files once for each label.
        threshold, compared, photos: see NearDuplicates.
    """

    exact: tuple[DuplicateGroup, ...]
    near: tuple[DuplicateGroup, ...]
    threshold: float
    compared: int
    photos: int

    @property
    def label_conflicts(self) -> tuple[DuplicateGroup, ...]:
        """Identical files under different labels."""
        return tuple(group for group in self.exact if len(group.labels) > 1)

    @property
    def near_label_conflicts(self) -> tuple[DuplicateGroup, ...]:
        """Near-duplicates under different labels."""
        return tuple(group for group in self.near if len(group.labels) > 1)

    @property
    def across_sets(self) -> tuple[DuplicateGroup, ...]:
        """Near-duplicates in different sets, which make the figures too optimistic."""
        return tuple(group for group in self.near if group.across_sets)

    def leaked_photos(self, subset: Subset = Subset.TESTING) -> tuple[DuplicatePhoto, ...]:
        """Return the photos of a set that have a near-duplicate in the training set."""
        return tuple(
            picture
            for group in self.near
            if Subset.TRAINING in group.subsets
            for picture in group.pictures
            if picture.subset is subset
        )

    def describe(self) -> Iterator[str]:
        """Yield messages about the duplicates for the user, one sentence each."""
        if self.exact:
            files = sum(len(group.pictures) for group in self.exact)
            yield f"{files} files are identical to others; they are {len(self.exact)} distinct photos."
        if repeated := sum(group.across_sets for group in self.exact):
            yield f"{repeated} photos are in several predefined sets; each counts only for the held-out set."
        if self.label_conflicts:
            yield f"{len(self.label_conflicts)} photos have more than one label."
        sizes = [len(group.pictures) for group in self.near]
        if sizes:
            conflicts = len(self.near_label_conflicts)
            labels = f", {conflicts} of them with different labels" if conflicts else ""
            yield (
                f"{sum(sizes)} photos are near-duplicates (cosine {self.threshold:g} or more), "
                f"in {len(sizes)} groups{labels}."
            )
        if leaked := self.leaked_photos():
            yield (
                f"{len(leaked)} test photos have a near-duplicate in the training set: "
                "the test figures are too optimistic."
            )
        if max(sizes, default=0) > max(2, LARGE_GROUP_SHARE * self.photos):
            yield (
                f"One group of near-duplicates contains over {LARGE_GROUP_SHARE:.0%} of the photos: "
                f"a threshold of {self.threshold:g} is too low for this dataset."
            )
        if self.compared < self.photos:
            yield (
                f"Only {self.compared} of {self.photos} photos were compared with all others, "
                "since the time grows quadratically; there may be more near-duplicates."
            )


def find_near_duplicates(
    embeddings: NDArray[np.floating],
    threshold: float = THRESHOLD,
    *,
    limit: int = LIMIT,
    progress: Callable[[Progress], None] | None = None,
) -> NearDuplicates:
    """Group the photos whose embeddings have a cosine of `threshold` or more.

    Cosines are computed block by block: beyond the embeddings this takes less than 100 MiB and about
    420 bytes per photo, however many near-duplicates there are. Most blocks are skipped by an upper
    bound on their cosines (`_sketch`), which never misses a pair.

    Above `limit` photos, only the first limit**2 / 2N photos are compared with all others, which takes
    the same time.

    Args:
        embeddings: float16 or float32 [N,D]; never copied as a whole.
        threshold: minimum cosine, above 0 and at most 1.
        limit: maximum number of photos for which every pair is compared.
        progress: called after each block of rows.

    Raises:
        InputError: the threshold is not a cosine.
    """
    if not 0 < threshold <= 1:
        raise InputError(
            f"The threshold of near-duplicates, {threshold:g}, is not a cosine similarity.",
            remedy="Give a cosine similarity above 0 and at most 1, such as 0.93.",
        )
    count = len(embeddings)
    every = count <= limit
    compared = count if every else max(1, limit**2 // (2 * count))
    links = SimilarityGraph(count)
    sketch = _sketch(embeddings)
    for start in range(0, compared, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, compared))
        left = _unit(embeddings[block])
        # The matrix of cosines is symmetric: where every row is compared, one half of it is enough.
        for low in range(start if every else 0, count, _BLOCK):
            # Only rows whose bound reaches the threshold anywhere in the block are multiplied out.
            bounds = sketch[block] @ sketch[low : low + _BLOCK].T
            near = np.flatnonzero(bounds.max(axis=1) >= threshold - _SLACK)
            if len(near):
                right = _unit(embeddings[low : low + _BLOCK])
                links.add(block[near], np.arange(low, low + len(right)), left[near] @ right.T, threshold)
        if progress:
            done = start + len(block)
            # The number of blocks to the right shrinks with each row block, hence the square.
            share = 1 - (1 - done / compared) ** 2 if every else done / compared
            progress(Progress(round(share * compared), compared, 0))
    groups = tuple(tuple(group.tolist()) for group in links.groups())
    return NearDuplicates(groups, links.nearest.clip(max=1.0), threshold, compared, count)


def _sketch(embeddings: NDArray[np.floating]) -> _Floats:
    """Return float32 [N,R] whose inner products are upper bounds of the embeddings' cosines.

    The columns are the coordinates in _DIRECTIONS principal directions and the length of the rest
    outside them: by the inequality of Cauchy and Schwarz, the product of the lengths is at least the
    inner product of the rests. Small inputs get a single column of ones, the trivial bound.
    """
    count, dimension = embeddings.shape
    if dimension <= 2 * _DIRECTIONS or count <= _DIRECTIONS_SAMPLE:
        return np.ones((count, 1), np.float32)
    sample = _unit(embeddings[:: -(-count // _DIRECTIONS_SAMPLE)])
    _, vectors = np.linalg.eigh(sample.T @ sample)
    directions = vectors[:, -_DIRECTIONS:].astype(np.float32)
    sketch = np.empty((count, _DIRECTIONS + 1), np.float32)
    for start in range(0, count, _BLOCK):
        rows = _unit(embeddings[start : start + _BLOCK])
        inside = rows @ directions
        outside = np.einsum("nd,nd->n", rows, rows) - np.einsum("nd,nd->n", inside, inside)
        sketch[start : start + _BLOCK, :-1] = inside
        sketch[start : start + _BLOCK, -1] = np.sqrt(np.maximum(outside, 0))
    return sketch


def build_report(
    files: Sequence[Example],
    examples: Sequence[Example],
    subsets: Sequence[Subset],
    near: NearDuplicates,
    labels: Sequence[str],
) -> DuplicateReport:
    """Combine identical files and near-duplicates into a report.

    Args:
        files: all usable files, copies included.
        examples: distinct examples (`dataset.select_distinct`).
        subsets: sets of the examples.
        near: near-duplicates among the examples' embeddings.
        labels: label names.
    """
    kept = {
        (example.sha256, example.label): (example, subset)
        for example, subset in zip(examples, subsets, strict=True)
    }

    def describe_photo(file: Example, similarity: float = 1.0) -> DuplicatePhoto:
        used, subset = kept[file.sha256, file.label]
        # Of copies in several predefined sets one is used; the others are shown with the set of their own.
        if file.uri != used.uri and used.subset is not Subset.TRAINING:
            subset = file.subset
        return DuplicatePhoto(file.uri, labels[file.label], subset, similarity)

    exact = [DuplicateGroup(tuple(describe_photo(file) for file in same)) for same in group_identical(files)]
    alike = [
        DuplicateGroup(tuple(describe_photo(examples[row], float(near.similarities[row])) for row in rows))
        for rows in near.together
        if len({examples[row].sha256 for row in rows}) > 1
    ]
    return DuplicateReport(tuple(exact), tuple(alike), near.threshold, near.compared, near.photos)


def _unit(vectors: NDArray[np.floating]) -> _Floats:
    """Return float32 rows of length one; rows of zeros stay zeros."""
    vectors = vectors.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)

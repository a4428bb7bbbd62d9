"""Photos that are there more than once: identical files, contradictory labels, near-duplicates.

Near-duplicates are photos whose embeddings have a cosine of THRESHOLD or more: re-encoded, scaled or
slightly cropped copies, and shots of one scene. Where one stands in the test set and one in the
training set, the test figures flatter the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batch.monitoring.stats import Progress
from serving.errors import InputError
from trainer.dataset import Example, Subset, same_content

THRESHOLD = 0.93
"""Cosine from which two photos are near-duplicates.

Measured with EfficientNet-Lite0 on the 406 distinct sample photos. No two of them are the same
picture, and of their 82,215 pairs the most alike have .921, then .889: two foods laid out alike
on the same table. Of copies made of every second photo, this share is at .93 or above:

    JPEG quality 90          100 %      cropped to 95 % of each side    94 %
    JPEG quality 75           99 %      cropped to 90 %                 77 %
    JPEG quality 40           92 %      cropped to 80 %                 21 %
    scaled to double size    100 %      mirrored                        98 %
    scaled to half size       45 %      15 % brighter                   98 %

They are 307 pixels wide; half of that is less than the backbone's 224, which blurs. At .90 it
would be 71 % of the halves and 93 % of the crops to 90 %, with one wrong pair; at .95 it is 20 %
and 52 %. Subtracting the mean embedding first separates worse. Other backbones, and photos that
all look alike, such as those of one fixed camera, want a threshold of their own.
"""

LIMIT = 100_000
"""Photos that are all compared with one another. The time grows with their square: this many,
of EfficientNet-Lite0's 1,280 floats each, take minutes on two cores."""

MANY = 0.1
"""A group of more than this share of the photos says that the threshold is too low for them."""

_BLOCK = 1024

_DIRECTIONS = 96
_SEEN = 4096
"""Photos that directions are found by; below, the products themselves cost less."""

_SLACK = 1e-3
"""Of float arithmetic in a bound."""

_MAX_LINKS = 1 << 20

_Floats = NDArray[np.float32]
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class NearGroup:
    """Photos joined by near-duplicates: each is one of another in the group, not of every other.

    Attributes:
        rows: of the embeddings, ascending.
        similarities: for each row, the cosine with the one most like it.
    """

    rows: tuple[int, ...]
    similarities: tuple[float, ...]


@dataclass(frozen=True)
class NearDuplicates:
    """What was found among some embeddings.

    Attributes:
        groups: in the order of their first rows.
        threshold: cosine from which photos count as near-duplicates.
        compared: photos that were compared with all others.
        photos: all of them.
    """

    groups: tuple[NearGroup, ...]
    threshold: float
    compared: int
    photos: int

    @property
    def together(self) -> list[tuple[int, ...]]:
        """The rows that `dataset.split` is to keep in one set."""
        return [group.rows for group in self.groups]


@dataclass(frozen=True)
class Picture:
    """A photo in a group.

    Attributes:
        uri: its path.
        label: its name.
        subset: the set it is in, or was laid out for.
        similarity: cosine with the one most like it in the group; 1 for the same bytes.
    """

    uri: str
    label: str
    subset: Subset
    similarity: float = 1.0


@dataclass(frozen=True)
class Group:
    """Photos that are one picture."""

    pictures: tuple[Picture, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Their labels, each once, sorted."""
        return tuple(sorted({picture.label for picture in self.pictures}))

    @property
    def subsets(self) -> frozenset[Subset]:
        """The sets that they are in."""
        return frozenset(picture.subset for picture in self.pictures)

    @property
    def across_sets(self) -> bool:
        """Whether one is trained on and one held out, or one chosen by and one tested on."""
        return len(self.subsets) > 1


@dataclass(frozen=True)
class Duplicates:
    """Everything that a report tells about photos that are there more than once.

    Attributes:
        exact: files with the same bytes, of one label or of several.
        near: near-duplicates, files with the same bytes once for each label.
        threshold, compared, photos: see NearDuplicates.
    """

    exact: tuple[Group, ...]
    near: tuple[Group, ...]
    threshold: float
    compared: int
    photos: int

    @property
    def contradictions(self) -> tuple[Group, ...]:
        """The same bytes under different labels."""
        return tuple(group for group in self.exact if len(group.labels) > 1)

    @property
    def near_contradictions(self) -> tuple[Group, ...]:
        """Near-duplicates under different labels."""
        return tuple(group for group in self.near if len(group.labels) > 1)

    @property
    def across_sets(self) -> tuple[Group, ...]:
        """Near-duplicates of which some are held out and others not: they flatter the figures."""
        return tuple(group for group in self.near if group.across_sets)

    def seen(self, subset: Subset = Subset.TESTING) -> tuple[Picture, ...]:
        """The photos of a set that have a near-duplicate among the training photos."""
        return tuple(
            picture
            for group in self.near
            if Subset.TRAINING in group.subsets
            for picture in group.pictures
            if picture.subset is subset
        )

    def sentences(self) -> Iterator[str]:
        """What the user should know, one sentence each."""
        if self.exact:
            files = sum(len(group.pictures) for group in self.exact)
            yield f"{files} files are identical to others: {len(self.exact)} distinct photos."
        if laid_out := [group for group in self.exact if group.across_sets]:
            yield (
                f"{len(laid_out)} photos are laid out for several sets; "
                "each counts for the held-out one alone."
            )
        if self.contradictions:
            yield f"{len(self.contradictions)} photos stand under more than one label."
        if self.near:
            photos = sum(len(group.pictures) for group in self.near)
            labels = (
                f", {len(self.near_contradictions)} of them across labels" if self.near_contradictions else ""
            )
            yield (
                f"{photos} photos are near-duplicates (cosine {self.threshold:g} or more), "
                f"in {len(self.near)} groups{labels}."
            )
        if seen := self.seen():
            yield (
                f"{len(seen)} test photos have a near-duplicate among the training photos: "
                "the test figures flatter."
            )
        if self.near and max(len(group.pictures) for group in self.near) > max(2, MANY * self.photos):
            yield (
                f"One group of near-duplicates holds over {MANY:.0%} of the photos: "
                f"for these photos a cosine of {self.threshold:g} is too low."
            )
        if self.compared < self.photos:
            yield (
                f"Near-duplicates were looked for of {self.compared} photos among all {self.photos}, "
                "since the time grows with the square; there may be more."
            )


def near_duplicates(
    embeddings: NDArray[np.floating],
    threshold: float = THRESHOLD,
    *,
    limit: int = LIMIT,
    first: Sequence[int] = (),
    progress: Callable[[Progress], None] | None = None,
) -> NearDuplicates:
    """Group the photos whose embeddings have a cosine of `threshold` or more.

    The products are made block by block: beyond the embeddings it takes less than 100 MiB and
    some 420 bytes a photo, however many near-duplicates there are. Cosines are bounded first by what the
    photos have in _DIRECTIONS principal directions and the lengths outside them (the inequality of
    Cauchy and Schwarz), which leaves no pair out and spares most of the products.

    Above `limit` photos not all are compared with one another, but as many of them with all
    others as takes the same time: limit squared / 2N, those of `first` before the rest.

    Args:
        embeddings: float16 or float32 [N,D]; never copied as a whole.
        threshold: above 0, at most 1.
        limit: photos up to which every pair is looked at.
        first: rows that matter most where there are more, such as the test photos.
        progress: called after each block of rows.

    Raises:
        InputError: the threshold is not a cosine.
    """
    if not 0 < threshold <= 1:
        raise InputError(
            f"The threshold of near-duplicates is {threshold:g}.",
            remedy="Give a cosine above 0 and at most 1, such as 0.93.",
        )
    count = len(embeddings)
    every = count <= limit
    rows = np.arange(count)
    if not every:
        ordered = np.fromiter(dict.fromkeys([*first, *range(count)]), np.int64, count)
        rows = ordered[: max(1, limit**2 // (2 * count))]
    links = _Links(count)
    sketch = _sketch(embeddings)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        left = _unit(embeddings[block])
        for low in range(start if every else 0, count, _BLOCK):
            bounds = sketch[block] @ sketch[low : low + _BLOCK].T
            near = np.flatnonzero(bounds.max(axis=1) >= threshold - _SLACK)
            if len(near):
                right = _unit(embeddings[low : low + _BLOCK])
                links.add(block[near], np.arange(low, low + len(right)), left[near] @ right.T, threshold)
        if progress:
            done = start + len(block)
            share = 1 - (1 - done / len(rows)) ** 2 if every else done / len(rows)
            progress(Progress(round(share * len(rows)), len(rows), 0))
    groups = tuple(
        NearGroup(tuple(group.tolist()), tuple(links.nearest[group].clip(max=1.0).tolist()))
        for group in links.groups()
    )
    return NearDuplicates(groups, threshold, len(rows), count)


def _sketch(embeddings: NDArray[np.floating]) -> _Floats:
    """float32 [N,R]: products of these rows are no lower than the cosines of the embeddings' rows."""
    count, dimension = embeddings.shape
    if dimension <= 2 * _DIRECTIONS or count <= _SEEN:
        return np.ones((count, 1), np.float32)
    seen = _unit(embeddings[:: -(-count // _SEEN)])
    _, vectors = np.linalg.eigh(seen.T @ seen)
    directions = vectors[:, -_DIRECTIONS:].astype(np.float32)
    sketch = np.empty((count, _DIRECTIONS + 1), np.float32)
    for start in range(0, count, _BLOCK):
        rows = _unit(embeddings[start : start + _BLOCK])
        inside = rows @ directions
        outside = np.einsum("nd,nd->n", rows, rows) - np.einsum("nd,nd->n", inside, inside)
        sketch[start : start + _BLOCK, :-1] = inside
        sketch[start : start + _BLOCK, -1] = np.sqrt(np.maximum(outside, 0))
    return sketch


def report(
    files: Sequence[Example],
    examples: Sequence[Example],
    subsets: Sequence[Subset],
    near: NearDuplicates,
    labels: Sequence[str],
) -> Duplicates:
    """Bring together what is there more than once.

    Args:
        files: all usable files, those that are copies of others included.
        examples: the distinct ones (`dataset.distinct`).
        subsets: of the examples.
        near: found among the examples' embeddings.
        labels: names of the labels.
    """
    kept = {
        (example.sha256, example.label): (example, subset)
        for example, subset in zip(examples, subsets, strict=True)
    }

    def picture(file: Example, similarity: float = 1.0) -> Picture:
        used, subset = kept[file.sha256, file.label]
        if file.uri != used.uri and used.subset:
            subset = file.subset or Subset.TRAINING
        return Picture(file.uri, labels[file.label], subset, similarity)

    exact = [Group(tuple(picture(file) for file in same)) for same in same_content(files)]
    alike = [
        Group(
            tuple(picture(examples[row], cosine) for row, cosine in zip(g.rows, g.similarities, strict=True))
        )
        for g in near.groups
        if len({examples[row].sha256 for row in g.rows}) > 1
    ]
    return Duplicates(tuple(exact), tuple(alike), near.threshold, near.compared, near.photos)


class _Links:
    """Which rows are joined, and how alike each is to the one most like it.

    Args:
        count: rows.
    """

    def __init__(self, count: int) -> None:
        self.nearest: _Floats = np.zeros(count, np.float32)
        self._count = count
        self._pairs: list[_Ints] = []
        self._held = 0

    def add(self, left: _Ints, right: _Ints, cosines: _Floats, threshold: float) -> None:
        """Take in the cosines [L,R] of some rows with some others."""
        hits = cosines >= threshold
        hits &= left[:, None] != right[None, :]
        at, to = np.nonzero(hits)
        if not len(at):
            return
        np.maximum.at(self.nearest, left[at], cosines[at, to])
        np.maximum.at(self.nearest, right[to], cosines[at, to])
        # Of a block that is full of near-duplicates a tree is enough: a link a row, not one a pair.
        parts = _components(len(left) + len(right), at, to + len(left))
        rows = np.concatenate([left, right])
        touched = np.unique(np.concatenate([at, to + len(left)]))
        _, first, part = np.unique(parts[touched], return_index=True, return_inverse=True)
        self._keep(np.stack([rows[touched], rows[touched[first][part]]]))
        if self._held > max(_MAX_LINKS, 2 * self._count):
            parts = self._parts()
            pairs, self._pairs, self._held = np.stack([np.arange(self._count), _first(parts)]), [], 0
            self._keep(pairs)

    def groups(self) -> Iterator[_Ints]:
        """The rows of each group of two or more, in the order of their first rows."""
        first = _first(self._parts())
        joined = np.flatnonzero(np.bincount(first, minlength=self._count)[first] > 1)
        order = joined[np.argsort(first[joined], kind="stable")]
        yield from np.split(order, np.flatnonzero(np.diff(first[order])) + 1) if len(order) else ()

    def _keep(self, pairs: _Ints) -> None:
        pairs = pairs[:, pairs[0] != pairs[1]]
        self._pairs.append(pairs)
        self._held += pairs.shape[1]

    def _parts(self) -> _Ints:
        at, to = np.concatenate([np.empty((2, 0), np.int64), *self._pairs], axis=1)
        return _components(self._count, at, to)


def _components(count: int, at: _Ints, to: _Ints) -> _Ints:
    """A number for each of the nodes, the same for those that links join."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(at), np.int8), (at, to)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _first(parts: _Ints) -> _Ints:
    """For each node the lowest one that has its number."""
    _, first, part = np.unique(parts, return_index=True, return_inverse=True)
    return first[part]


def _unit(vectors: NDArray[np.floating]) -> _Floats:
    """float32 of length 1; zeros stay zeros."""
    vectors = vectors.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)

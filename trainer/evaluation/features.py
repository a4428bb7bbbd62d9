"""The usable photos of a folder with their embeddings: in memory, or in a file where they do not fit."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import SHA_BYTES, EmbeddingStore, layout
from batch.inputs.listing import Photo
from serving.contract import Status
from serving.errors import InputError, OutputError
from serving.photos.converter import EXTRA, detect_unsupported_format
from serving.storage import files
from trainer import dataset
from trainer.dataset import DatasetListing, Example
from trainer.heads import Blocks, Floats, Head, HeadSettings, Ints, Vectors

Halves = NDArray[np.float16]


@dataclass(frozen=True)
class Features:
    """The usable, distinct photos with their embeddings.

    Attributes:
        examples: N of them.
        embeddings: float16 [N,D], exactly as the store has them; mapped from a file where they are many.
        files: all usable files, those that are identical to another of their label included.
        left_out: (path, reason) of the others.
    """

    examples: Sequence[Example]
    embeddings: Halves
    files: Sequence[Example]
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Verdicts:
    """What a head says of N photos, without the probabilities of all labels.

    Attributes:
        best: int64 [N], the label with the highest probability.
        score: float32 [N], that probability.
        own: float32 [N], the probability of the photo's own label.
    """

    best: Ints
    score: Floats
    own: Floats

    @classmethod
    def of(cls, fitted: Head, embeddings: Vectors, targets: Ints) -> Verdicts:
        """Of embeddings float32 or float16 [N,D], which need not fit in memory, and labels int64 [N]."""

        def work(rows: Floats, labels: Ints) -> Verdicts:
            return cls.of_probabilities(fitted.probabilities(rows), labels)

        parts = list(Blocks.of(embeddings, targets).each(work))
        return cls(
            np.concatenate([part.best for part in parts]),
            np.concatenate([part.score for part in parts]),
            np.concatenate([part.own for part in parts]),
        )

    @classmethod
    def of_probabilities(cls, probabilities: Floats, targets: Ints) -> Verdicts:
        """Of probabilities float32 [N,K] and labels int64 [N]."""
        best, places = probabilities.argmax(axis=1), np.arange(len(targets))
        return cls(best, probabilities[places, best], probabilities[places, targets])


def probabilities_of(fitted: Head, embeddings: Vectors, rows: Ints) -> Floats:
    """Calibrated probabilities float32 [n,K] of some rows int64 [n] of embeddings [N,D]."""
    blocks = Blocks.of(embeddings, np.zeros(len(embeddings), np.int64), chosen=rows)
    nothing = np.zeros((0, len(fitted.bias)), np.float32)
    return np.concatenate([nothing, *blocks.each(lambda features, _: fitted.probabilities(features))])


def gather(folder: DatasetListing, store: EmbeddingStore, settings: HeadSettings | None = None) -> Features:
    """The distinct usable photos of each label, in the order of the folder, with their embeddings.

    Args:
        folder: the photos.
        store: of their embeddings.
        settings: how many bytes may be in memory, and where a file goes beyond that.

    Raises:
        InputError: no photo can be used.
        OutputError: there is no room for the file.
    """
    shas = store.lookup_digests(folder.photos)
    statuses = store.get_statuses(shas.values())
    usable, left_out = [], list(folder.left_out)
    for photo in folder.photos:
        sha = shas.get(photo)
        status = statuses.get(sha) if sha else None
        if sha is None or status is None:
            left_out.append((photo.uri, _why_unknown(photo)))
        elif not status.usable:
            left_out.append((photo.uri, str(status)))
        else:
            usable.append(folder.make_example(photo, sha.hex()))
    if not usable:
        raise InputError(
            f"None of the {len(folder.photos)} files can be used; "
            f"{left_out[0][0]}, for one, is {left_out[0][1]}.",
            remedy="Give a directory of photos (JPEG, PNG, GIF, BMP or WebP).",
        )
    examples = [usable[row] for row in dataset.select_distinct(usable)]
    return Features(examples, embeddings_of(examples, store, settings), usable, tuple(left_out))


def embeddings_of(
    examples: Sequence[Example], store: EmbeddingStore, settings: HeadSettings | None = None
) -> Halves:
    """float16 [N,D] of photos that the store has, in their order.

    Where the features made of them, 4 bytes a number, would take more than `settings.memory`, they are
    written to a file without a name in `settings.directory`, of 2 bytes a number, and mapped from it.

    Raises:
        InputError: a photo is not in the store.
        OutputError: there is no room for the file.
    """
    settings = settings or HeadSettings()
    digests = np.frombuffer(b"".join(bytes.fromhex(e.sha256) for e in examples), f"S{SHA_BYTES}")
    distinct, number = np.unique(digests, return_inverse=True)
    # The rows of the examples with the content number n stand in order from starts[n] to starts[n+1].
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], np.arange(len(distinct) + 1))
    embeddings = _room(len(examples), store.dimension, settings)
    filled = 0
    for numbers, table in store.iter_blocks(distinct, [layout.VECTOR]):
        counts = starts[numbers + 1] - starts[numbers]
        source = np.repeat(np.arange(len(numbers)), counts)
        within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = order[np.repeat(starts[numbers], counts) + within]
        embeddings[rows] = layout.to_vectors(table, store.dimension)[source]
        filled += len(rows)
    if filled < len(examples):
        raise InputError(
            f"{len(examples) - filled} photos have gone from the embedding store {store.directory}.",
            remedy="Run the same command again: they are embedded again.",
        )
    return embeddings


def _room(count: int, dimension: int, settings: HeadSettings) -> Halves:
    """float16 [count,dimension] to be filled."""
    size = 2 * count * dimension
    if 2 * size <= settings.memory:
        return np.empty((count, dimension), np.float16)
    directory = settings.directory or tempfile.gettempdir()
    try:
        if shutil.disk_usage(directory).free < size:
            raise OSError("not enough space")
        with tempfile.TemporaryFile(dir=directory) as file:
            if hasattr(os, "posix_fallocate"):
                # A file with holes would end the process by a signal when the disk is full.
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float16, "r+", shape=(count, dimension))
    except OSError as error:
        raise OutputError(
            f"The embeddings of {count} photos take {size / 1e9:.1f} GB, for which {directory} has no room: "
            f"{error.strerror or error}.",
            remedy="Make room, or set HUBHEAD_CACHE_DIR to a directory on a larger disk.",
        ) from error


def _why_unknown(photo: Photo) -> str:
    """Why the job left no row of a photo, which it does where another run may do better."""
    try:
        name = detect_unsupported_format(files.read(photo.uri))
    except OSError:
        name = None
    return f"{name}, not converted (it needs {EXTRA}, and time)" if name else str(Status.UNREADABLE)

"""Features of a training: the usable photos of a folder with their embeddings, in memory or in a file."""

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
from serving.photos.converter import EXTRA
from serving.photos.formats import detect_unsupported_format
from serving.storage.regular import read_regular
from trainer import dataset
from trainer.dataset import DatasetListing, Example
from trainer.heads import Blocks, Floats, Head, HeadSettings, Ints, Vectors

HalfFloats = NDArray[np.float16]


@dataclass(frozen=True)
class Features:
    """The usable, distinct photos with their embeddings.

    Attributes:
        examples: N distinct photos.
        embeddings: float16 [N,D], exactly as stored; mapped from a file where they do not fit in memory.
        files: all usable files, including those that are identical to another one of their label.
        left_out: (path, reason) of each file that cannot be used.
    """

    examples: Sequence[Example]
    embeddings: HalfFloats
    files: Sequence[Example]
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class HeadPredictions:
    """Predictions of a head for N photos, without the probabilities of all labels.

    Attributes:
        best: int64 [N], class with the highest probability.
        score: float32 [N], that probability.
        own: float32 [N], probability of the photo's true class.
    """

    best: Ints
    score: Floats
    own: Floats

    @classmethod
    def from_embeddings(cls, fitted: Head, embeddings: Vectors, targets: Ints) -> HeadPredictions:
        """Predict block by block, so that the embeddings need not fit in memory.

        Args:
            fitted: the head.
            embeddings: float32 or float16 [N,D].
            targets: int64 [N], true classes.
        """

        def predict_block(rows: Floats, classes: Ints) -> tuple[Ints, Floats, Floats]:
            found = cls.from_probabilities(fitted.probabilities(rows), classes)
            return found.best, found.score, found.own

        columns = zip(*Blocks.from_array(embeddings, targets).map(predict_block), strict=True)
        return cls(*map(np.concatenate, columns))

    @classmethod
    def from_probabilities(cls, probabilities: Floats, targets: Ints) -> HeadPredictions:
        """Take the predictions from probabilities float32 [N,K], with the true classes int64 [N]."""
        best, rows = probabilities.argmax(axis=1), np.arange(len(targets))
        return cls(best, probabilities[rows, best], probabilities[rows, targets])


def predict_probabilities(fitted: Head, embeddings: Vectors, rows: Ints) -> Floats:
    """Return calibrated probabilities float32 [n,K] of some rows int64 [n] of embeddings [N,D]."""
    blocks = Blocks.from_array(embeddings, np.zeros(len(embeddings), np.int64), chosen=rows)
    # np.concatenate needs at least one array, also where no row is chosen.
    nothing = np.zeros((0, len(fitted.bias)), np.float32)
    return np.concatenate([nothing, *blocks.map(lambda features, _: fitted.probabilities(features))])


def load_features(
    folder: DatasetListing, store: EmbeddingStore, settings: HeadSettings | None = None
) -> Features:
    """Return the distinct usable photos of each label, in the order of the listing, with their embeddings.

    Args:
        folder: labelled photos.
        store: embedding store that the photos were embedded into.
        settings: number of bytes that may be in memory, and the directory of the file for more.

    Raises:
        InputError: no photo can be used.
        OutputError: the disk has not enough space for the file.
    """
    shas = store.lookup_digests(folder.photos)
    statuses = store.get_statuses(shas.values())
    usable, left_out = [], list(folder.left_out)
    for photo in folder.photos:
        sha = shas.get(photo)
        status = statuses.get(sha) if sha else None
        if sha is None or status is None:
            left_out.append((photo.uri, _explain_missing(photo)))
        elif not status.usable:
            left_out.append((photo.uri, str(status)))
        else:
            usable.append(folder.make_example(photo, sha.hex()))
    if not usable:
        raise InputError(
            f"None of the {len(folder.photos)} files can be used; "
            f"{left_out[0][0]}, for example, is {left_out[0][1]}.",
            remedy="Give a directory of photos (JPEG, PNG, GIF, BMP or WebP).",
        )
    examples = [usable[row] for row in dataset.select_distinct(usable)]
    return Features(examples, load_embeddings(examples, store, settings), usable, tuple(left_out))


def load_embeddings(
    examples: Sequence[Example], store: EmbeddingStore, settings: HeadSettings | None = None
) -> HalfFloats:
    """Return the stored embeddings float16 [N,D] of photos, in the order of the photos.

    Where features float32 [N,D] would take more than `settings.memory` bytes, the embeddings are written
    to an unnamed file in `settings.directory` and mapped from it.

    Raises:
        InputError: a photo is not in the store, or its embedding has numbers that are not finite.
        OutputError: the disk has not enough space for the file.
    """
    settings = settings or HeadSettings()
    digests = np.frombuffer(b"".join(bytes.fromhex(e.sha256) for e in examples), f"S{SHA_BYTES}")
    distinct, number = np.unique(digests, return_inverse=True)
    # The rows of the examples with the content number n are order[starts[n]:starts[n + 1]].
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], np.arange(len(distinct) + 1))
    embeddings = _allocate(len(examples), store.dimension, settings)
    filled = 0
    # The store yields contents in its own order; each is copied to all examples with that content.
    for numbers, table in store.iter_blocks(distinct, [layout.VECTOR]):
        counts = starts[numbers + 1] - starts[numbers]
        source = np.repeat(np.arange(len(numbers)), counts)
        within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = order[np.repeat(starts[numbers], counts) + within]
        embeddings[rows] = found = layout.to_vectors(table, store.dimension)[source]
        broken = rows[~np.isfinite(found).all(axis=1)]
        if len(broken):
            raise InputError(
                f"The backbone returns numbers that are not finite for {len(broken)} photos or more, such as "
                f"{examples[broken[0]].uri}.",
                remedy="Use another backbone, or state the range of its input with --value_range.",
            )
        filled += len(rows)
    if filled < len(examples):
        raise InputError(
            f"{len(examples) - filled} photos were not found in the embedding store {store.directory}.",
            remedy="Run the same command again: they are embedded again.",
        )
    return embeddings


def _allocate(count: int, dimension: int, settings: HeadSettings) -> HalfFloats:
    """Return an array float16 [count,dimension] to be filled, in memory or mapped from an unnamed file."""
    size = 2 * count * dimension
    if 2 * size <= settings.memory:
        return np.empty((count, dimension), np.float16)
    directory = settings.directory or tempfile.gettempdir()
    try:
        if shutil.disk_usage(directory).free < size:
            raise OSError("not enough space")
        with tempfile.TemporaryFile(dir=directory) as file:
            if hasattr(os, "posix_fallocate"):
                # Writing to the map of a sparse file ends the process with SIGBUS when the disk is full.
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float16, "r+", shape=(count, dimension))
    except OSError as error:
        raise OutputError(
            f"The embeddings of {count} photos take {size / 1e9:.1f} GB; {directory} has not enough space: "
            f"{error.strerror or error}.",
            remedy="Free some space, or set HUBHEAD_CACHE_DIR to a directory on a larger disk.",
        ) from error


def _explain_missing(photo: Photo) -> str:
    """Return why the embedding job stored no row for a photo: another run may succeed in reading it."""
    try:
        name = detect_unsupported_format(read_regular(photo.uri))
    except OSError:
        name = None
    return f"{name}, not converted (it needs {EXTRA}, and time)" if name else str(Status.UNREADABLE)

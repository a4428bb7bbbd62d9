"""Predictions of a version for a comparison: from stored embeddings, and from bytes where there is none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import SHA_BYTES, EmbeddingStore, layout
from serving import contract
from serving.bundle import Bundle
from serving.contract import Status
from serving.photos.converter import ConversionLimits, Converter
from serving.storage import files
from trainer.dataset import Example
from trainer.export.head_file import load_head
from trainer.heads import Floats

if TYPE_CHECKING:
    from serving.runtime import Model

Bools = NDArray[np.bool_]


class Predictions(NamedTuple):
    """Predictions of one version for N photos.

    Attributes:
        probabilities: float32 [N,K]; rows of photos without an answer are zero.
        answered: bool [N]; False for photos that the version rejects or that cannot be read.
    """

    probabilities: Floats
    answered: Bools


def predict(
    version: Bundle, photos: Sequence[Example], store_root: str, model: Model | None = None
) -> Predictions:
    """Predict photos by their embeddings in the store; photos without one there are read.

    Args:
        version: version that predicts.
        photos: N photos; the address may be "".
        store_root: directory of the embedding store.
        model: the version as loaded by the runtime; None to load it if a photo has to be read.

    Raises:
        BundleError, RunError: the version cannot be loaded or run.
    """
    digests = np.frombuffer(b"".join(bytes.fromhex(photo.sha256) for photo in photos), f"S{SHA_BYTES}")
    distinct, number = np.unique(digests, return_inverse=True)
    probabilities = np.zeros((len(distinct), len(version.metadata.labels)), np.float32)
    answered, stored = np.zeros((2, len(distinct)), bool)
    head, _ = load_head(version.path / contract.HEAD_FILE, version.metadata)
    store = EmbeddingStore(store_root, version.metadata.fingerprint, version.metadata.dimension)
    for rows, block in store.iter_blocks(distinct, [layout.VECTOR, layout.STATUS]):
        stored[rows] = True
        answered[rows] = [Status(str(name)).usable for name in block[layout.STATUS].to_pylist()]
        probabilities[rows] = head.probabilities(layout.to_vectors(block, store.dimension))
    found = Predictions(probabilities[number], answered[number])
    unread = [row for row in np.flatnonzero(~stored[number]).tolist() if photos[row].uri]
    if unread:
        _predict_from_bytes(version, model, photos, unread, found)
    return found


def _predict_from_bytes(
    version: Bundle, model: Model | None, photos: Sequence[Example], rows: Sequence[int], found: Predictions
) -> None:
    """Run the version on the bytes of some photos, and set their rows of `found`."""
    from serving import runtime

    model = model or runtime.load(version.path)
    sent: list[int] = []  # rows of the photos that were sent: those that cannot be read are skipped
    images = _read_photos(version, photos, rows, sent)
    outputs = list(model.imap(contract.PROBABILITIES, contract.IMAGE_BYTES, images))
    if sent:
        found.probabilities[sent] = np.concatenate([output[contract.PROBABILITIES] for output in outputs])
        statuses = np.concatenate([output[contract.STATUS] for output in outputs])
        found.answered[sent] = [Status(status.decode()).usable for status in statuses]


def _read_photos(
    version: Bundle, photos: Sequence[Example], rows: Sequence[int], sent: list[int]
) -> Iterator[bytes]:
    """Yield photos in a format that the version decodes, and add their rows to `sent`.

    A file that has changed since it was listed is skipped, since its label may be another one.
    """
    with open_converter(version) as converter:
        for row in rows:
            try:
                content = files.read(photos[row].uri)
            except OSError:
                continue
            image = converter.convert_if_needed(content)
            if hashlib.sha256(content).hexdigest() == photos[row].sha256 and isinstance(image, bytes):
                sent.append(row)
                yield image


def open_converter(version: Bundle) -> Converter:
    """Return a converter with the limits of a version's preprocessing."""
    return Converter(ConversionLimits.from_preprocessing(version.metadata.preprocessing))

"""Photos to label, with their embeddings from the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import SHA_BYTES, EmbeddingStore
from batch.inputs.listing import Photo
from batch.output.previous_scores import PreviousScores
from serving.errors import InputError
from trainer.dataset import Example
from trainer.evaluation.features import HalfFloats, load_embeddings
from trainer.heads import HeadSettings, Ints

_NOT_STORED = "not in the embedding store"


@dataclass(frozen=True)
class Candidates:
    """N distinct photos.

    Attributes:
        uris: path or address of each photo.
        digests: sha256 of their contents, dtype S32 [N], distinct.
        embeddings: float16 [N,D], in memory or mapped from a file.
        left_out: (path, reason) of photos that cannot be used.
        aliases: sha256 in hex -> all paths of a content that several files have, where each needs a label.
        order: rows in ascending order of the digests, int64 [N].
    """

    uris: Sequence[str]
    digests: NDArray[np.bytes_]
    embeddings: HalfFloats
    left_out: tuple[tuple[str, str], ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    order: Ints = field(init=False, repr=False)
    _found: dict[str, int | None] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", np.argsort(self.digests, kind="stable"))

    def __len__(self) -> int:
        return len(self.uris)

    def sha256(self, row: int) -> str:
        """Return the sha256 of a photo in hex."""
        # Indexing an array of dtype S drops zeros at the end; the buffer keeps them.
        return self.digests[row : row + 1].tobytes().hex()

    def find_row(self, sha256: str) -> int | None:
        """Return the row of a content; None if no photo has it."""
        if sha256 in self._found:
            return self._found[sha256]
        wanted = np.frombuffer(bytes.fromhex(sha256), f"S{SHA_BYTES}")
        place = int(np.searchsorted(self.digests, wanted, sorter=self.order)[0])
        row = int(self.order[place]) if place < len(self.order) else None
        if row is not None and self.digests[row : row + 1].tobytes() != wanted.tobytes():
            row = None
        self._found[sha256] = row
        return row


def load_candidates(
    photos: Sequence[Photo],
    store: EmbeddingStore,
    settings: HeadSettings | None = None,
    *,
    known: Iterable[str] = (),
) -> Candidates:
    """Return the usable photos of a list, the first of identical ones, with their embeddings.

    Args:
        photos: photos that were embedded into the store.
        store: the store.
        settings: number of bytes that may be in memory, and the directory of the file for more.
        known: sha256 in hex of photos that need no label.

    Raises:
        InputError: no photo can be labelled.
    """
    shas = store.lookup_digests(photos)
    return _load([(photo.uri, shas.get(photo)) for photo in photos], store, settings, known)


def load_scored(
    directory: str,
    store: EmbeddingStore,
    settings: HeadSettings | None = None,
    *,
    known: Iterable[str] = (),
) -> Candidates:
    """Return the usable photos of a scores dataset, as `load_candidates`; no photo is read.

    Args:
        directory: output directory of `hubhead score`.
        store: embedding store of the backbone that scored them.
        settings: as in `load_candidates`.
        known: as in `load_candidates`.

    Raises:
        InputError: there are no scores, or none of the photos has an embedding in the store.
    """
    entries: list[tuple[str, bytes | None]] = []
    for file in PreviousScores(directory).iter_files({}):
        raw = file.digests().tobytes()
        digests = (raw[start : start + SHA_BYTES] for start in range(0, len(raw), SHA_BYTES))
        entries += zip(file.table["uri"].to_pylist(), digests, strict=True)
    return _load(entries, store, settings, known)


def _load(
    entries: Sequence[tuple[str, bytes | None]],
    store: EmbeddingStore,
    settings: HeadSettings | None,
    known: Iterable[str],
) -> Candidates:
    """Return the candidates among (uri, digest of the content)."""
    store.refresh()
    statuses = store.get_statuses(sha for _, sha in entries if sha)
    chosen: list[Example] = []
    left_out: list[tuple[str, str]] = []
    seen = {bytes.fromhex(sha) for sha in known}
    labelled = 0
    for uri, sha in entries:
        status = statuses.get(sha) if sha else None
        if sha is None or status is None:
            left_out.append((uri, _NOT_STORED))
        elif not status.usable:
            left_out.append((uri, str(status)))
        elif sha in seen:
            labelled += 1
        else:
            seen.add(sha)
            chosen.append(Example(uri, sha.hex(), 0))
    if labelled == len(entries) > 0:
        raise InputError("All photos are labelled already.", remedy="Give other photos to label.")
    if not chosen:
        why = f" {left_out[0][0]}, for example, is {left_out[0][1]}." if left_out else ""
        raise InputError(
            f"None of the {len(entries)} photos can be labelled.{why}",
            remedy="Give photos (JPEG, PNG, GIF, BMP or WebP), or scores of the same model and store.",
        )
    digests = np.frombuffer(b"".join(bytes.fromhex(e.sha256) for e in chosen), f"S{SHA_BYTES}")
    embeddings = load_embeddings(chosen, store, settings)
    return Candidates([example.uri for example in chosen], digests, embeddings, tuple(left_out))

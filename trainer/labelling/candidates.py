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
        wanted = np.frombuffer(bytes.fromhex(sha256), f"S{SHA_BYTES}")
        place = int(np.searchsorted(self.digests, wanted, sorter=self.order)[0])
        if place == len(self.order):
            return None
        row = int(self.order[place])
        return row if self.digests[row : row + 1].tobytes() == wanted.tobytes() else None

    def without(self, digests: Iterable[str]) -> Candidates:
        """Return the photos whose content is not among these sha256 digests in hex."""
        left_out = {row for row in map(self.find_row, digests) if row is not None}
        if not left_out:
            return self
        kept = np.setdiff1d(np.arange(len(self)), np.array(sorted(left_out)))
        uris = [self.uris[row] for row in kept]
        return Candidates(uris, self.digests[kept], self.embeddings[kept], self.left_out, self.aliases)


def load_candidates(
    photos: Sequence[Photo], store: EmbeddingStore, settings: HeadSettings | None = None
) -> Candidates:
    """Return the usable photos of a list, the first of identical ones, with their embeddings.

    Args:
        photos: photos that were embedded into the store.
        store: the store.
        settings: number of bytes that may be in memory, and the directory of the file for more.

    Raises:
        InputError: no photo can be used.
    """
    shas = store.lookup_digests(photos)
    return _load([(photo.uri, shas.get(photo)) for photo in photos], store, settings)


def load_scored(directory: str, store: EmbeddingStore, settings: HeadSettings | None = None) -> Candidates:
    """Return the usable photos of a scores dataset, as `load_candidates`; no photo is read.

    Args:
        directory: output directory of `hubhead score`.
        store: embedding store of the backbone that scored them.
        settings: as of `load_candidates`.

    Raises:
        InputError: there are no scores, or none of the photos has an embedding in the store.
    """
    entries: list[tuple[str, bytes | None]] = []
    for file in PreviousScores(directory).iter_files({}):
        raw = file.digests().tobytes()
        digests = (raw[start : start + SHA_BYTES] for start in range(0, len(raw), SHA_BYTES))
        entries += zip(file.table["uri"].to_pylist(), digests, strict=True)
    return _load(entries, store, settings)


def _load(
    entries: Sequence[tuple[str, bytes | None]], store: EmbeddingStore, settings: HeadSettings | None
) -> Candidates:
    """Return the candidates among (uri, digest of the content)."""
    store.refresh()
    statuses = store.get_statuses(sha for _, sha in entries if sha)
    chosen: list[Example] = []
    left_out: list[tuple[str, str]] = []
    seen: set[bytes] = set()
    for uri, sha in entries:
        status = statuses.get(sha) if sha else None
        if sha is None or status is None:
            left_out.append((uri, _NOT_STORED))
        elif not status.usable:
            left_out.append((uri, str(status)))
        elif not _is_unicode(uri):
            left_out.append((uri, "its name is not Unicode text"))
        elif sha not in seen:
            seen.add(sha)
            chosen.append(Example(uri, sha.hex(), 0))
    if not chosen:
        why = f" {left_out[0][0]}, for example, is {left_out[0][1]}." if left_out else ""
        raise InputError(
            f"None of the {len(entries)} photos can be labelled.{why}",
            remedy="Give photos (JPEG, PNG, GIF, BMP or WebP), or scores of the same model and store.",
        )
    digests = np.frombuffer(b"".join(bytes.fromhex(e.sha256) for e in chosen), f"S{SHA_BYTES}")
    embeddings = load_embeddings(chosen, store, settings)
    return Candidates([example.uri for example in chosen], digests, embeddings, tuple(left_out))


def _is_unicode(text: str) -> bool:
    """Return whether a path can be written to a manifest; names of files may be other bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)

"""Similar photos: the nearest ones to a photo, and clusters, among scored photos or those of a directory.

What embeds photos takes longer to import than a million embeddings to search, so that it is imported where it
is needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from batch.embeddings import EmbeddingStore, hash_photo
from batch.embeddings.clusters import SAMPLE, fit_centres
from batch.embeddings.nearest import (
    Floats,
    IndexChanged,
    Ints,
    NearestIndex,
    iter_ranked,
    read_dimension,
)
from batch.inputs.listing import find_photos
from batch.monitoring.stats import Meter, Progress, Stats
from batch.output.dataset import RUN_FILE, read_json
from batch.output.previous_scores import PreviousScores
from serving import bundle
from serving.bundle import Bundle
from serving.errors import InputError, OutputBusy
from serving.storage import files
from serving.storage.regular import read_regular

CLUSTER_SAMPLES = 12
"""Sample photos of a cluster, the nearest ones to its centre."""

ATTEMPTS = 3
"""Searches in a store that maintenance changes meanwhile."""

_BLOCK = 4096

T = TypeVar("T")

ProgressReport = Callable[[Progress], None]


@dataclass(frozen=True)
class SimilarPhoto:
    """A photo with its similarity to the photo in question.

    Attributes:
        uri: path or address of the photo.
        sha256: hex digest of its content.
        similarity: cosine of the two embeddings.
    """

    uri: str
    sha256: str
    similarity: float


@dataclass(frozen=True)
class Cluster:
    """A group of photos with similar embeddings.

    Attributes:
        label: name of the cluster, by its rank in size.
        photos: all of its photos with the cosine to its centre, the nearest ones first.
    """

    label: str
    photos: tuple[SimilarPhoto, ...]


class Candidates(Protocol):
    """Photos to search among."""

    def find(self, shas: Iterable[bytes]) -> dict[bytes, list[str]]:
        """Return the addresses of the candidates with these contents, by content."""
        ...

    def list_all(self) -> dict[bytes, list[str]]:
        """Return the addresses of all candidates by content."""
        ...


class ScoredPhotos:
    """The photos of a scores dataset.

    Args:
        directory: output directory of `hubhead score` or `rescore`.

    Raises:
        InputError: there are no scores.
    """

    def __init__(self, directory: str) -> None:
        self._scores = PreviousScores(directory)

    def read_fingerprint(self) -> str:
        """Return the fingerprint of the backbone that the photos were embedded by.

        Raises:
            InputError: the scores do not say.
        """
        top = self._scores.directory
        for place in (top, top.rpartition("/")[0]):
            run_file = files.join(place, RUN_FILE)
            if files.exists(run_file):
                return str(read_json(run_file)["models"][0]["fingerprint"])
        raise InputError(
            f"{top} has no {RUN_FILE}, which names the backbone.",
            remedy="Give the directory that hubhead score --output wrote, or name the backbone with --model.",
        )

    def find(self, shas: Iterable[bytes]) -> dict[bytes, list[str]]:
        """Return the addresses of the photos with these contents, by content."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array([sha.hex() for sha in shas], pa.string())
        found: dict[bytes, dict[str, None]] = {}
        for table in self._scores.iter_columns(["uri", "sha256"]):
            rows = table.filter(pc.is_in(table["sha256"].cast(pa.string()), value_set=wanted))
            uris: Any = rows["uri"].to_pylist()
            hexes: Any = rows["sha256"].to_pylist()
            for uri, sha in zip(uris, hexes, strict=True):
                found.setdefault(bytes.fromhex(sha), {})[uri] = None
        return {sha: list(uris) for sha, uris in found.items()}

    def list_all(self) -> dict[bytes, list[str]]:
        """Return the addresses of all photos that were read, by content."""
        found: dict[bytes, dict[str, None]] = {}
        for table in self._scores.iter_columns(["uri", "sha256"]):
            uris: Any = table["uri"].to_pylist()
            hexes: Any = table["sha256"].to_pylist()
            for uri, sha in zip(uris, hexes, strict=True):
                if sha:
                    found.setdefault(bytes.fromhex(sha), {})[uri] = None
        return {sha: list(uris) for sha, uris in found.items()}


class ListedPhotos:
    """The photos of a directory or glob, which are embedded first unless their embeddings are stored.

    Args:
        pattern: file, directory or glob.
        model: bundle whose backbone embeds them.
        store: embedding store of that backbone.
        progress: called with the progress of the embedding.

    Raises:
        InputError: no photos are found.
    """

    def __init__(
        self, pattern: str, model: Bundle, store: EmbeddingStore, progress: ProgressReport | None = None
    ) -> None:
        from batch.jobs import score

        photos = find_photos(pattern)
        score.embed(photos, model.path, store, progress)
        self._uris: dict[bytes, list[str]] = {}
        for photo, sha in store.lookup_digests(photos).items():
            self._uris.setdefault(sha, []).append(photo.uri)

    def find(self, shas: Iterable[bytes]) -> dict[bytes, list[str]]:
        """Return the addresses of the photos with these contents, by content."""
        return {sha: self._uris[sha] for sha in shas if sha in self._uris}

    def list_all(self) -> dict[bytes, list[str]]:
        """Return the addresses of all photos by content."""
        return self._uris


@dataclass(frozen=True, kw_only=True)
class SimilarSettings:
    """Photos to search among.

    Attributes:
        scores: output directory of hubhead score or rescore; "" with photos.
        photos: file, directory or glob; "" with scores.
        model: bundle whose backbone embeds photos; None where all of them are embedded already.
        store_root: directory of the embedding store.
    """

    store_root: str
    scores: str = ""
    photos: str = ""
    model: Path | None = None


@dataclass(frozen=True)
class SimilaritySearch:
    """Candidates with the index of their embeddings.

    Attributes:
        candidates: photos to search among.
        index: embeddings of these and of other photos.
        model: bundle that embeds a photo whose embedding is not stored; None for none.
    """

    candidates: Candidates
    index: NearestIndex
    model: Bundle | None

    @classmethod
    def open(
        cls,
        settings: SimilarSettings,
        progress: ProgressReport | None = None,
        say: Callable[[str], None] | None = None,
    ) -> SimilaritySearch:
        """Find the candidates, embed those that have no embedding, and index new embeddings.

        Args:
            settings: photos to search among.
            progress: called with the progress of the embedding.
            say: called with lines of text for the user.

        Raises:
            InputError: there are no candidates or no embeddings.
            BundleError: the model cannot be used.
            OutputError: the store or the index cannot be written.
        """
        model = bundle.read(settings.model) if settings.model else None
        root = files.absolute(settings.store_root)
        candidates: Candidates
        if settings.scores:
            candidates = ScoredPhotos(settings.scores)
            fingerprint = model.metadata.fingerprint if model else candidates.read_fingerprint()
            directory = files.join(root, fingerprint)
            dimension = model.metadata.dimension if model else read_dimension(directory)
        elif model:
            dimension = model.metadata.dimension
            store = EmbeddingStore(root, model.metadata.fingerprint, dimension)
            directory = store.directory
            candidates = ListedPhotos(settings.photos, model, store, progress)
        else:
            raise InputError(
                "--photos needs a backbone that embeds the photos.", remedy="Name a bundle with --model."
            )
        index = NearestIndex(directory, dimension)
        index.update(say)
        if not len(index):
            raise InputError(
                f"There are no embeddings in {directory}.",
                remedy="Score the photos first, or give the --embedding_store that they were scored with.",
            )
        return cls(candidates, index, model)

    def find_similar(self, photo: str, count: int) -> list[SimilarPhoto]:
        """Return the candidates with the highest cosines to a photo, which is left out itself.

        Raises:
            InputError: the photo cannot be used, or has no embedding and there is no model.
            OutputBusy: maintenance changed the store during every attempt.
        """
        uri = files.absolute(photo)
        vector = self._repeat(lambda: self._embed(uri))
        return self._repeat(lambda: self._find_nearest(uri, vector, count))

    def _repeat(self, search: Callable[[], T]) -> T:
        """Return the result of a search, which is repeated if maintenance changed the store meanwhile."""
        for _ in range(ATTEMPTS):
            try:
                return search()
            except IndexChanged:
                self.index.update()
        raise OutputBusy(
            f"The embedding store changed during each of {ATTEMPTS} searches.",
            remedy="Search again when hubhead embeddings has finished.",
        )

    def _find_nearest(self, uri: str, vector: Floats, count: int) -> list[SimilarPhoto]:
        """Return the candidates with the highest cosines to an embedding, without the photo itself."""
        similarities = self.index.compute_similarities(vector)
        found: dict[str, SimilarPhoto] = {}
        for rows in iter_ranked(similarities):
            shas = self.index.find_digests(rows)
            uris = self.candidates.find(set(shas))
            for row, sha in zip(rows.tolist(), shas, strict=True):
                for candidate in uris.get(sha, ()):
                    if candidate != uri:
                        similar = SimilarPhoto(candidate, sha.hex(), min(float(similarities[row]), 1.0))
                        found.setdefault(candidate, similar)
                if len(found) >= count:
                    return list(found.values())[:count]
        return list(found.values())

    def _embed(self, uri: str) -> Floats:
        """Return the embedding of a photo, float32 [D], stored or computed now."""
        try:
            content = read_regular(uri)
        except OSError as error:
            raise InputError(
                f"Cannot read {uri}: {error.strerror or error}.", remedy="Give the path of a photo."
            ) from error
        stored = self.index.find_vector(hash_photo(content))
        if stored is not None:
            return stored
        if self.model is None:
            raise InputError(
                f"The embedding of {uri} is not stored.",
                remedy="Name the bundle that embeds it with --model.",
            )
        from batch.scoring.embed import embed_photos
        from batch.scoring.worker import ShardWorker

        # A store of its own: the photo is not among those that are searched.
        with tempfile.TemporaryDirectory(prefix="hubhead-similar-") as directory:
            worker = ShardWorker((str(self.model.path),), directory, "")
            [resources] = worker.load_models(Meter())
            embedded = embed_photos(find_photos(uri)[:1], resources, Stats())
        rejections = [rejected.rejection.status for rejected in embedded.rejections.values()]
        statuses = [*rejections, *embedded.embeddings.statuses]
        if not statuses[0].usable:
            raise InputError(f"{uri} cannot be used: {statuses[0].meaning}.", remedy="Give another photo.")
        return np.asarray(embedded.embeddings.vectors[0], np.float32)

    def find_clusters(self, count: int, seed: int = 0) -> list[Cluster]:
        """Return clusters of the candidates, the largest one first.

        Raises:
            InputError: none of the candidates has an embedding.
            OutputBusy: maintenance changed the store during every attempt.
        """
        return self._repeat(lambda: self._find_clusters(count, seed))

    def _find_clusters(self, count: int, seed: int) -> list[Cluster]:
        uris = self.candidates.list_all()
        digests = self.index.read_digests()
        is_wanted = np.isin(digests, np.frombuffer(b"".join(uris), digests.dtype))
        # A content has a row in each of several files of the store: one of them counts.
        wanted = np.flatnonzero(is_wanted)
        _, first = np.unique(digests[wanted], return_index=True)
        rows = wanted[np.sort(first)]
        if not len(rows):
            raise InputError(
                f"None of the {len(uris)} photos has an embedding in the store.",
                remedy="Give the --embedding_store that they were scored with.",
            )
        sample = np.random.default_rng(seed).permutation(rows)[:SAMPLE]
        centres = fit_centres(self.index.read_vectors(np.sort(sample)), count, seed)
        found = [centres.assign(block) for block in self._iter_vectors(rows)]
        labels, similarities = (np.concatenate(part) for part in zip(*found, strict=True))
        members = [
            _describe_cluster(np.flatnonzero(labels == label), similarities, rows, digests, uris)
            for label in range(len(centres.directions))
        ]
        members = sorted(filter(None, members), key=lambda photos: -len(photos))
        width = len(str(len(members)))
        return [
            Cluster(f"cluster {number:0{width}}", tuple(photos)) for number, photos in enumerate(members, 1)
        ]

    def _iter_vectors(self, rows: Ints) -> Iterator[Floats]:
        for start in range(0, len(rows), _BLOCK):
            yield self.index.read_vectors(rows[start : start + _BLOCK]).astype(np.float32)


def _describe_cluster(
    members: Ints,
    similarities: Floats,
    rows: Ints,
    digests: np.ndarray[tuple[int], np.dtype[np.bytes_]],
    uris: dict[bytes, list[str]],
) -> list[SimilarPhoto]:
    """Return the photos of a cluster, the nearest ones to its centre first.

    Args:
        members: positions of its contents among `rows`.
        similarities: cosine of each content with its centre.
        rows: rows of the contents in the index.
        digests: digests of the index.
        uris: addresses by content.
    """
    order = members[np.argsort(-similarities[members], kind="stable")]
    found = []
    for place in order.tolist():
        sha = digests[rows[place]].ljust(32, b"\0")  # NumPy strips trailing zero bytes
        found += [SimilarPhoto(uri, sha.hex(), float(similarities[place])) for uri in uris[sha]]
    return found

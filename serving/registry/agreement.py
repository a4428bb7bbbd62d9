"""Agreement of two served versions on the same photos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.contract import Prediction
from serving.storage import files
from serving.storage.names import normalize

if TYPE_CHECKING:
    from serving.client import Client

PredictionPair = tuple[str, Prediction, Prediction]
"""A photo, the first version's prediction and the second version's prediction."""


@dataclass(frozen=True)
class Agreement:
    """Agreement statistics of two versions.

    Attributes:
        photos: number of photos sent to both versions.
        compared: photos that both versions accept.
        agreeing: compared photos with the same label, or with no label from either version.
        score_change: mean difference of the best probability over the compared photos, second minus
            first; 0 if none was compared.
        statuses_differ: photos that one version accepts and the other rejects.
        versions: version numbers that answered, for the first and the second.
        label_changes: (label by the first, label by the second) and its count, most frequent first; None
            stands for an abstention.
        disagreements: photos with different labels or statuses, in input order.
    """

    photos: int
    compared: int
    agreeing: int
    score_change: float
    statuses_differ: int
    versions: tuple[tuple[int, ...], tuple[int, ...]]
    label_changes: tuple[tuple[tuple[str | None, str | None], int], ...]
    disagreements: tuple[PredictionPair, ...]

    @property
    def rate(self) -> float:
        """Fraction of the compared photos on which the versions agree; 1 if none was compared."""
        return self.agreeing / self.compared if self.compared else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return {
            "photos": self.photos,
            "judged": self.compared,
            "agreeing": self.agreeing,
            "agreement": self.rate,
            "score_change": self.score_change,
            "statuses_differ": self.statuses_differ,
            "versions": self.versions,
            "moves": [
                {"first": one, "second": two, "photos": count} for (one, two), count in self.label_changes
            ],
            "disagreements": [
                {"photo": photo, "first": _prediction_to_dict(first), "second": _prediction_to_dict(second)}
                for photo, first, second in self.disagreements
            ],
        }


@dataclass(frozen=True)
class _StoredPhoto:
    """A photo on any storage, which the client reads before it sends it."""

    uri: str

    def read(self) -> bytes:
        """Return the content of the photo."""
        return files.read(self.uri)


def classify_with_both(first: Client, second: Client, photos: Sequence[str]) -> Iterator[PredictionPair]:
    """Classify each photo, given by path or address, with two clients, in input order and bounded memory.

    Raises:
        ServerError: see `Client.classify`.
    """
    answers = zip(
        photos,
        first.iclassify(map(_StoredPhoto, photos)),
        second.iclassify(map(_StoredPhoto, photos)),
        strict=True,
    )
    for photo, (_, one), (_, two) in answers:
        yield photo, one, two


def measure_agreement(pairs: Iterable[PredictionPair]) -> Agreement:
    """Compute the agreement statistics of all pairs."""
    photos = compared = agreeing = statuses = 0
    change = 0.0
    versions: tuple[set[int], set[int]] = (set(), set())
    label_changes: Counter[tuple[str | None, str | None]] = Counter()
    disagreements: list[PredictionPair] = []
    for photo, first, second in pairs:
        photos += 1
        for seen, prediction in zip(versions, (first, second), strict=True):
            seen |= {prediction.version} if prediction.version is not None else set()
        # Labels and scores are compared only where both versions accept the photo.
        if first.status.usable != second.status.usable:
            statuses += 1
            disagreements.append((photo, first, second))
        elif first.status.usable:
            compared += 1
            change += (second.score or 0.0) - (first.score or 0.0)
            if normalize(first.label or "") == normalize(second.label or ""):
                agreeing += 1
            else:
                label_changes[first.label, second.label] += 1
                disagreements.append((photo, first, second))
    return Agreement(
        photos,
        compared,
        agreeing,
        change / compared if compared else 0.0,
        statuses,
        (tuple(sorted(versions[0])), tuple(sorted(versions[1]))),
        tuple(label_changes.most_common()),
        tuple(disagreements),
    )


def _prediction_to_dict(prediction: Prediction) -> dict[str, Any]:
    return {"status": prediction.status.value, "label": prediction.label, "score": prediction.score}

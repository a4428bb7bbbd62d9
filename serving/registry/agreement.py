"""Two versions that a server has, asked about the same photos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.contract import Prediction

if TYPE_CHECKING:
    from serving.client import Client

Pair = tuple[str, Prediction, Prediction]
"""A photo, and what each version says of it."""


@dataclass(frozen=True)
class Agreement:
    """How far two versions agree.

    Attributes:
        photos: how many were asked about.
        judged: of them, those that both versions take.
        agreeing: of those, the ones with the same label, or with none by both.
        score_change: mean difference of the best probability over the judged, second less first; 0 for none.
        statuses_differ: photos that one version takes and the other refuses.
        versions: the numbers that answered, of each.
        moves: (label by the first, by the second) and how often, most frequent first; None: abstained.
        disagreements: the photos with another label or status, in their order.
    """

    photos: int
    judged: int
    agreeing: int
    score_change: float
    statuses_differ: int
    versions: tuple[tuple[int, ...], tuple[int, ...]]
    moves: tuple[tuple[tuple[str | None, str | None], int], ...]
    disagreements: tuple[Pair, ...]

    @property
    def share(self) -> float:
        """Agreeing of the judged; 1 where there are none."""
        return self.agreeing / self.judged if self.judged else 1.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "photos": self.photos,
            "judged": self.judged,
            "agreeing": self.agreeing,
            "agreement": self.share,
            "score_change": self.score_change,
            "statuses_differ": self.statuses_differ,
            "versions": self.versions,
            "moves": [{"first": one, "second": two, "photos": count} for (one, two), count in self.moves],
            "disagreements": [
                {"photo": photo, "first": _told(first), "second": _told(second)}
                for photo, first, second in self.disagreements
            ],
        }


def ask(first: Client, second: Client, photos: Sequence[str]) -> Iterator[Pair]:
    """What two clients say of each photo, in order, in bounded memory.

    Raises:
        ServerError: as `Client.classify`.
    """
    answers = zip(photos, first.iclassify(photos), second.iclassify(photos), strict=True)
    for photo, (_, one), (_, two) in answers:
        yield photo, one, two


def agreement(pairs: Iterable[Pair]) -> Agreement:
    """The figures of all pairs."""
    photos = judged = agreeing = statuses = 0
    change = 0.0
    versions: tuple[set[int], set[int]] = (set(), set())
    moves: Counter[tuple[str | None, str | None]] = Counter()
    differing: list[Pair] = []
    for photo, first, second in pairs:
        photos += 1
        for seen, prediction in zip(versions, (first, second), strict=True):
            seen |= {prediction.version} if prediction.version is not None else set()
        if first.status.usable != second.status.usable:
            statuses += 1
            differing.append((photo, first, second))
        elif first.status.usable:
            judged += 1
            change += (second.score or 0.0) - (first.score or 0.0)
            if first.label == second.label:
                agreeing += 1
            else:
                moves[first.label, second.label] += 1
                differing.append((photo, first, second))
    return Agreement(
        photos,
        judged,
        agreeing,
        change / judged if judged else 0.0,
        statuses,
        (tuple(sorted(versions[0])), tuple(sorted(versions[1]))),
        tuple(moves.most_common()),
        tuple(differing),
    )


def _told(prediction: Prediction) -> dict[str, Any]:
    return {"status": prediction.status.value, "label": prediction.label, "score": prediction.score}

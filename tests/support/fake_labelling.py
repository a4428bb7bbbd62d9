"""A labelling session in memory, for tests of the page: it answers as trainer.labelling.session does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from serving.errors import InputError
from trainer.labelling.types import (
    GRID_PHOTOS,
    Answer,
    AnswerConflict,
    AnswerNotKept,
    Batch,
    CurvePoint,
    Interval,
    Neighbours,
    PhotoCard,
    State,
    Strategy,
    Suggestion,
)


@dataclass(frozen=True)
class _Step:
    """Things that one call changed: labels of photos (None for a skip), by a browser."""

    browser: str
    labels: dict[int, str | None]


class FakeSession:
    """Photos in the order of their ids; the suggestion for a photo is the name of its directory.

    Attributes:
        answers: label of each answered photo; "" for none of these.
        error: raised by the methods that write, as for a full disk.
        hints: whether there is a model, which suggests labels.
    """

    def __init__(self, photos: Sequence[Path], labels: Sequence[str], *, hints: bool = True) -> None:
        self.photos, self.labels, self.hints = list(photos), list(labels), hints
        self.answers: dict[int, str] = {}
        self.seconds: dict[int, float] = {}
        self.error: Exception | None = None
        self.strategy = Strategy.MIXED
        self.released: list[str] = []
        self._held: dict[int, str] = {}
        self._late: list[int] = []
        self._rejected: set[tuple[int, str]] = set()
        self._steps: list[_Step] = []
        self._first: list[int] = []
        self._mode: dict[str, tuple[str, str]] = {}
        self._lock = threading.RLock()

    def next_photos(
        self,
        browser: str,
        mode: str = "single",
        *,
        count: int = 1,
        label: str = "",
        strategy: Strategy | None = None,
    ) -> Batch:
        with self._lock:
            if strategy and (strategy is Strategy.SUSPECTS) != (self.strategy is Strategy.SUSPECTS):
                raise InputError(f"This session has no strategy {strategy}.")
            self.strategy = strategy or self.strategy
            if mode == "grid":
                left = [self._guess(photo) for photo in self._left(browser)]
                label = label or max(self.labels, key=left.count)
            if self._mode.get(browser) != (mode, label):
                self.release(browser)
            self._mode[browser] = mode, label
            wanted = GRID_PHOTOS if mode == "grid" else count
            if mode == "grid" and not self.hints:
                return Batch("grid", (), label)
            found = [photo for photo in self._left(browser) if mode == "single" or self._fits(photo, label)]
            found.sort(key=lambda photo: photo not in self._first)
            self._held |= dict.fromkeys(found[:wanted], browser)
            return Batch(mode, tuple(map(self._card, found[:wanted])), label if mode == "grid" else "")

    def answer(self, browser: str, answers: Sequence[Answer], *, rejected: Sequence[int] = ()) -> State:
        with self._lock:
            label = self._mode.get(browser, ("single", ""))[1]
            for answer in answers:
                if not 0 <= answer.photo < len(self.photos):
                    raise KeyError(answer.photo)
                if self._held.get(answer.photo, browser) != browser:
                    raise AnswerConflict("Another browser has this photo.")
                if answer.label and answer.label not in self.labels:
                    raise InputError(f"{answer.label} is not a label.")
            self._write(browser, {answer.photo: answer.label for answer in answers})
            for answer in answers:
                self.answers[answer.photo] = answer.label
                self.seconds[answer.photo] = answer.seconds
                self._held.pop(answer.photo, None)
            for photo in rejected:
                self._rejected.add((photo, label))
                self._held.pop(photo, None)
            return self.state()

    def skip(self, browser: str, photos: Sequence[int]) -> State:
        with self._lock:
            self._write(browser, dict.fromkeys(photos))
            for photo in photos:
                self._held.pop(photo, None)
                self._late.append(photo)
            return self.state()

    def undo(self, browser: str) -> tuple[int, ...]:
        with self._lock:
            if self.error:
                raise self.error
            step = next((step for step in reversed(self._steps) if step.browser == browser), None)
            if step is None:
                return ()
            self._steps.remove(step)
            for photo in step.labels:
                self.answers.pop(photo, None)
                self._late = [late for late in self._late if late != photo]
                self._held[photo] = browser
            self._first = list(step.labels)
            return tuple(step.labels)

    def add_label(self, browser: str, name: str) -> tuple[str, ...]:
        with self._lock:
            if self.error:
                raise self.error
            if name not in self.labels:
                self.labels.append(name)
            return tuple(self.labels)

    def release(self, browser: str) -> None:
        with self._lock:
            self.released.append(browser)
            self._held = {photo: holder for photo, holder in self._held.items() if holder != browser}

    def close(self) -> None:
        """End the session; nothing is to be done."""

    def state(self) -> State:
        with self._lock:
            labelled = [label for label in self.answers.values() if label]
            curve = tuple(
                CurvePoint(10 * step, Interval(0.4 + 0.05 * step, 0.3 + 0.05 * step, 0.5 + 0.05 * step, 40))
                for step in range(1, 8)
            )
            return State(
                labels=tuple(self.labels),
                strategy=self.strategy,
                photos=len(self.photos),
                labelled=len(labelled),
                test=sum(photo % 5 == 4 for photo in self.answers),
                none_of_these=len(self.answers) - len(labelled),
                skipped=len(self._late),
                near_duplicates=0,
                remaining=len(self.photos) - len(self.answers),
                per_label={label: labelled.count(label) for label in self.labels},
                accuracy=curve[-1].accuracy if self.hints else None,
                curve=curve if self.hints else (),
                fitted_answers=len(labelled) if self.hints else 0,
                fitting=False,
                warning="",
                output="labels.csv",
            )

    def photo_uri(self, photo: int) -> str:
        if not 0 <= photo < len(self.photos):
            raise KeyError(photo)
        return str(self.photos[photo])

    def fill_disk(self) -> None:
        """Let every write fail from now on, as on a full disk."""
        self.error = AnswerNotKept("The journal cannot be written: no space left on device.")

    def _write(self, browser: str, labels: dict[int, str | None]) -> None:
        if self.error:
            raise self.error
        self._steps.append(_Step(browser, labels))

    def _left(self, browser: str) -> list[int]:
        left = [
            photo
            for photo in range(len(self.photos))
            if photo not in self.answers and self._held.get(photo, browser) == browser
        ]
        return sorted(left, key=lambda photo: photo in self._late)

    @property
    def _is_check(self) -> bool:
        return self.strategy is Strategy.SUSPECTS

    def _guess(self, photo: int) -> str:
        return self.photos[photo].parent.name

    def _fits(self, photo: int, label: str) -> bool:
        return self._guess(photo) == label and (photo, label) not in self._rejected

    def _card(self, photo: int) -> PhotoCard:
        best = self._guess(photo)
        others = [label for label in self.labels if label != best][:4]
        suggestions = (Suggestion(best, 0.7), *(Suggestion(label, 0.3 / len(others)) for label in others))
        is_test = photo % 5 == 4 and not self._is_check
        card = PhotoCard(
            photo,
            self.photos[photo].name,
            suggestions if self.hints and best in self.labels and not is_test else (),
            Strategy.RANDOM if is_test else self.strategy,
        )
        if not self._is_check:
            return card
        pairs = tuple(
            Neighbours(label, tuple(at for at, _ in enumerate(self.photos) if self._guess(at) == label)[:6])
            for label in (others[-1], best)
        )
        return replace(card, given_label=others[-1], neighbours=pairs)

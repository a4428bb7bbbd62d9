"""Answers of a labelling session as of now, from the entries of its journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainer.labelling.journal import (
    AnswersEntry,
    Entry,
    JournalAnswer,
    LabelEntry,
    SkipEntry,
    StartEntry,
    UndoEntry,
)
from trainer.labelling.output import OutputRow


@dataclass(frozen=True)
class GivenAnswer:
    """The answer that counts for a photo, with the entry that it is from."""

    number: int
    entry: AnswersEntry
    answer: JournalAnswer


class AnswerBook:
    """The answers that count: an entry replaces earlier answers about the same photos, an undo restores them.

    Photos are identified by the sha256 of their content in hex.

    Args:
        changed: called with the sha256 of each photo whose answer has changed or is gone.

    Attributes:
        labels: label names in the order in which they appeared.
        given: sha256 -> the answer that counts.
        per_label: number of photos by label; "" for none of these.
        test: number of photos with a label that belong to the test set.
    """

    def __init__(self, changed: Callable[[str], None] = lambda _: None) -> None:
        self.labels: list[str] = []
        self.given: dict[str, GivenAnswer] = {}
        self.per_label: Counter[str] = Counter()
        self.test = 0
        self._changed = changed
        self._active: dict[int, AnswersEntry | SkipEntry] = {}
        self._answers: dict[str, list[GivenAnswer]] = {}
        self._skips: dict[str, list[int]] = {}
        self._rejected: dict[tuple[str, str], int] = {}  # (sha256, label) -> number of entries
        self._of_browser: dict[str, list[int]] = {}

    def apply(self, number: int, entry: Entry) -> None:
        """Apply the next entry of the journal.

        Args:
            number: its number.
            entry: the entry.
        """
        match entry:
            case StartEntry():
                for name in entry.labels:
                    self.add_label(name)
            case LabelEntry():
                self.add_label(entry.name)
            case AnswersEntry():
                self._active[number] = entry
                self._of_browser.setdefault(entry.browser, []).append(number)
                for answer in entry.answers:
                    if answer.label:
                        self.add_label(answer.label)
                    given = GivenAnswer(number, entry, answer)
                    self._answers.setdefault(answer.sha256, []).append(given)
                    self._update(answer.sha256)
                for sha in entry.rejected:
                    self._rejected[sha, entry.grid] = self._rejected.get((sha, entry.grid), 0) + 1
            case SkipEntry():
                self._active[number] = entry
                self._of_browser.setdefault(entry.browser, []).append(number)
                for sha in entry.photos:
                    self._skips.setdefault(sha, []).append(number)
            case UndoEntry():
                self._take_back(entry.entry)

    def add_label(self, name: str) -> None:
        """Add a label; one that exists stays where it is."""
        if name not in self.labels:
            self.labels.append(name)

    def find_last(self, browser: str) -> tuple[int, AnswersEntry | SkipEntry] | None:
        """Return the last answers or skip of a browser that are not undone, with the number of the entry."""
        numbers = self._of_browser.get(browser)
        return (numbers[-1], self._active[numbers[-1]]) if numbers else None

    def is_rejected(self, sha: str, label: str) -> bool:
        """Return whether a photo was taken out of a grid of this label."""
        return self._rejected.get((sha, label), 0) > 0

    def count_rejected(self) -> Counter[str]:
        """Return the number of photos without an answer that were taken out of the grids of each label."""
        return Counter(
            label for (sha, label), times in self._rejected.items() if times and sha not in self.given
        )

    @property
    def skipped(self) -> list[str]:
        """Photos that were skipped and have no answer, those skipped first at the beginning."""
        return [sha for sha, numbers in self._skips.items() if numbers and sha not in self.given]

    def iter_rows(self, aliases: Mapping[str, Sequence[str]]) -> Iterator[OutputRow]:
        """Yield the rows of the output in the order of the answers.

        Args:
            aliases: sha256 -> paths of a content that several files have, each of which gets a row.
        """
        for given in sorted(self.given.values(), key=lambda given: given.number):
            answer, entry = given.answer, given.entry
            for uri in aliases.get(answer.sha256, (answer.uri,)):
                yield OutputRow(
                    uri, answer.label, entry.by, entry.at, answer.strategy, answer.seconds, answer.test
                )

    def _take_back(self, number: int) -> None:
        entry = self._active.pop(number, None)
        if entry is None:
            return
        self._of_browser[entry.browser].remove(number)
        if isinstance(entry, SkipEntry):
            for sha in entry.photos:
                self._skips[sha].remove(number)
                if not self._skips[sha]:
                    del self._skips[sha]
            return
        for sha in {answer.sha256 for answer in entry.answers}:
            self._answers[sha] = [given for given in self._answers[sha] if given.number != number]
            self._update(sha)
        for sha in entry.rejected:
            self._rejected[sha, entry.grid] -= 1

    def _update(self, sha: str) -> None:
        """Let the last answer about a photo that is not undone count."""
        before = self.given.pop(sha, None)
        if before is not None:
            self._count(before.answer, -1)
        if self._answers[sha]:
            self.given[sha] = self._answers[sha][-1]
            self._count(self.given[sha].answer, 1)
        self._changed(sha)

    def _count(self, answer: JournalAnswer, change: int) -> None:
        self.per_label[answer.label] += change
        if answer.label and answer.test:
            self.test += change

"""Choice of the photos for a browser, among those that no other browser holds."""

from __future__ import annotations

import math

from trainer.labelling.answers import AnswerBook
from trainer.labelling.candidates import Candidates
from trainer.labelling.holds import Holds
from trainer.labelling.journal import AnswersEntry, SkipEntry
from trainer.labelling.pool import Pool
from trainer.labelling.types import GRID, GRID_PHOTOS, Strategy


class Chooser:
    """Fills what browsers hold, from the pool. Not thread-safe.

    Args:
        candidates: all photos.
        book: the answers.
        pool: photos that are open, in the order of the strategies.
        holds: photos that browsers hold.
        strategy: strategy to begin with.
        test_percentage: percentage of the labels that are given to random photos under every strategy.

    Attributes:
        strategy: current strategy.
    """

    def __init__(
        self,
        candidates: Candidates,
        book: AnswerBook,
        pool: Pool,
        holds: Holds,
        strategy: Strategy,
        test_percentage: float,
    ) -> None:
        self._candidates, self._book, self._pool, self._holds = candidates, book, pool, holds
        self._test_percentage = test_percentage
        self.strategy = strategy

    def fill(self, browser: str, count: int) -> None:
        """Let a browser in single mode hold this number of photos, or those that are left."""
        self._holds.set_mode(browser, "single")
        for _ in range(count - len(self._holds.rows(browser))):
            # Photos that are reserved for the test set come last, where no others are left.
            wanted = [Strategy.RANDOM] if self._needs_test_photo() else []
            wanted += [self.strategy]
            wanted += [] if self.strategy is Strategy.SUSPECTS else [Strategy.RANDOM]
            for strategy in wanted:
                row = self._pick(strategy)
                if row is not None:
                    self._holds.hold(browser, row, str(strategy))
                    break
            else:
                return

    def fill_grid(self, browser: str, label: str) -> str:
        """Let a browser hold the photos of a grid, and return the label of the grid.

        Args:
            browser: name of the browser.
            label: label; "" for that of the grid that it holds, or the one with the most photos left.
        """
        mode, shown = self._holds.mode(browser)
        if mode == "grid" and self._holds.rows(browser) and label in ("", shown):
            return shown
        # Suspected photos are compared with their neighbours, one at a time.
        label = "" if self.strategy is Strategy.SUSPECTS else label or self._find_grid_label()
        self._holds.release_all(browser)
        self._holds.set_mode(browser, "grid", label)
        if label not in self._book.labels:
            return label
        held = self._holds.all_rows()
        chosen: list[int] = []
        for row in self._pool.iter_grid(self._book.labels.index(label), self._is_free):
            rejected = self._book.is_rejected(self._candidates.sha256(row), label)
            if not rejected and not self._pool.are_near(row, [*chosen, *held]):
                chosen.append(row)
            if len(chosen) == GRID_PHOTOS:
                break
        for row in chosen:
            self._holds.hold(browser, row, GRID)
        return label

    def hold_again(self, browser: str, entry: AnswersEntry | SkipEntry) -> tuple[int, ...]:
        """Let a browser hold the photos of an entry that was taken back; return those that are free."""
        strategy = str(self.strategy)
        if isinstance(entry, SkipEntry):
            origins = dict.fromkeys(entry.photos, strategy)
        else:
            origins = {answer.sha256: answer.strategy for answer in entry.answers}
            origins |= dict.fromkeys(entry.rejected, GRID)
            if entry.grid and self._holds.mode(browser)[0] == "grid":
                self._holds.release_all(browser)
                self._holds.set_mode(browser, "grid", entry.grid)
        found = [(self._candidates.find_row(sha), origin) for sha, origin in origins.items()]
        rows = [(row, origin) for row, origin in found if row is not None and self._holds.holder(row) is None]
        for row, origin in reversed(rows):
            self._holds.hold(browser, row, origin, first=True)
        return tuple(row for row, _ in rows)

    def _pick(self, strategy: Strategy) -> int | None:
        """Return the next photo of a strategy that no browser holds, nor one that nearly equals it."""
        found = (self._candidates.find_row(sha) for sha in self._book.skipped)
        skipped = [row for row in found if row is not None]
        rows = self._pool.iter_rows(strategy, skipped, self._is_free)
        if strategy is Strategy.SUSPECTS:
            return next(rows, None)
        held = self._holds.all_rows()
        return next((row for row in rows if not self._pool.are_near(row, held)), None)

    def _needs_test_photo(self) -> bool:
        """Return whether the next photo is a random one, so that the test set has its share of the labels."""
        if self.strategy in (Strategy.RANDOM, Strategy.SUSPECTS):
            return False
        held = [self._holds.strategy(row) for row in self._holds.all_rows()]
        test = self._book.test + held.count(Strategy.RANDOM)
        labels = len(self._book.given) - self._book.per_label[""] + len(held) + 1
        return test < math.floor(self._test_percentage / 100 * labels)

    def _find_grid_label(self) -> str:
        """Return the label with the most open photos that were not taken out of its grids; "" if none."""
        labels = self._book.labels
        counts = self._pool.count_grid_photos(len(labels))
        for label, number in self._book.count_rejected().items():
            counts[labels.index(label)] -= number
        return labels[int(counts.argmax())] if len(counts) and counts.max() > 0 else ""

    def _is_free(self, row: int) -> bool:
        return self._holds.holder(row) is None

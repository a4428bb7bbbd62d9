"""Photos that browsers hold: none is shown in two browsers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from trainer.labelling.types import Mode

HOLD_SECONDS = 1800.0
"""Seconds after its last request after which the photos of a browser are released."""


@dataclass
class _Browser:
    """Photos of a browser, in the order in which it shows them, and when it was heard of."""

    mode: Mode = "single"
    label: str = ""
    rows: dict[int, str] = field(default_factory=dict)
    seen: float = 0.0


class Holds:
    """Map from photos to the browsers that hold them.

    Args:
        clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._browsers: dict[str, _Browser] = {}
        self._holder: dict[int, str] = {}

    def visit(self, browser: str) -> None:
        """Note that a browser was heard of, and release the photos of those that were not for long."""
        now = self._clock()
        self._browsers.setdefault(browser, _Browser()).seen = now
        for name in [name for name, other in self._browsers.items() if now - other.seen > HOLD_SECONDS]:
            self.release_all(name)
            del self._browsers[name]

    def set_mode(self, browser: str, mode: Mode, label: str = "") -> None:
        """Set the mode of a browser and the label of its grid; if they change, its photos are released."""
        current = self._browsers[browser]
        if (current.mode, current.label) != (mode, label):
            self.release_all(browser)
            current.mode, current.label = mode, label

    def mode(self, browser: str) -> tuple[Mode, str]:
        """Return the mode of a browser, and the label of its grid."""
        current = self._browsers[browser]
        return current.mode, current.label

    def hold(self, browser: str, row: int, strategy: str, *, first: bool = False) -> None:
        """Let a browser hold a photo that no other holds.

        Args:
            browser: name of the browser.
            row: the photo.
            strategy: what chose it.
            first: show it before the photos that it holds already.
        """
        current = self._browsers[browser]
        self._holder[row] = browser
        current.rows = {row: strategy} | current.rows if first else current.rows | {row: strategy}

    def release(self, rows: Iterable[int]) -> None:
        """Release photos, whoever holds them."""
        for row in rows:
            browser = self._holder.pop(row, None)
            if browser is not None:
                del self._browsers[browser].rows[row]

    def release_all(self, browser: str) -> None:
        """Release all photos of a browser."""
        if browser in self._browsers:
            self.release(list(self._browsers[browser].rows))

    def holder(self, row: int) -> str | None:
        """Return the browser that holds a photo."""
        return self._holder.get(row)

    def strategy(self, row: int) -> str:
        """Return what chose a photo that is held; "" for others."""
        browser = self._holder.get(row)
        return self._browsers[browser].rows[row] if browser is not None else ""

    def rows(self, browser: str) -> dict[int, str]:
        """Return the photos that a browser holds, with what chose each."""
        return dict(self._browsers[browser].rows)

    def all_rows(self) -> list[int]:
        """Return all photos that are held."""
        return list(self._holder)

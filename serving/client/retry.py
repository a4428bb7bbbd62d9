"""When a failed request is sent again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass

from serving.errors import InputError


@dataclass(frozen=True)
class Retry:
    """Exponential backoff with full jitter.

    The wait before the nth retry is drawn evenly from 0 to min(most, first * 2^(n-1)) seconds, the
    scheme that loads a recovering server least (M. Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015). A deadline bounds a request with all its retries; one that would end
    after it is not made.

    Attributes:
        attempts: tries of a request, the first one included; 1 never retries.
        first: the longest wait before the first retry, in seconds.
        most: the longest wait before any, in seconds.
    """

    attempts: int = 5
    first: float = 0.1
    most: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first < 0 or self.most < 0:
            raise InputError(
                f"Retries of {self.attempts} attempts, {self.first:g} to {self.most:g} s make no sense.",
                remedy="Give at least one attempt, and no negative seconds.",
            )

    def wait(self, failures: int) -> float:
        """Seconds to wait after so many failed attempts."""
        return random.uniform(0, min(self.most, self.first * 2.0 ** min(failures - 1, 60)))

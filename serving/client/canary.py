"""Which requests go to the canary: a share of all, or of the users, each of whom always gets the same."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from serving.errors import InputError

CANARY = "canary"
STABLE = "stable"


def hash_user(user: str) -> float:
    """Where a user stands among all, from 0 to below 1: the first 8 bytes of the sha256 of the id.

    A user who has the canary at a share has it at every larger one, on every machine.
    """
    return int.from_bytes(hashlib.sha256(user.encode()).digest()[:8]) / 2**64


@dataclass(frozen=True)
class Canary:
    """How much goes to the version with the label `canary`.

    Attributes:
        share: from 0 (nothing) to 1.
        label: the canary's.
    """

    share: float = 0.0
    label: str = CANARY

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"The canary's share is {self.share}.", remedy="Give 0 to 1, such as 0.05.")

    def selects(self, user: str | None) -> bool:
        """Whether a request is the canary's: by its user, or at random where none is named."""
        if not self.share:
            return False
        # No secret: which requests are a sample need not be hard to guess.
        return (random.random() if user is None else hash_user(user)) < self.share

"""Canary routing: which requests go to the canary, as a fraction of all requests or of all users."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from serving.errors import InputError

CANARY = "canary"
STABLE = "stable"


def hash_user(user: str) -> float:
    """Return a number in [0, 1) for a user: the first 8 bytes of the SHA-256 of the id.

    It depends on the id alone. So a user who gets the canary at some fraction gets it at every larger
    fraction as well, on every machine.
    """
    return int.from_bytes(hashlib.sha256(user.encode()).digest()[:8]) / 2**64


@dataclass(frozen=True)
class Canary:
    """The fraction of requests that goes to the version with the label `canary`.

    Attributes:
        fraction: fraction of the requests, 0 (none) to 1 (all).
        label: version label of the canary.
    """

    fraction: float = 0.0
    label: str = CANARY

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise InputError(
                f"The canary fraction is {self.fraction}, which is not between 0 and 1.",
                remedy="Give the fraction of the requests, such as 0.05 for 5 %.",
            )

    def selects(self, user: str | None) -> bool:
        """Return whether a request goes to the canary: by its user, or at random if `user` is None."""
        if not self.fraction:
            return False
        # A sample of the requests is no secret: the plain generator is good enough.
        return (random.random() if user is None else hash_user(user)) < self.fraction

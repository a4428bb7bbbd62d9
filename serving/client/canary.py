"""Canary routing: which requests go to the canary, as a fraction of all requests or of all users."""

from __future__ import annotations

import hashlib
import random

CANARY = "canary"
STABLE = "stable"


def hash_user(user: str) -> float:
    """Return a number in [0, 1) for a user: the first 8 bytes of the SHA-256 of the id.

    It depends on the id alone. So a user who gets the canary at some fraction gets it at every larger
    fraction as well, on every machine.
    """
    return int.from_bytes(hashlib.sha256(user.encode()).digest()[:8]) / 2**64


def selects_canary(fraction: float, user: str | None) -> bool:
    """Return whether a request goes to the canary: by its user, or at random if `user` is None.

    Args:
        fraction: fraction of the requests that goes to the canary, 0 (none) to 1 (all).
        user: id of the user.
    """
    # A sample of the requests is no secret: the plain generator is good enough.
    return fraction > 0 and (random.random() if user is None else hash_user(user)) < fraction

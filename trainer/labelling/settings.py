"""Settings of a labelling session."""

from __future__ import annotations

import getpass
from contextlib import suppress
from dataclasses import dataclass, field

from trainer.dataset.near_duplicates import THRESHOLD
from trainer.labelling.types import Strategy


def _get_user() -> str:
    """Return the name of the user; "" where the system knows none."""
    with suppress(OSError, KeyError):
        return getpass.getuser()
    return ""


@dataclass(frozen=True)
class SessionSettings:
    """Settings of a labelling session.

    Attributes:
        labels: label names to begin with, besides those of the model and of the labelled photos.
        strategy: strategy to begin with.
        test_percentage: percentage of the labels that are given to random photos under every strategy, and
            marked as the test set; 0 for none but those of the strategy `random`.
        near_threshold: cosine similarity of embeddings from which a photo is not asked for beside an
            answered one; above 1 for no such limit.
        by: name of the person.
        seed: seed of everything that is random.
    """

    labels: tuple[str, ...] = ()
    strategy: Strategy = Strategy.MIXED
    test_percentage: float = 10.0
    near_threshold: float = THRESHOLD
    by: str = field(default_factory=_get_user)
    seed: int = 0

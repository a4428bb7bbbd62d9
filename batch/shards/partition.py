"""A part of the photos, for one of several jobs that know nothing of each other."""

from __future__ import annotations

import re
from dataclasses import dataclass

from batch.shards.shard import hash_uri


@dataclass(frozen=True)
class Partition:
    """The photos whose address has a hash of this remainder; together the shares have each photo once.

    Attributes:
        number: from 0 to `of` - 1.
        of: how many shares there are, at least 1.
    """

    number: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Partition:
        """Read `2/8`, the third of eight.

        Raises:
            ValueError: it is no such thing.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or int(match[1]) >= int(match[2]):
            raise ValueError(f"{text!r} is no share: of eight they are 0/8 to 7/8.")
        return cls(int(match[1]), int(match[2]))

    def contains(self, uri: str) -> bool:
        """Whether a photo is in it."""
        return self.of == 1 or int(hash_uri(uri), 16) % self.of == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE_INPUT = Partition()
"""All photos."""

"""Partition `I/N` of the photos, for independent runs that divide an input between them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from batch.shards.shard import hash_uri


@dataclass(frozen=True)
class Partition:
    """The photos whose uri hashes to a given remainder; N partitions contain each photo exactly once.

    Attributes:
        number: number of this partition, from 0 to `of` - 1.
        of: number of partitions, at least 1.
    """

    number: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Partition:
        """Parse `I/N`, such as `2/8` for the third of eight partitions.

        Raises:
            ValueError: the text has another form, or I is not below N.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or int(match[1]) >= int(match[2]):
            raise ValueError(f"{text!r} is not a partition I/N with I below N: of eight they are 0/8 to 7/8.")
        return cls(int(match[1]), int(match[2]))

    def contains(self, uri: str) -> bool:
        """Return whether the photo with this uri belongs to the partition."""
        return self.of == 1 or int(hash_uri(uri), 16) % self.of == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE_INPUT = Partition()
"""The only partition of an input that is not divided."""

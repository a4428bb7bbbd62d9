"""Helpers for tests of the kinds of heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer import heads
from trainer.heads import HeadSettings

if TYPE_CHECKING:
    pass

Data = tuple[heads.Floats, heads.Ints]
KINDS = ("linear", "hidden")


def fitted(data: Data, classes: int, **chosen: object) -> tuple[heads.Head, heads.Selection]:
    return heads.fit(*data, classes, settings=HeadSettings(**chosen))  # type: ignore[arg-type]

"""Engines that embedded the photos of a run, and their CPUs, in run.json, hubhead.json and the reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict


class EngineRecord(TypedDict):
    """Photos that one engine embedded on one kind of CPU.

    Attributes:
        engine: one of serving.contract.ENGINES, or "server" for a model server that does not name its own.
        cpu: name of the CPU; "" if a server does not name it.
        photos: number of distinct contents.
    """

    engine: str
    cpu: str
    photos: int


def describe_engines(cpu: str, engines: Iterable[EngineRecord]) -> dict[str, str]:
    """Return the rows of a report's table: the CPU of the job, and the photos that each engine embedded.

    Args:
        cpu: CPU of the machine that ran the job; "" in records of earlier versions.
        engines: engines; none if no photo was embedded.
    """
    rows = {"CPU": cpu} if cpu else {}
    for record in engines:
        place = f" on {record['cpu']}" if record["cpu"] else ""
        rows[f"{record['engine']}{place}"] = f"{record['photos']:,} embedded"
    return rows

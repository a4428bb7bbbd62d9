"""Shards: the photos of a run in pieces that are read, embedded, scored and written as one file.

The split halves the photos by the bits of a hash of their uri until no piece is larger than
the shard size. So a shard never depends on the order of a listing, and a new photo changes
the one shard it falls into, or splits that shard in two; with `hash % number_of_shards` it
would move every photo as soon as the number grows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from batch import files
from batch.photos import Photo

DEFAULT_SIZE = 2048


@dataclass(frozen=True)
class Shard:
    """Some photos and the name of what is made of them.

    Attributes:
        id: digest of the photos and of everything that their rows depend on.
        photos: sorted by uri.
    """

    id: str
    photos: tuple[Photo, ...]


def plan(photos: Iterable[Photo], size: int, identity: Mapping[str, Any]) -> list[Shard]:
    """Split photos into shards of at most `size`.

    Args:
        photos: in any order.
        size: photos a shard, at least one.
        identity: what else the rows depend on (model, settings), as JSON values.
    """
    return [Shard(_digest(piece, identity), tuple(piece)) for piece in split(photos, size)]


def split(photos: Iterable[Photo], size: int) -> Iterator[list[Photo]]:
    """The photos in pieces of 1 to `size`, each sorted by uri; see the module for how."""
    if size < 1:
        raise ValueError(f"a shard holds at least one photo, not {size}")
    yield from _halve([(hashlib.sha256(photo.uri.encode()).digest(), photo) for photo in photos], size, 0)


def _halve(hashed: list[tuple[bytes, Photo]], size: int, bit: int) -> Iterator[list[Photo]]:
    if len(hashed) <= size:
        if hashed:
            yield sorted(photo for _, photo in hashed)
        return
    byte, mask = bit // 8, 0x80 >> bit % 8
    for side in (0, mask):
        yield from _halve([item for item in hashed if item[0][byte] & mask == side], size, bit + 1)


def _digest(photos: Sequence[Photo], identity: Mapping[str, Any]) -> str:
    content = json.dumps([identity, [astuple(photo) for photo in photos]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def write_plan(directory: str, shards: Iterable[Shard]) -> str:
    """Write the list of shards, one JSON line each, and each shard's photos in a file of its own.

    The list is what a pipeline passes around, so it names the shards only.

    Returns:
        The path of the list.
    """
    lines = []
    for shard in shards:
        uri = files.join(directory, f"{shard.id}.json")
        files.write(uri, json.dumps([astuple(photo) for photo in shard.photos]).encode())
        lines.append(json.dumps({"id": shard.id, "photos": uri}) + "\n")
    path = files.join(directory, "plan.jsonl")
    files.write(path, "".join(lines).encode())
    return path


def read_shard(line: str) -> Shard:
    """The shard behind a line of the plan."""
    entry = json.loads(line)
    photos = json.loads(files.read(entry["photos"]))
    return Shard(entry["id"], tuple(Photo(*values) for values in photos))


def remove_plan(directory: str) -> None:
    """Remove what `write_plan` and the shards of the run wrote there."""
    files.remove_directory(directory)

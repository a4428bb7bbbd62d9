"""Shards: the photos of a run in pieces that are read, embedded, scored and written together.

The split halves the photos by the bits of a hash of their uri until no piece is larger than
the shard size. So a shard never depends on the order of a listing, and a new photo changes
the one shard it falls into, or splits that shard in two; with `hash % number_of_shards` it
would move every photo as soon as the number grows.

Photos are sorted by that hash outside of memory first. Cutting them then takes a look ahead of
one shard, so that a million photos take no more memory than one shard.
"""

from __future__ import annotations

import hashlib
import io
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from batch.inputs.listing import Photo
from batch.inputs.passthrough import PassThroughColumns
from batch.inputs.sources import Line
from serving.storage import files
from serving.storage.external_sort import Sorter

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_SIZE = 8192

_BITS = 128
_DIGITS = _BITS // 4
_NUMBER = 12
_PLAN, _PHOTOS = "plan.jsonl", "photos.bin"
_OURS = "hubhead:"
"""Begins the names of our columns in the plan, among which those of the user stand."""


@dataclass(frozen=True)
class Shard:
    """Some photos and the name of what is made of them.

    Attributes:
        id: digest of the photos and of everything that their rows depend on.
        photos: in the order of their hashes.
        columns: N rows of what passes through from a manifest; None where there is nothing.
        wanted: N bit sets of the run's models that each photo is to be scored with (bit 0 is the
            first); None for all.
    """

    id: str
    photos: tuple[Photo, ...]
    columns: pa.Table | None = None
    model_masks: tuple[int, ...] | None = None

    def count_rows(self, models: int) -> int:
        """Rows of the scores that it makes."""
        if self.model_masks is None:
            return len(self.photos) * models
        return sum(mask.bit_count() for mask in self.model_masks)


class Entry(NamedTuple):
    """A line of the input on its way to a shard.

    Attributes:
        hash: of the uri, in hexadecimal digits.
        line: uri, size, modified and the values of the columns, as JSON.
        wanted: bit set of models; -1, then of all entries, for all.
    """

    hash: bytes
    line: bytes
    model_mask: int = -1


def hash_uri(uri: str) -> str:
    """What photos are ordered and split by: 32 hexadecimal digits."""
    return hashlib.sha256(uri.encode()).hexdigest()[:_DIGITS]


def sort_entries(lines: Iterable[Line], read: Callable[[int], None] | None = None) -> Iterator[Entry]:
    """The lines in the order of their hashes, each photo once: of several lines the first one stays.

    Args:
        lines: in any order.
        read: told the number of lines so far, now and then.

    Raises:
        OutputError: the temporary directory is full.
    """
    with Sorter() as sorter:
        number = 0
        for number, (photo, values) in enumerate(lines, 1):
            text = json.dumps([photo.uri, photo.size, photo.modified, values])
            sorter.add(f"{hash_uri(photo.uri)}{number:0{_NUMBER}}{text}\n".encode())
            if read and not number % DEFAULT_SIZE:
                read(number)
        if read:
            read(number)
        before = b""
        for line in sorter.lines():
            if (name := line[:_DIGITS]) != before:
                yield Entry(name, line[_DIGITS + _NUMBER : -1])
            before = name


def split_entries(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    """Ordered entries in pieces of 1 to `size`; see the module for how."""
    if size < 1:
        raise ValueError(f"a shard holds at least one photo, not {size}")
    source = iter(entries)
    ahead: list[Entry] = []
    ranges = [(0, 1 << _BITS)]  # of hashes, the next one last
    while ranges:
        low, high = ranges.pop()
        ahead += islice(source, size + 1 - len(ahead))
        if not ahead:
            return
        inside = len(ahead)
        if high < 1 << _BITS:
            inside = bisect_left(ahead, f"{high:0{_DIGITS}x}".encode(), key=itemgetter(0))
        if inside > size:
            middle = (low + high) // 2
            ranges += [(middle, high), (low, middle)]
        elif inside:
            yield ahead[:inside]
            del ahead[:inside]


@dataclass(frozen=True)
class RawShard:
    """A shard whose photos are still lines.

    Attributes:
        id: of the shard.
        entries: its photos.
    """

    id: str
    entries: Sequence[Entry]

    def to_shard(self, columns: PassThroughColumns) -> Shard:
        """The shard, with the columns of its source."""
        lines = [json.loads(entry.line) for entry in self.entries]
        masks = tuple(entry.model_mask for entry in self.entries)
        return Shard(
            self.id,
            tuple(Photo(uri, size, modified) for uri, size, modified, _ in lines),
            columns.to_table([values for *_, values in lines]) if columns else None,
            None if masks[0] == -1 else masks,
        )


def plan_shards(
    entries: Iterable[Entry],
    size: int,
    identity: Mapping[str, Any],
    columns: PassThroughColumns | None = None,
) -> Iterator[RawShard]:
    """Split photos into shards of at most `size`.

    Args:
        entries: in the order of their hashes.
        size: photos a shard, at least one.
        identity: what else the rows depend on (model, settings), as JSON values.
        columns: of the source; their types are known when the last line was read.
    """
    header = None
    for entries_of_shard in split_entries(entries, size):
        if header is None:  # all lines were read before the first piece came
            about = {**identity, "columns": columns.describe() if columns else []}
            header = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        digest = header.copy()
        for _, line, wanted in entries_of_shard:
            digest.update(b"%d %s\n" % (wanted, line))
        yield RawShard(digest.hexdigest()[:_DIGITS], entries_of_shard)


class PlanWriter:
    """Writes the open shards of a run: a line for each, and their photos one after the other in a file.

    The list is what a pipeline passes around, so it only says where the photos stand. It is
    there as soon as the block is left.

    Args:
        directory: of the plan.
    """

    def __init__(self, directory: str) -> None:
        self.path = files.join(directory, _PLAN)
        self.shards = 0
        self._photos = files.join(directory, _PHOTOS)
        self._offset = 0
        self._stack = ExitStack()

    def __enter__(self) -> PlanWriter:
        with ExitStack() as stack:
            self._list: IO[bytes] = stack.enter_context(files.create_file(self.path))
            self._content: IO[bytes] = stack.enter_context(files.create_file(self._photos))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, shard: Shard, models: int = 1) -> None:
        """Write a shard, which makes rows for that many models."""
        content = _to_bytes(shard)
        count, rows = len(shard.photos), shard.count_rows(models)
        line = PlannedShard(shard.id, self._photos, self._offset, len(content), count, rows)
        self._content.write(content)
        self._list.write(json.dumps(vars(line)).encode() + b"\n")
        self._offset += len(content)
        self.shards += 1


@dataclass(frozen=True)
class PlannedShard:
    """A line of the plan.

    Attributes:
        id: of the shard.
        uri: of the file that its photos stand in.
        offset, length: where they stand there, in bytes.
        photos: how many.
        rows: how many rows they are to have.
    """

    id: str
    uri: str
    offset: int
    length: int
    photos: int
    rows: int

    @classmethod
    def parse(cls, line: str | bytes) -> PlannedShard:
        """Read a line."""
        return cls(**json.loads(line))

    def read_shard(self) -> Shard:
        """The shard that it stands for."""
        with files.open_file(self.uri) as file:
            file.seek(self.offset)
            return _from_bytes(self.id, file.read(self.length))


def read_plan(path: str) -> Iterator[PlannedShard]:
    """The lines of a plan."""
    with files.open_file(path) as file:
        yield from map(PlannedShard.parse, file)


def remove_plan(directory: str) -> None:
    """Remove what PlanWriter and the shards of the run wrote there."""
    files.remove_directory(directory)


def _to_bytes(shard: Shard) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = shard.columns
    ours: dict[str, Any] = {
        "uri": pa.array([photo.uri for photo in shard.photos], pa.string()),
        "size": pa.array([photo.size for photo in shard.photos], pa.int64()),
        "modified": pa.array([photo.modified for photo in shard.photos], pa.int64()),
    }
    if shard.model_masks is not None:
        ours["wanted"] = pa.array(shard.model_masks, pa.int32())
    names = [_OURS + name for name in ours]
    arrays = list(ours.values())
    if table is not None:
        names, arrays = names + table.column_names, arrays + table.columns
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays, names=names), buffer, compression="zstd")
    return buffer.getvalue()


def _from_bytes(shard_id: str, content: bytes) -> Shard:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(content))
    columns = table.select([name for name in table.column_names if not name.startswith(_OURS)])
    values: dict[str, list[Any]] = {
        name: table[_OURS + name].to_pylist() for name in ("uri", "size", "modified")
    }
    wanted: list[Any] | None = None
    if _OURS + "wanted" in table.column_names:
        wanted = table[_OURS + "wanted"].to_pylist()
    return Shard(
        shard_id,
        tuple(map(Photo, values["uri"], values["size"], values["modified"])),
        columns if columns.num_columns else None,
        None if wanted is None else tuple(wanted),
    )

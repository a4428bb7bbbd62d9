"""Shards: groups of photos that are read, embedded, scored and written together.

Photos are split by the bits of a hash of their uri: a group larger than the shard size is halved until
no group is. So shards do not depend on the order of the listing, and a new photo changes only the shard
that it falls into, or splits that shard in two. With `hash % number_of_shards` it would move nearly all
photos whenever the number changes.

Photos are first sorted by that hash in external memory. Splitting the sorted stream then needs a
look-ahead of one shard, so a million photos take no more memory than one shard.
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
from batch.inputs.sources import PLAN_PREFIX, Line
from serving.storage import files
from serving.storage.external_sort import Sorter

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_SIZE = 8192
"""Default number of photos per shard."""

_HASH_BITS = 128
_HASH_DIGITS = _HASH_BITS // 4
_NUMBER_DIGITS = 12
_ALL_MODELS = -1
_PLAN, _PHOTOS = "plan.jsonl", "photos.bin"


@dataclass(frozen=True)
class Shard:
    """Photos that are processed together, with everything that is needed to make their rows.

    Attributes:
        id: digest of the photos and of everything else that their rows depend on.
        photos: photos in the order of their uri hashes.
        columns: pass-through columns, one row per photo; None if there are none.
        model_masks: for each photo, a bit mask of the run's models to score it with (bit 0 is the
            first model); None for all models.
    """

    id: str
    photos: tuple[Photo, ...]
    columns: pa.Table | None = None
    model_masks: tuple[int, ...] | None = None

    def count_rows(self, models: int) -> int:
        """Return the number of score rows of the shard, for a run with this many models."""
        if self.model_masks is None:
            return len(self.photos) * models
        return sum(mask.bit_count() for mask in self.model_masks)


class Entry(NamedTuple):
    """A line of the input that is not yet assigned to a shard.

    Attributes:
        hash: uri hash in hexadecimal digits.
        line: uri, size, modification time and pass-through values as JSON.
        model_mask: bit mask of models to score the photo with; -1 in all entries of a run for all models.
    """

    hash: bytes
    line: bytes
    model_mask: int = _ALL_MODELS


def hash_uri(uri: str) -> str:
    """Return the hash by which photos are sorted and split: 32 hexadecimal digits of the sha256."""
    return hash_uri_bytes(uri).hex()


def hash_uri_bytes(uri: str) -> bytes:
    """Return the 16 bytes that `hash_uri` returns in hexadecimal digits."""
    return hashlib.sha256(uri.encode()).digest()[: _HASH_DIGITS // 2]


def sort_entries(lines: Iterable[Line], on_progress: Callable[[int], None] | None = None) -> Iterator[Entry]:
    """Yield the lines of an input sorted by uri hash; of several lines of a photo the first one counts.

    Args:
        lines: lines in any order.
        on_progress: called now and then, and at the end, with the number of lines read so far.

    Raises:
        OutputError: the temporary directory is full.
    """
    with Sorter() as sorter:
        number = 0
        for number, (photo, values) in enumerate(lines, 1):
            text = json.dumps([photo.uri, photo.size, photo.modified, values])
            # The sort key is the hash, then the number of the line: duplicates keep their order.
            sorter.add(f"{hash_uri(photo.uri)}{number:0{_NUMBER_DIGITS}}{text}\n".encode())
            if on_progress and not number % DEFAULT_SIZE:
                on_progress(number)
        if on_progress:
            on_progress(number)
        previous = b""
        for line in sorter.lines():
            if (uri_hash := line[:_HASH_DIGITS]) != previous:
                yield Entry(uri_hash, line[_HASH_DIGITS + _NUMBER_DIGITS : -1])
            previous = uri_hash


def split_entries(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    """Split sorted entries into groups of 1 to `size` by halving ranges of hashes.

    Args:
        entries: entries sorted by hash.
        size: maximum number of entries in a group.

    Raises:
        ValueError: `size` is less than 1.
    """
    if size < 1:
        raise ValueError(f"a shard holds at least one photo, not {size}")
    source = iter(entries)
    ahead: list[Entry] = []
    ranges = [(0, 1 << _HASH_BITS)]  # half-open ranges of hashes still to be split, the lowest one last
    while ranges:
        low, high = ranges.pop()
        # With size + 1 entries at hand it is known whether the range has to be halved.
        ahead += islice(source, size + 1 - len(ahead))
        if not ahead:
            return
        inside = len(ahead)
        if high < 1 << _HASH_BITS:
            inside = bisect_left(ahead, f"{high:0{_HASH_DIGITS}x}".encode(), key=itemgetter(0))
        if inside > size:
            middle = (low + high) // 2
            ranges += [(middle, high), (low, middle)]
        elif inside:
            yield ahead[:inside]
            del ahead[:inside]


@dataclass(frozen=True)
class RawShard:
    """A shard whose photos are still JSON lines.

    The id of a finished shard is enough to skip it, so the lines are parsed only when needed.

    Attributes:
        id: id of the shard.
        entries: entries of its photos.
    """

    id: str
    entries: Sequence[Entry]

    def to_shard(self, columns: PassThroughColumns) -> Shard:
        """Parse the lines.

        Args:
            columns: pass-through columns of the source, complete.
        """
        lines = [json.loads(entry.line) for entry in self.entries]
        masks = tuple(entry.model_mask for entry in self.entries)
        return Shard(
            self.id,
            tuple(Photo(uri, size, modified) for uri, size, modified, _ in lines),
            columns.to_table([values for *_, values in lines]) if columns else None,
            None if masks[0] == _ALL_MODELS else masks,
        )


def plan_shards(
    entries: Iterable[Entry],
    size: int,
    identity: Mapping[str, Any],
    columns: PassThroughColumns | None = None,
) -> Iterator[RawShard]:
    """Split photos into shards of at most `size` photos.

    Args:
        entries: photos sorted by uri hash.
        size: maximum number of photos per shard, at least 1.
        identity: everything else that the rows depend on (models, settings), as JSON values.
        columns: pass-through columns of the source; their types are known once all lines are read.
    """
    header = None
    for group in split_entries(entries, size):
        if header is None:  # sorting has read all lines before the first group, so the types are known
            described = {**identity, "columns": columns.describe() if columns else []}
            header = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        digest = header.copy()
        for _, line, mask in group:
            digest.update(b"%d %s\n" % (mask, line))
        yield RawShard(digest.hexdigest()[:_HASH_DIGITS], group)


class PlanWriter:
    """Context manager that writes the open shards of a run to a plan.

    A plan consists of a list with one line per shard, and a file with the photos of all shards one
    after the other. The pipeline passes only the lines around, which say where the photos are. Both
    files appear when the block ends without an error.

    Args:
        directory: directory of the plan.

    Attributes:
        path: address of the list.
        shards: number of shards written so far.
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
        """Write a shard of a run with this many models."""
        content = _encode_shard(shard)
        count, rows = len(shard.photos), shard.count_rows(models)
        line = PlannedShard(shard.id, self._photos, self._offset, len(content), count, rows)
        self._content.write(content)
        self._list.write(json.dumps(vars(line)).encode() + b"\n")
        self._offset += len(content)
        self.shards += 1


@dataclass(frozen=True)
class PlannedShard:
    """A line of the plan: reference to a shard.

    Attributes:
        id: id of the shard.
        uri: address of the file with its photos.
        offset, length: position and size of its photos in that file, in bytes.
        photos: number of photos.
        rows: number of score rows expected.
    """

    id: str
    uri: str
    offset: int
    length: int
    photos: int
    rows: int

    @classmethod
    def parse(cls, line: str | bytes) -> PlannedShard:
        """Parse a line of the plan."""
        return cls(**json.loads(line))

    def read_shard(self) -> Shard:
        """Read the shard that this line refers to."""
        with files.open_file(self.uri) as file:
            file.seek(self.offset)
            return _decode_shard(self.id, file.read(self.length))


def read_plan(path: str) -> Iterator[PlannedShard]:
    """Yield the lines of a plan.

    Args:
        path: address of the list, PlanWriter.path.
    """
    with files.open_file(path) as file:
        yield from map(PlannedShard.parse, file)


def remove_plan(directory: str) -> None:
    """Delete a plan and everything else in its directory."""
    files.remove_directory(directory)


def _encode_shard(shard: Shard) -> bytes:
    """Return the photos of a shard as the bytes of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = shard.columns
    own: dict[str, Any] = {
        "uri": pa.array([photo.uri for photo in shard.photos], pa.string()),
        "size": pa.array([photo.size for photo in shard.photos], pa.int64()),
        "modified": pa.array([photo.modified for photo in shard.photos], pa.int64()),
    }
    if shard.model_masks is not None:
        own["wanted"] = pa.array(shard.model_masks, pa.int32())
    names = [PLAN_PREFIX + name for name in own]
    arrays = list(own.values())
    if table is not None:
        names, arrays = names + table.column_names, arrays + table.columns
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays, names=names), buffer, compression="zstd")
    return buffer.getvalue()


def _decode_shard(shard_id: str, content: bytes) -> Shard:
    """Return the shard that `_encode_shard` encoded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Not read_table, in which a column called __filename would clash with one of the reader's own.
    table = pq.ParquetFile(pa.BufferReader(content)).read()
    columns = table.select([name for name in table.column_names if not name.startswith(PLAN_PREFIX)])
    values: dict[str, list[Any]] = {
        name: table[PLAN_PREFIX + name].to_pylist() for name in ("uri", "size", "modified")
    }
    masks: list[Any] | None = None
    if PLAN_PREFIX + "wanted" in table.column_names:
        masks = table[PLAN_PREFIX + "wanted"].to_pylist()
    return Shard(
        shard_id,
        tuple(map(Photo, values["uri"], values["size"], values["modified"])),
        columns if columns.num_columns else None,
        None if masks is None else tuple(masks),
    )

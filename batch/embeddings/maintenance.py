"""Looking after a store: what is in it, is it whole, fewer and larger files, only what is wanted.

Files are never changed: the new one is written whole, then the old ones are removed. Killed in
between, a row is there twice, which does no harm and goes with the next `compact`. A reader that
holds the old list looks anew where a file is gone (`EmbeddingStore.iter_blocks`), and a writer only
adds files, which none of this touches. One upkeep of a backbone runs at a time (`serving.storage.lock`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import layout
from batch.embeddings.layout import EMBEDDINGS, INDEX, SHA, SHA_BYTES, VECTOR
from batch.embeddings.lookup import Lookup
from batch.shards.shard import hash_uri
from serving.errors import OutputError
from serving.storage import files, lock

if TYPE_CHECKING:
    import pyarrow as pa

FILE_ROWS = 32768
"""Rows of a merged file: 84 MB of 1280 floats each, some 300 MB of memory to make it."""

INDEX_ROWS = 1 << 18
YOUNG_SECONDS = 3600.0
"""Files younger than this are not pruned: their writer may be about to say which photos they are of."""

_FILE_BITS = 32
_DIGITS = 16
_LAST = np.uint64(2**64 - 1)

Mask = NDArray[np.bool_]


@dataclass
class StoreSummary:
    """What a store has of one backbone.

    Attributes:
        fingerprint: of the backbone.
        dimension: floats an embedding; that of most rows where files differ, 0 without rows.
        rows: of embeddings files, and their `files`.
        photos: entries of index files, and their `index_files`.
        size: bytes of all files.
        torn: names of files that cannot be read, or have other columns.
        other_dimension: names of embeddings files of another dimension.
        duplicates: rows whose content has another row.
        without_rows: index entries whose content has no row.
    """

    fingerprint: str
    dimension: int = 0
    rows: int = 0
    files: int = 0
    photos: int = 0
    index_files: int = 0
    size: int = 0
    torn: list[str] = field(default_factory=list)
    other_dimension: list[str] = field(default_factory=list)
    duplicates: int = 0
    without_rows: int = 0

    @property
    def needs_repair(self) -> bool:
        """Whether there is anything to repair."""
        return bool(self.torn or self.other_dimension or self.duplicates or self.without_rows)


@dataclass(frozen=True)
class MaintenanceResult:
    """What an upkeep did, or would do.

    Attributes:
        rows: embeddings that went.
        photos: index entries that went.
        files: how many files there were before, and after.
    """

    rows: int = 0
    photos: int = 0
    files: tuple[int, int] = (0, 0)


def list_fingerprints(root: str) -> list[str]:
    """The backbones that a store has files of."""
    found = {path.split("/")[0] for path, _ in files.walk_files(root) if "/" in path and _kind(path)}
    return sorted(found)


def summarize(root: str, fingerprint: str) -> StoreSummary:
    """What there is of a backbone, by the footers of its files alone."""
    holdings = StoreSummary(fingerprint)
    dimensions: dict[int, list[str]] = {}
    rows: dict[str, int] = {}
    directory = files.join(root, fingerprint)
    for name, size in sorted(files.walk_files(directory)):
        if "/" in name or not (kind := layout.file_kind(name)):
            continue
        holdings.size += size
        try:
            with layout.open_parquet(files.join(directory, name)) as parquet:
                found, count = parquet.schema_arrow, parquet.metadata.num_rows
            if kind == INDEX:
                layout.check_types(found, layout.index_schema(), layout.INDEX_COLUMNS)
                holdings.index_files += 1
                holdings.photos += count
            else:
                dimension = int(getattr(found.field(VECTOR).type, "list_size", 0))
                layout.check_types(found, layout.embeddings_schema(dimension), layout.COLUMNS)
                dimensions.setdefault(dimension, []).append(name)
                rows[name] = count
        except layout.read_errors():
            holdings.torn.append(name)
    for names in dimensions.values():
        holdings.files += len(names)
        holdings.rows += sum(rows[name] for name in names)
    by_rows = sorted(dimensions, key=lambda d: sum(rows[name] for name in dimensions[d]))
    if by_rows:
        holdings.dimension = by_rows.pop()
        holdings.other_dimension = sorted(name for d in by_rows for name in dimensions[d])
    return holdings


def check(root: str, fingerprint: str) -> StoreSummary:
    """`look`, with every page of every file read and held against its checksum, and digests compared."""
    holdings = summarize(root, fingerprint)
    directory = files.join(root, fingerprint)
    left_out = {*holdings.torn, *holdings.other_dimension}
    have = Lookup(SHA_BYTES, np.int8)
    for name in _names(directory, EMBEDDINGS, left_out):
        parts = []
        try:
            for content in _blocks(directory, name):
                parts.append(layout.to_digest_array(content[SHA]))
        except layout.read_errors():
            holdings.torn.append(name)
            continue
        shas = np.concatenate([np.empty(0, f"S{SHA_BYTES}"), *parts])
        distinct = np.unique(shas)
        holdings.duplicates += len(shas) - len(distinct) + int(have.find(distinct)[1].sum())
        have.add(distinct, np.zeros(len(distinct), np.int8))
    for name in _names(directory, INDEX, left_out):
        try:
            shas = layout.to_digest_array(_whole(directory, name)[SHA])
        except OutputError:
            holdings.torn.append(name)
            continue
        holdings.without_rows += int((~have.find(shas)[1]).sum())
    return holdings


def repair(root: str, holdings: StoreSummary) -> MaintenanceResult:
    """Remove what `check` found: the photos concerned are embedded again when they are next needed.

    Raises:
        OutputError, OutputBusy: the store cannot be written, or another upkeep is at work.
    """
    directory = files.join(root, holdings.fingerprint)
    with lock.hold(directory):
        for name in (*holdings.torn, *holdings.other_dimension):
            files.remove(files.join(directory, name))
        have = Lookup(SHA_BYTES, np.int8)
        for name in _names(directory, EMBEDDINGS):
            shas = _shas(directory, name)
            have.add(shas, np.zeros(len(shas), np.int8))
        photos = _rewrite_index(
            directory, 1, lambda content: have.find(layout.to_digest_array(content[SHA]))[1], dry_run=False
        )
        merged = _merge_rows(directory, FILE_ROWS) if holdings.duplicates else MaintenanceResult()
    return MaintenanceResult(merged.rows, photos, merged.files)


def compact(root: str, fingerprint: str, rows: int = FILE_ROWS) -> MaintenanceResult:
    """Merge small files into larger ones, each content once, sorted as photos are cut into shards.

    Files that have half of `rows` stay as they are. In the order of the hash of its photo's uri, the
    photos of a shard lie side by side in each file.

    Raises:
        OutputError, OutputBusy: the store cannot be written, or another upkeep is at work.
    """
    directory = files.join(root, fingerprint)
    with lock.hold(directory):
        changed = _merge_rows(directory, rows)
        before = len(_names(directory, INDEX))
        photos = _rewrite_index(directory, INDEX_ROWS, None, dry_run=False)
        after = len(_names(directory, INDEX))
    return MaintenanceResult(changed.rows, photos, (changed.files[0] + before, changed.files[1] + after))


def prune(
    root: str,
    fingerprint: str,
    *,
    gone: bool = False,
    older_than: float | None = None,
    dry_run: bool = False,
) -> MaintenanceResult:
    """Remove embeddings that no index entry refers to.

    Args:
        root: of the store.
        fingerprint: of the backbone.
        gone: remove the entries of photos that are no longer there first (of the local disk).
        older_than: remove the entries of photos last modified so many days ago first.
        dry_run: only count.

    Raises:
        OutputError, OutputBusy: the store cannot be written, or another upkeep is at work.
    """
    directory = files.join(root, fingerprint)
    limit = None if older_than is None else (time.time() - older_than * 86400) * 1e9
    wanted = Lookup(SHA_BYTES, np.int8)

    def keep(content: pa.Table) -> Mask:
        kept = np.ones(content.num_rows, bool)
        if limit is not None:
            kept &= content["modified"].to_numpy() >= limit
        if gone:
            uris: Any = content["uri"].to_pylist()
            kept &= np.fromiter(map(_is_there, uris), np.bool_, len(uris))
        shas = np.unique(layout.to_digest_array(content[SHA])[kept])
        wanted.add(shas, np.zeros(len(shas), np.int8))
        return kept

    with lock.hold(directory):
        before = _names(directory, EMBEDDINGS) + _names(directory, INDEX)
        young = _young(directory)
        photos = _rewrite_index(directory, 1, keep, dry_run=dry_run)
        rows = 0
        for name in _names(directory, EMBEDDINGS):
            if name in young:
                continue
            kept = wanted.find(_shas(directory, name))[1]
            rows += int((~kept).sum())
            if not kept.all() and not dry_run:
                _replace(directory, EMBEDDINGS, [name], _whole(directory, name).filter(kept))
        after = _names(directory, EMBEDDINGS) + _names(directory, INDEX)
    return MaintenanceResult(rows, photos, (len(before), len(after)))


def delete_backbone(root: str, fingerprint: str) -> None:
    """Remove all that a store has of a backbone.

    Raises:
        OutputError, OutputBusy: the store cannot be written, or another upkeep is at work.
    """
    directory = files.join(root, fingerprint)
    with lock.hold(directory):
        for prefix in (INDEX, EMBEDDINGS):  # no entry without its row, even when killed
            for name in _names(directory, prefix):
                files.remove(files.join(directory, name))


def _merge_rows(directory: str, rows: int) -> MaintenanceResult:
    keys = _order(directory)
    names = _names(directory, EMBEDDINGS)
    shas = {name: _shas(directory, name) for name in names}
    large = [name for name in names if 2 * len(shas[name]) >= rows]
    small = [name for name in names if name not in set(large)]
    owners = Lookup(SHA_BYTES, np.int64)  # the row that stays of each content; of large files first
    for number, name in enumerate([*large, *small]):
        owners.add(shas[name], (number << _FILE_BITS) + np.arange(len(shas[name])))

    def first(name: str) -> int:
        return int(_keys(keys, shas[name]).min(initial=_LAST))

    numbers = {name: number for number, name in enumerate([*large, *small])}
    removed = 0
    for group in _groups(sorted(small, key=first), lambda name: len(shas[name]), rows):
        kept = []
        for name in group:
            owner, _ = owners.find(shas[name])
            kept.append(owner == (numbers[name] << _FILE_BITS) + np.arange(len(owner)))
        if len(group) == 1 and kept[0].all():
            continue
        removed += sum(int((~mask).sum()) for mask in kept)
        import pyarrow as pa

        content = pa.concat_tables(
            [_whole(directory, name).filter(mask) for name, mask in zip(group, kept, strict=True)]
        )
        order = np.argsort(_keys(keys, layout.to_digest_array(content[SHA])), kind="stable")
        _replace(directory, EMBEDDINGS, group, content.take(order))
    return MaintenanceResult(removed, 0, (len(names), len(_names(directory, EMBEDDINGS))))


def _rewrite_index(
    directory: str, rows: int, keep: Callable[[pa.Table], Mask] | None, *, dry_run: bool
) -> int:
    """Merge index files of together `rows` entries, each photo once; how many entries went."""
    import pyarrow as pa

    removed = 0
    sizes = {name: len(_shas(directory, name)) for name in _names(directory, INDEX)}
    for group in _groups([n for n in sizes if 2 * sizes[n] < rows or rows == 1], sizes.__getitem__, rows):
        content = pa.concat_tables([_whole(directory, name) for name in group])
        mask = keep(content) if keep else np.ones(content.num_rows, bool)
        _, first = np.unique(layout.to_digest_array(content["photo"]), return_index=True)  # sorted by the key
        first = first[mask[first]]
        removed += content.num_rows - len(first)
        if not dry_run and (len(group) > 1 or len(first) < content.num_rows):
            _replace(directory, INDEX, group, content.take(first))
    return removed


def _replace(directory: str, prefix: str, old: Sequence[str], content: pa.Table) -> None:
    """Write the new file, then remove the old ones: whenever it is cut off, no row is lost."""
    new = layout.write_file(directory, prefix, content) if content.num_rows else ""
    for name in old:
        if name != new:
            files.remove(files.join(directory, name))


def _groups(names: Sequence[str], size: Callable[[str], int], rows: int) -> Iterator[list[str]]:
    held: list[str] = []
    for name in names:
        held.append(name)
        if sum(map(size, held)) >= rows:
            yield held
            held = []
    if held:
        yield held


def _order(directory: str) -> Lookup:
    """What contents are sorted by: the hash of a photo's uri, by which photos are cut into shards."""
    keys = Lookup(SHA_BYTES, np.uint64)
    for name in _names(directory, INDEX):
        content: Any = _whole(directory, name)
        values = [int(hash_uri(uri)[:_DIGITS], 16) for uri in content["uri"].to_pylist()]
        keys.add(layout.to_digest_array(content[SHA]), np.array(values, np.uint64))
    return keys


def _keys(keys: Lookup, shas: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    values, found = keys.find(shas)
    return np.where(found, values, _LAST)


def _names(directory: str, prefix: str, left_out: Any = ()) -> list[str]:
    return [
        name
        for name in files.list_names(directory)
        if layout.file_kind(name) == prefix and name not in left_out
    ]


def _kind(path: str) -> str | None:
    return layout.file_kind(path.rpartition("/")[2])


def _shas(directory: str, name: str) -> NDArray[np.bytes_]:
    return layout.to_digest_array(_whole(directory, name, [SHA])[SHA])


def _whole(directory: str, name: str, columns: list[str] | None = None) -> Any:
    """PassThroughColumns of a file, all where none are named.

    Raises:
        OutputError: it is torn.
    """
    uri = files.join(directory, name)
    try:
        with layout.open_parquet(uri) as parquet:
            return parquet.read(columns)
    except layout.read_errors() as error:
        raise OutputError(
            f"{uri} is torn: {error}.", remedy="Remove it with: hubhead embeddings check --repair"
        ) from error


def _blocks(directory: str, name: str) -> Iterator[Any]:
    with layout.open_parquet(files.join(directory, name)) as parquet:
        for number in range(parquet.num_row_groups):
            yield parquet.read_row_group(number)


def _is_there(uri: str) -> bool:
    return files.is_remote(uri) or Path(files.local_path(uri)).exists()


def _young(directory: str) -> set[str]:
    """The files that were written a short while ago."""
    limit = time.time() - YOUNG_SECONDS
    if files.is_remote(directory):
        entries = files.match_files(files.join(directory, "*"))
        return {e.path.rpartition("/")[2] for e in entries if (e.last_updated_in_seconds or 0) > limit}
    return {path.name for path in Path(directory).iterdir() if path.stat().st_mtime > limit}

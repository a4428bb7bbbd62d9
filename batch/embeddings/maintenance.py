"""Maintenance of an embedding store: listing, checking, repairing, compacting and pruning.

Files are never changed: a new file is written completely before the files that it replaces are deleted.
An interruption in between leaves some rows twice, which does no harm, and which the next maintenance
removes. A reader that holds an old list of files reads it again if a file is gone
(`EmbeddingStore.iter_blocks`). Writers only add files, and maintenance touches none that they add
meanwhile. Maintenance of one backbone holds a lease (`serving.storage.lease`), so that one runs at a time.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from batch.embeddings import layout, nearest
from batch.embeddings.layout import EMBEDDINGS, INDEX, ROW_GROUP, SHA, SHA_BYTES
from batch.embeddings.lookup import Lookup
from batch.embeddings.rewrite import (
    Mask,
    list_files,
    merge_embeddings,
    read_digests,
    read_table,
    replace_files,
    rewrite_index,
)
from serving.errors import OutputError
from serving.storage import files, remote
from serving.storage.lease import Lease, hold

if TYPE_CHECKING:
    import pyarrow as pa

FILE_ROWS = 32768
"""Rows per merged file: 84 MB at 1280 float16 values each, which takes about 300 MB of memory to write."""

INDEX_ROWS = 1 << 18
"""Entries per merged index file."""

YOUNG_SECONDS = 3600.0
"""Minimum age of a file to be pruned: the writer of a younger one may not have written its index yet."""


@dataclass
class StoreSummary:
    """Contents and condition of a store, for one backbone.

    Attributes:
        fingerprint: fingerprint of the backbone.
        dimension: floats per embedding; if files differ, that of most rows; 0 without rows.
        rows: number of embeddings.
        files: number of embeddings files.
        photos: number of index entries.
        index_files: number of index files.
        size: bytes of all files.
        torn: names of files that are unreadable or have other columns.
        other_dimension: names of embeddings files with another dimension.
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
        """True if `repair` has anything to do."""
        return bool(self.torn or self.other_dimension or self.duplicates or self.without_rows)


@dataclass(frozen=True)
class MaintenanceResult:
    """Effect of a maintenance operation.

    Attributes:
        rows: number of embeddings removed.
        photos: number of index entries removed.
        files: number of files before and after, of `compact`.
    """

    rows: int = 0
    photos: int = 0
    files: tuple[int, int] = (0, 0)


def list_fingerprints(root: str) -> list[str]:
    """Return the fingerprints of the backbones in a store."""
    paths = [path for path, _ in files.walk_files(root) if layout.file_kind(path.rpartition("/")[2])]
    return sorted({path.split("/")[0] for path in paths if "/" in path})


def summarize(root: str, fingerprint: str) -> StoreSummary:
    """Return the contents of a store for a backbone, by reading the footers of its files only."""
    summary = StoreSummary(fingerprint)
    rows: dict[int, dict[str, int]] = {}  # rows of each embeddings file, by dimension
    directory = files.join(root, fingerprint)
    for name, size in sorted(files.walk_files(directory)):
        if "/" in name or not (kind := layout.file_kind(name)):
            continue
        summary.size += size
        try:
            with layout.open_parquet(files.join(directory, name)) as parquet:
                found, count = parquet.schema_arrow, parquet.metadata.num_rows
            dimension = 0 if kind == INDEX else layout.get_dimension(found)
            layout.check_types(found, layout.file_schema(name, dimension))
        except layout.read_errors():
            summary.torn.append(name)
            continue
        if kind == INDEX:
            summary.index_files += 1
            summary.photos += count
        else:
            summary.files += 1
            summary.rows += count
            rows.setdefault(dimension, {})[name] = count
    summary.dimension = max(rows, key=lambda dimension: sum(rows[dimension].values()), default=0)
    rows.pop(summary.dimension, None)
    summary.other_dimension = sorted(chain.from_iterable(rows.values()))
    return summary


def check(root: str, fingerprint: str) -> StoreSummary:
    """Return `summarize` extended by a full check: verify all checksums, compare all digests."""
    summary = summarize(root, fingerprint)
    directory = files.join(root, fingerprint)
    excluded = {*summary.torn, *summary.other_dimension}
    have = Lookup(SHA_BYTES, np.int8)  # used as a set
    for name in sorted({*list_files(directory, EMBEDDINGS)} - excluded):
        try:
            with layout.open_parquet(files.join(directory, name)) as parquet:
                # All columns are read, so that their checksums are verified.
                parts = [layout.to_digest_array(batch[SHA]) for batch in parquet.iter_batches(ROW_GROUP)]
        except layout.read_errors():
            summary.torn.append(name)
            continue
        shas = np.concatenate([np.empty(0, f"S{SHA_BYTES}"), *parts])
        distinct = np.unique(shas)
        summary.duplicates += len(shas) - len(distinct) + int(have.find(distinct)[1].sum())
        have.add(distinct, np.zeros(len(distinct), np.int8))
    for name in sorted({*list_files(directory, INDEX)} - excluded):
        try:
            shas = layout.to_digest_array(read_table(directory, name)[SHA])
        except OutputError:
            summary.torn.append(name)
            continue
        summary.without_rows += int((~have.find(shas)[1]).sum())
    return summary


def repair(root: str, summary: StoreSummary) -> None:
    """Remove the defects that `check` found; affected photos are embedded again when needed.

    Raises:
        OutputError: the store cannot be written.
        OutputBusy: another maintenance operation is running.
        LeaseLost: this one was stopped for so long that another one took over.
    """
    directory = files.join(root, summary.fingerprint)
    with _hold_lease(directory) as lease:
        lease.publish(removes=[*summary.torn, *summary.other_dimension])
        have = Lookup(SHA_BYTES, np.int8)  # used as a set
        for name in list_files(directory, EMBEDDINGS):
            shas = read_digests(directory, name)
            have.add(shas, np.zeros(len(shas), np.int8))
        rewrite_index(
            lease, 1, lambda content: have.find(layout.to_digest_array(content[SHA]))[1], dry_run=False
        )
        if summary.duplicates:
            merge_embeddings(lease, FILE_ROWS)
        _forget_nearest(directory)


def compact(root: str, fingerprint: str, rows: int = FILE_ROWS) -> MaintenanceResult:
    """Merge small files into larger ones without duplicates, sorted by the hash of the photos' uris.

    That is the order in which photos are split into shards, so a shard's photos are adjacent in each
    file. Files with at least half of `rows` rows are not rewritten.

    Args:
        root: directory of the store.
        fingerprint: fingerprint of the backbone.
        rows: rows per merged file.

    Raises:
        OutputError: the store cannot be written, or a file is corrupt.
        OutputBusy: another maintenance operation is running.
        LeaseLost: this one was stopped for so long that another one took over.
    """
    directory = files.join(root, fingerprint)
    with _hold_lease(directory) as lease:
        before = len(list_files(directory, EMBEDDINGS, INDEX))
        removed = merge_embeddings(lease, rows)
        photos = rewrite_index(lease, INDEX_ROWS, None, dry_run=False)
        _forget_nearest(directory)
        return MaintenanceResult(removed, photos, (before, len(list_files(directory, EMBEDDINGS, INDEX))))


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
        root: directory of the store.
        fingerprint: fingerprint of the backbone.
        gone: first remove the index entries of local photos that no longer exist.
        older_than: first remove the index entries of photos last modified this many days ago.
        dry_run: count only, change nothing.

    Raises:
        OutputError: the store cannot be written, or a file is corrupt.
        OutputBusy: another maintenance operation is running.
        LeaseLost: this one was stopped for so long that another one took over.
    """
    directory = files.join(root, fingerprint)
    limit = None if older_than is None else (time.time() - older_than * 86400) * 1e9
    wanted = Lookup(SHA_BYTES, np.int8)  # used as a set of the contents that an entry refers to

    def keep(content: pa.Table) -> Mask:
        """Return a mask of the index entries to keep, and collect the contents that they refer to."""
        kept = np.ones(content.num_rows, bool)
        if limit is not None:
            kept &= content["modified"].to_numpy() >= limit
        if gone:
            uris: Any = content["uri"].to_pylist()
            kept &= np.fromiter(map(_exists, uris), np.bool_, len(uris))
        shas = np.unique(layout.to_digest_array(content[SHA])[kept])
        wanted.add(shas, np.zeros(len(shas), np.int8))
        return kept

    with _hold_lease(directory) as lease:
        young = _list_young_files(directory)  # listed before the index is read
        photos = rewrite_index(lease, 1, keep, dry_run=dry_run)
        rows = 0
        for name in list_files(directory, EMBEDDINGS):
            if name in young:
                continue  # its writer may not have written the index entries yet
            kept = wanted.find(read_digests(directory, name))[1]
            rows += int((~kept).sum())
            if not kept.all() and not dry_run:
                replace_files(lease, EMBEDDINGS, [name], read_table(directory, name).filter(kept))
        if not dry_run:
            _forget_nearest(directory)
    return MaintenanceResult(rows, photos)


def delete_backbone(root: str, fingerprint: str) -> None:
    """Delete all files of a backbone.

    Raises:
        OutputError: the store cannot be written.
        OutputBusy: another maintenance operation is running.
        LeaseLost: this one was stopped for so long that another one took over.
    """
    directory = files.join(root, fingerprint)
    with _hold_lease(directory) as lease:
        lease.publish(removes=list_files(directory, INDEX) + list_files(directory, EMBEDDINGS))
        _forget_nearest(directory)


def _forget_nearest(directory: str) -> None:
    """Delete what the index of nearest photos has of files that maintenance has removed."""
    nearest.remove_stale(directory, list_files(directory, EMBEDDINGS))


def _hold_lease(directory: str) -> AbstractContextManager[Lease]:
    return hold(directory, "lease", "Another maintenance operation is running in")


def _exists(uri: str) -> bool:
    return files.is_remote(uri) or Path(files.local_path(uri)).exists()


def _list_young_files(directory: str) -> set[str]:
    """Return the names of the files written within the last YOUNG_SECONDS."""
    limit = time.time() - YOUNG_SECONDS
    if files.is_remote(directory):
        found = remote.walk_files(directory)
        return {info.uri.rpartition("/")[2] for info in found if info.modified > limit * 1e9}
    return {path.name for path in Path(directory).iterdir() if path.stat().st_mtime > limit}

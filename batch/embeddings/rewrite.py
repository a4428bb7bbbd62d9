"""Rewriting of embeddings and index files: merging, filtering and sorting.

Callers hold the lease of the backbone. Embeddings are sorted by the hash of the photos' uris, which is
also the order in which photos are split into shards: a shard's photos are adjacent in each file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from batch.embeddings import layout
from batch.embeddings.layout import EMBEDDINGS, INDEX, SHA, SHA_BYTES
from batch.embeddings.lookup import Lookup
from batch.embeddings.rows import group_by_rows
from batch.shards.shard import hash_uri
from serving.errors import OutputError
from serving.storage import files
from serving.storage.lease import Lease

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_BITS = 32
"""Bits of a position that hold the row; the bits above hold the number of the file."""

_ORDER_DIGITS = 16
_LAST = np.uint64(2**64 - 1)
"""Sort key of contents without a photo."""

Mask = NDArray[np.bool_]


def list_files(directory: str, *prefixes: str) -> list[str]:
    """Return the names of the files of one kind or both."""
    return [name for name in files.list_names(directory) if layout.file_kind(name) in prefixes]


def read_digests(directory: str, name: str) -> NDArray[np.bytes_]:
    """Return the content digests of a file, dtype S32.

    Raises:
        OutputError: the file is corrupt.
    """
    return layout.to_digest_array(read_table(directory, name, [SHA])[SHA])


def read_table(directory: str, name: str, columns: list[str] | None = None) -> Any:
    """Return the named columns of a file, or all of them.

    Raises:
        OutputError: the file is corrupt.
    """
    uri = files.join(directory, name)
    try:
        with layout.open_parquet(uri) as parquet:
            return layout.upgrade(parquet.read(columns))
    except layout.read_errors() as error:
        raise OutputError(
            f"{uri} is corrupt: {error}.", remedy="Remove it with: hubhead embeddings check --repair"
        ) from error


def merge_embeddings(lease: Lease, rows: int) -> int:
    """Merge small embeddings files, drop duplicates, and return the number of rows removed.

    Args:
        lease: lease of the directory of the backbone.
        rows: rows per merged file; files with at least half of it are not rewritten.

    Raises:
        OutputError: the store cannot be written, or a file is corrupt.
    """
    import pyarrow as pa

    directory = lease.root
    sort_keys = _read_sort_keys(directory)
    names = list_files(directory, EMBEDDINGS)
    shas = {name: read_digests(directory, name) for name in names}
    large = [name for name in names if 2 * len(shas[name]) >= rows]
    small = [name for name in names if name not in set(large)]
    # Position of the row that stays of each content. Large files are not rewritten, so their rows take
    # precedence: a lookup returns the value that was added first.
    owners = Lookup(SHA_BYTES, np.int64)
    for number, name in enumerate([*large, *small]):
        owners.add(shas[name], (number << _ROW_BITS) + np.arange(len(shas[name])))

    def lowest_sort_key(name: str) -> int:
        return int(_sort_keys_of(sort_keys, shas[name]).min(initial=_LAST))

    numbers = {name: number for number, name in enumerate([*large, *small])}
    removed = 0
    # Files are merged with their neighbours in sort order, so that merged files overlap little.
    for group in group_by_rows(sorted(small, key=lowest_sort_key), lambda name: len(shas[name]), rows):
        kept = []
        for name in group:
            owner, _ = owners.find(shas[name])
            kept.append(owner == (numbers[name] << _ROW_BITS) + np.arange(len(owner)))
        if len(group) == 1 and kept[0].all():
            continue  # nothing to merge and nothing to remove
        removed += sum(int((~mask).sum()) for mask in kept)
        content = pa.concat_tables(
            [read_table(directory, name).filter(mask) for name, mask in zip(group, kept, strict=True)]
        )
        order = np.argsort(_sort_keys_of(sort_keys, layout.to_digest_array(content[SHA])), kind="stable")
        replace_files(lease, EMBEDDINGS, group, content.take(order))
    return removed


def rewrite_index(lease: Lease, rows: int, keep: Callable[[pa.Table], Mask] | None, *, dry_run: bool) -> int:
    """Filter and merge index files, and return the number of entries removed.

    Args:
        lease: lease of the directory of the backbone.
        rows: entries per merged file; 1 to rewrite each file on its own.
        keep: returns a mask of the entries to keep; None to keep all but duplicates.
        dry_run: count only, change nothing.

    Raises:
        OutputError: the store cannot be written, or a file is corrupt.
    """
    import pyarrow as pa

    removed, directory = 0, lease.root
    sizes = {name: len(read_digests(directory, name)) for name in list_files(directory, INDEX)}
    # With rows=1 every file is a group of its own, and none is too large to be rewritten.
    small = [name for name in sizes if 2 * sizes[name] < rows or rows == 1]
    for group in group_by_rows(small, sizes.__getitem__, rows):
        content = pa.concat_tables([read_table(directory, name) for name in group])
        mask = keep(content) if keep else np.ones(content.num_rows, bool)
        # Sorted by photo key, one entry per photo.
        _, first = np.unique(layout.to_digest_array(content["photo"]), return_index=True)
        first = first[mask[first]]
        removed += content.num_rows - len(first)
        if not dry_run and (len(group) > 1 or len(first) < content.num_rows):
            replace_files(lease, INDEX, group, content.take(first))
    return removed


def replace_files(lease: Lease, prefix: str, old: Sequence[str], content: pa.Table) -> None:
    """Write a new file, then delete the old ones; the next maintenance completes what is interrupted.

    Nothing is written if there are no rows. If the content equals that of an old file, that file stays.

    Args:
        lease: lease of the directory of the backbone.
        prefix: EMBEDDINGS or INDEX.
        old: names of the files to delete.
        content: rows of the new file.

    Raises:
        LeaseLost: another maintenance operation took over; nothing is changed.
        OutputError: the store cannot be written.
    """
    new = dict([layout.encode_file(prefix, content)]) if content.num_rows else {}
    lease.publish(new, removes=[name for name in old if name not in new])


def _read_sort_keys(directory: str) -> Lookup:
    """Return the sort key of each content: the leading 64 bits of the uri hash of its photo.

    Photos are split into shards by the same hash. If several photos have a content, one of them counts.
    """
    sort_keys = Lookup(SHA_BYTES, np.uint64)
    for name in list_files(directory, INDEX):
        content: Any = read_table(directory, name)
        values = [int(hash_uri(uri)[:_ORDER_DIGITS], 16) for uri in content["uri"].to_pylist()]
        sort_keys.add(layout.to_digest_array(content[SHA]), np.array(values, np.uint64))
    return sort_keys


def _sort_keys_of(sort_keys: Lookup, shas: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    values, found = sort_keys.find(shas)
    return np.where(found, values, _LAST)

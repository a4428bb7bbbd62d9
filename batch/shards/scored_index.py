"""Index of the photos that an output has scored already, by model and by state of the file.

`<output>/_hubhead/keys/<model digest>/` contains files of sorted 24-byte keys. The first 16 bytes of
a key are the hash of the uri, by which a run's photos are sorted too; the other 8 are a hash of the
photo's size and modification time. So photos and keys, however many, are joined as sorted streams
(a merge join) in constant memory.

A shard's keys are written before its record and are valid only together with it. So photos of a
run that was interrupted in between are scored again. Many small files are merged into fewer ones,
which a run publishes together with the deletion of their inputs. A merged file no longer tells which
shard its keys come from; so only runs that keep all rows may publish it.
Photos that could not be read have key files of their own, which are valid for the same run only:
the next run tries those photos again.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from batch.inputs.listing import Photo
from batch.shards.shard import Entry, hash_uri, hash_uri_bytes
from serving.storage import files
from serving.storage.address import base_name
from serving.storage.lease import Move

KEY_BYTES = 24
_HASH_BYTES = 16
SUFFIX = ".keys"
_MERGED = "merged-"
_MAX_FILES = 32
"""Number of files up to which nothing is merged."""

_FAN_IN = 64
"""Files merged at a time, which bounds the number of open files."""

_LISTINGS = 3
"""Listings of a directory whose files another run may merge meanwhile; each publication merges once."""

_CHUNK_KEYS = 1 << 16
"""Keys read at a time from each file."""

_BLOCK_ENTRIES = 1 << 13
"""Photos of the run looked up together."""

_KEY = np.dtype(f"S{KEY_BYTES}")
_HASH = np.dtype(f"S{_HASH_BYTES}")


def scored_key(photo: Photo) -> bytes:
    """Return the key of a photo in its present state."""
    return _build_key(hash_uri(photo.uri), photo.size, photo.modified)


def _build_key(uri_hash: str, size: int, modified: int) -> bytes:
    state = hashlib.blake2b(b"%d %d" % (size, modified), digest_size=KEY_BYTES - _HASH_BYTES)
    return bytes.fromhex(uri_hash) + state.digest()


def hash_uris(uris: Iterable[str]) -> NDArray[np.bytes_]:
    """Return the uri hashes with which the photos' keys begin: dtype S16, in the order given."""
    return np.frombuffer(b"".join(map(hash_uri_bytes, uris)), _HASH)


def sort_distinct(keys: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
    """Return the distinct keys, sorted. np.unique hashes them first, which takes several times as long."""
    found = np.sort(keys)
    is_first = np.ones(len(found), bool)
    is_first[1:] = found[1:] != found[:-1]
    return found[is_first]


def select_keys(sorted_keys: NDArray[np.bytes_], uris: NDArray[np.bytes_]) -> list[bytes]:
    """Return the full keys among `sorted_keys` that belong to the photos with these uri hashes.

    Args:
        sorted_keys: sorted keys, dtype S24.
        uris: uri hashes as returned by `hash_uris`, dtype S16.
    """
    hashes = _uri_hashes_of(sorted_keys)
    first, end = np.searchsorted(hashes, uris, "left"), np.searchsorted(hashes, uris, "right")
    # The rows from `first` to `end` of each photo: usually one; a photo that was scored again after a change
    # has several.
    counts = end - first
    rows = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
    text = sorted_keys[rows].tobytes()  # NumPy strips trailing zero bytes from each key, but not here
    return [text[start : start + KEY_BYTES] for start in range(0, len(text), KEY_BYTES)]


def _uri_hashes_of(keys: NDArray[np.bytes_]) -> Any:
    return np.ascontiguousarray(keys).view([("uri", _HASH), ("state", f"S{KEY_BYTES - _HASH_BYTES}")])["uri"]


def encode_keys(scored: Iterable[bytes]) -> bytes:
    """Return the content of a key file, given keys in any order."""
    return b"".join(sorted(scored))


class ScoredIndex:
    """Index of the photos that one model has scored in an output.

    Args:
        root: path or address of the output; all names are relative to it.
        directory: key directory of the model.
        is_valid: returns whether the keys of a file name are valid in this run.
        is_permanent: returns whether they are valid in every later run too. Only such files are merged.

    Attributes:
        merged: staged files with merged keys, and the names that they get.
        replaced: files whose keys are in them.
    """

    def __init__(
        self, root: str, directory: str, is_valid: Callable[[str], bool], is_permanent: Callable[[str], bool]
    ) -> None:
        self._root, self._directory = root, directory
        self._is_valid = is_valid
        self._is_permanent = is_permanent
        self.merged: list[Move] = []
        self.replaced: set[str] = set()

    def _list_files(self, accept: Callable[[str], bool]) -> list[str]:
        names = [
            files.join(self._directory, name)
            for name in files.list_names(files.join(self._root, self._directory))
            if name.endswith(SUFFIX) and (name.startswith(_MERGED) or accept(name.removesuffix(SUFFIX)))
        ]
        return [name for name in names if name not in self.replaced] + [staged for staged, _ in self.merged]

    def merge_files(self, staging: str) -> None:
        """Merge permanent files until at most _MAX_FILES are left, for the caller to publish.

        Args:
            staging: name of the directory for the merged files.
        """
        while len(names := self._list_files(self._is_permanent)) > _MAX_FILES:
            # Merged files come last, so that a long history is not copied every time.
            staged = {staged for staged, _ in self.merged}
            names.sort(key=lambda name: name in staged or base_name(name).startswith(_MERGED))
            chosen = names[:_FAN_IN]
            name = f"{_MERGED}{secrets.token_hex(8)}{SUFFIX}"
            with ExitStack() as stack:
                streams = [_iter_keys(self._open(stack, name)) for name in chosen]
                with files.create_file(files.join(self._root, staging, name)) as file:
                    keys = heapq.merge(*streams)
                    while block := b"".join(islice(keys, _CHUNK_KEYS)):
                        file.write(block)
            for used in staged.intersection(chosen):
                files.remove(files.join(self._root, used))
            self.replaced.update(set(chosen) - staged)
            self.merged = [move for move in self.merged if move[0] not in chosen]
            self.merged.append((files.join(staging, name), files.join(self._directory, name)))

    def find_keys(self, uris: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
        """Return the permanent keys (dtype S24) of photos with these uri hashes (dtype S16).

        Only the range of keys between the least and the greatest hash is read: shards are ranges of hashes,
        so the time for some of them does not grow with the output. The keys are unsorted and may contain
        duplicates.
        """
        if not len(uris):
            return np.empty(0, _KEY)
        for _ in range(_LISTINGS - 1):
            # A run in this output may have merged a file since it was listed.
            with suppress(FileNotFoundError):
                return self._find_keys(uris)
        return self._find_keys(uris)

    def _find_keys(self, uris: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
        found, wanted = [np.empty(0, _KEY)], np.sort(uris)
        with ExitStack() as stack:
            for name in self._list_files(self._is_permanent):
                file = self._open(stack, name)
                _seek_key(file, bytes(wanted[0]))
                while len(chunk := _read_chunk(file)):
                    # Both are sorted, so that the searches are fast.
                    hashes = _uri_hashes_of(chunk)
                    at = np.searchsorted(wanted, hashes)
                    found.append(chunk[(at < len(wanted)) & (wanted.take(at, mode="clip") == hashes)])
                    if hashes[-1] > wanted[-1]:
                        break
        return np.concatenate(found)

    def _open(self, stack: ExitStack, name: str) -> IO[bytes]:
        return stack.enter_context(files.open_file(files.join(self._root, name)))

    def open_cursors(self, stack: ExitStack) -> list[_Cursor]:
        """Return a cursor over each valid file; the stack closes the files."""
        return [_Cursor(self._open(stack, name)) for name in self._list_files(self._is_valid)]


class _Cursor:
    """Position in a file of sorted keys, which is read once from start to end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._pending = np.empty(0, _KEY)  # keys read from the file, but not yielded yet
        self._ended = False

    def read_up_to(self, last: bytes) -> Iterator[NDArray[np.bytes_]]:
        """Yield the next keys that are not greater than `last`, in non-empty arrays."""
        while True:
            if not len(self._pending) and not self._ended:
                self._pending = _read_chunk(self._file)
                self._ended = not len(self._pending)
            end = int(np.searchsorted(self._pending, np.array(last, _KEY), side="right"))
            taken, self._pending = self._pending[:end], self._pending[end:]
            if len(taken):
                yield taken
            # A key above `last` stays pending. If all of the chunk was taken, the next chunk may
            # start with keys that belong to this call too.
            if len(self._pending) or self._ended:
                return


def _read_chunk(file: IO[bytes]) -> NDArray[np.bytes_]:
    content = file.read(_CHUNK_KEYS * KEY_BYTES)
    return np.frombuffer(content[: len(content) // KEY_BYTES * KEY_BYTES], _KEY)


def _seek_key(file: IO[bytes], least: bytes) -> None:
    """Move to the first key of a file of sorted keys that is not less than `least`, by binary search."""
    first, end = 0, file.seek(0, os.SEEK_END) // KEY_BYTES
    while first < end:
        middle = (first + end) // 2
        file.seek(middle * KEY_BYTES)
        if file.read(KEY_BYTES) < least:
            first = middle + 1
        else:
            end = middle
    file.seek(first * KEY_BYTES)


def _iter_keys(file: IO[bytes]) -> Iterator[bytes]:
    """Yield each key of a file as bytes of full length."""
    while content := file.read(_CHUNK_KEYS * KEY_BYTES):
        for start in range(0, len(content), KEY_BYTES):
            yield content[start : start + KEY_BYTES]


def exclude_scored(
    entries: Iterable[Entry], models: Sequence[ScoredIndex], on_excluded: Callable[[int], None]
) -> Iterator[Entry]:
    """Yield the entries that at least one model has not scored, with the models still to be run.

    Args:
        entries: photos of the run, sorted by uri hash.
        models: index of each model; `merge_files` bounds the number of files that are open.
        on_excluded: called with the number of photos excluded from each block.
    """
    source = iter(entries)
    with ExitStack() as stack:
        cursors = [index.open_cursors(stack) for index in models]
        # Merge join: entries and key files are both sorted by uri hash, so each is read once. The
        # cursors advance to the last key of a block; keys of photos outside the input are skipped.
        while block := list(islice(source, _BLOCK_ENTRIES)):
            keys = np.array([_entry_key(entry) for entry in block], _KEY)
            masks = np.zeros(len(block), np.int64)  # bit i: model i has not scored the photo
            for model, model_cursors in enumerate(cursors):
                masks |= ~_find_in_files(keys, model_cursors) * np.int64(1 << model)
            on_excluded(int(np.count_nonzero(masks == 0)))
            for entry, mask in zip(block, masks.tolist(), strict=True):
                if mask:
                    yield entry._replace(model_mask=mask) if len(models) > 1 else entry


def _find_in_files(keys: NDArray[np.bytes_], cursors: Iterable[_Cursor]) -> NDArray[np.bool_]:
    """Return for each of these sorted keys whether a file contains it."""
    found = np.zeros(len(keys), bool)
    for cursor in cursors:
        for chunk in cursor.read_up_to(keys[-1]):
            # Binary search; positions past the end are clipped, and fail the comparison.
            at = np.minimum(np.searchsorted(chunk, keys), len(chunk) - 1)
            found |= chunk[at] == keys
    return found


def _entry_key(entry: Entry) -> bytes:
    _, size, modified, _ = json.loads(entry.line)
    return _build_key(entry.hash.decode(), size, modified)

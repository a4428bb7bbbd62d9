"""What an output has scored already: which photos, as they were then, with which model.

`<output>/_hubhead/keys/<digest of the model>/` holds files of sorted keys of 24 bytes: 16 of
the uri's hash, by which a run's photos are sorted too, and 8 of the photo's size and time of
change. So a run and any number of known photos are joined as two streams.

A shard's keys are written before its record and count only together with it, so that a run
that is cut off in between leaves nothing out. When files become many they are merged. Photos
whose bytes were not to be had have files of their own, since they count for the same run alone.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from batch.inputs.listing import Photo
from batch.shards.shard import Entry, hash_uri
from serving.storage import files

KEY_BYTES = 24
_HASH_BYTES = 16
_SUFFIX = ".keys"
_MERGED = "merged-"
_MOST_FILES = 32
_FAN_IN = 64
_CHUNK = 1 << 16
"""Keys that are read at a time, of each file."""

_BLOCK = 1 << 13
"""Photos of the run that are looked up together."""

_KEY = np.dtype(f"S{KEY_BYTES}")
_HASH = np.dtype(f"S{_HASH_BYTES}")


def scored_key(photo: Photo) -> bytes:
    """The key of a photo as it is now."""
    return _key(hash_uri(photo.uri), photo.size, photo.modified)


def _key(name: str, size: int, modified: int) -> bytes:
    version = hashlib.blake2b(b"%d %d" % (size, modified), digest_size=KEY_BYTES - _HASH_BYTES)
    return bytes.fromhex(name) + version.digest()


def hash_uris(uris: Iterable[str]) -> NDArray[np.bytes_]:
    """What the keys of photos begin with, dtype S16, in order."""
    return np.frombuffer(b"".join(bytes.fromhex(hash_uri(uri)) for uri in uris), _HASH)


def select_keys(sorted_keys: NDArray[np.bytes_], uris: NDArray[np.bytes_]) -> Iterator[bytes]:
    """Those of sorted keys that are of photos with these hashes, as long as they were written."""
    begins = _hashes_of(sorted_keys)
    first, end = np.searchsorted(begins, uris, "left"), np.searchsorted(begins, uris, "right")
    for start, stop in zip(first.tolist(), end.tolist(), strict=True):
        for row in range(start, stop):  # one key, but for photos that have changed
            yield sorted_keys[row].ljust(KEY_BYTES, b"\0")


def _hashes_of(keys: NDArray[np.bytes_]) -> Any:
    return np.ascontiguousarray(keys).view([("uri", _HASH), ("version", f"S{KEY_BYTES - _HASH_BYTES}")])[
        "uri"
    ]


def write_keys(directory: str, name: str, scored: Iterable[bytes]) -> None:
    """Keep the keys of photos under a name, which says when they count."""
    if content := b"".join(sorted(scored)):
        files.write(files.join(directory, name + _SUFFIX), content)


def remove_keys(directory: str, name: str) -> None:
    """Forget the keys of that name; fine where there are none."""
    files.remove(files.join(directory, name + _SUFFIX))


def forget(directory: str) -> None:
    """Forget all keys of a model."""
    files.remove_directory(directory)


class ScoredIndex:
    """The keys of one model in an output.

    Args:
        directory: of the model's keys.
        counts: whether the keys of a name count.
        stays: whether they will do so in every later run, and may be merged with others.
    """

    def __init__(self, directory: str, counts: Callable[[str], bool], stays: Callable[[str], bool]) -> None:
        self._directory = directory
        self._counts = counts
        self._stays = stays

    def _names(self, wanted: Callable[[str], bool]) -> list[str]:
        return [
            name
            for name in files.list_names(self._directory)
            if name.endswith(_SUFFIX) and (name.startswith(_MERGED) or wanted(name.removesuffix(_SUFFIX)))
        ]

    def merge(self) -> None:
        """Merge files until there are few; what was merged is removed after the whole is there."""
        while len(names := self._names(self._stays)) > _MOST_FILES:
            # The merged ones last, so that a long history is not copied every time.
            names.sort(key=lambda name: name.startswith(_MERGED))
            few = names[:_FAN_IN]
            with ExitStack() as stack:
                streams = [_keys(self._open(stack, name)) for name in few]
                merged = files.join(self._directory, f"{_MERGED}{secrets.token_hex(8)}{_SUFFIX}")
                with files.create_file(merged) as file:
                    everything = heapq.merge(*streams)
                    while block := b"".join(islice(everything, _CHUNK)):
                        file.write(block)
            for name in few:
                files.remove(files.join(self._directory, name))

    def find_keys(self, uris: NDArray[np.bytes_]) -> NDArray[np.bytes_]:
        """The keys of photos with these hashes, dtype S24; some twice where files have them twice."""
        found = [np.empty(0, _KEY)]
        with ExitStack() as stack:
            for name in self._names(self._stays):
                file = self._open(stack, name)
                while len(some := _read(file)):
                    found.append(some[np.isin(_hashes_of(some), uris)])
        return np.concatenate(found)

    def _open(self, stack: ExitStack, name: str) -> IO[bytes]:
        return stack.enter_context(files.open_file(files.join(self._directory, name)))

    def cursors(self, stack: ExitStack) -> list[_Cursor]:
        """All files, to be read along with a run's photos."""
        return [_Cursor(self._open(stack, name)) for name in self._names(self._counts)]


class _Cursor:
    """A file of sorted keys, read from its beginning to its end once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = np.empty(0, _KEY)
        self._ended = False

    def up_to(self, last: bytes) -> Iterator[NDArray[np.bytes_]]:
        """The next keys that are not above `last`, in arrays of at least one."""
        while True:
            if not len(self._left) and not self._ended:
                self._left = _read(self._file)
                self._ended = not len(self._left)
            end = int(np.searchsorted(self._left, np.array(last, _KEY), side="right"))
            taken, self._left = self._left[:end], self._left[end:]
            if len(taken):
                yield taken
            if len(self._left) or self._ended:
                return


def _read(file: IO[bytes]) -> NDArray[np.bytes_]:
    content = file.read(_CHUNK * KEY_BYTES)
    return np.frombuffer(content[: len(content) // KEY_BYTES * KEY_BYTES], _KEY)


def _keys(file: IO[bytes]) -> Iterator[bytes]:
    """Each key, as long as it was written."""
    while content := file.read(_CHUNK * KEY_BYTES):
        for start in range(0, len(content), KEY_BYTES):
            yield content[start : start + KEY_BYTES]


def exclude_scored(
    entries: Iterable[Entry], models: Sequence[ScoredIndex], leave_out: Callable[[int], None]
) -> Iterator[Entry]:
    """The ordered entries that some model has not scored, each with the models that are left to do.

    Args:
        entries: in the order of their hashes.
        models: what each model has scored.
        leave_out: told how many were left out, block by block.
    """
    for known in models:
        known.merge()
    source = iter(entries)
    with ExitStack() as stack:
        cursors = [known.cursors(stack) for known in models]
        while block := list(islice(source, _BLOCK)):
            keys = np.array([_entry_key(entry) for entry in block], _KEY)
            wanted = np.zeros(len(block), np.int64)
            for model, of_model in enumerate(cursors):
                wanted |= ~_found(keys, of_model) * np.int64(1 << model)
            leave_out(int(np.count_nonzero(wanted == 0)))
            for entry, mask in zip(block, wanted.tolist(), strict=True):
                if mask:
                    yield entry._replace(model_mask=mask) if len(models) > 1 else entry


def _found(keys: NDArray[np.bytes_], cursors: Iterable[_Cursor]) -> NDArray[np.bool_]:
    """Which of these sorted keys stand in the files."""
    found = np.zeros(len(keys), bool)
    for cursor in cursors:
        for some in cursor.up_to(keys[-1]):
            at = np.minimum(np.searchsorted(some, keys), len(some) - 1)
            found |= some[at] == keys
    return found


def _entry_key(entry: Entry) -> bytes:
    _, size, modified, _ = json.loads(entry.line)
    return _key(entry.hash.decode(), size, modified)

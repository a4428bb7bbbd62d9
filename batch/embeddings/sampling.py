"""A random sample of the photos in an embedding store."""

from __future__ import annotations

from typing import Any

import numpy as np

from batch.embeddings import layout
from batch.embeddings.layout import INDEX, KEY_BYTES, SHA
from batch.embeddings.rewrite import list_files, read_table
from batch.inputs.listing import Photo
from serving.errors import OutputError
from serving.storage import files

_PHOTO = ["uri", "size", "modified"]


def sample_photos(root: str, fingerprint: str, count: int, seed: int) -> dict[Photo, bytes]:
    """Return random photos of a backbone's index, with the sha256 of their content.

    Photos are chosen by their keys, so that the same photos are chosen however the files are merged. Corrupt
    files are left out. One index file is in memory at a time.

    Args:
        root: directory of the store.
        fingerprint: fingerprint of the backbone.
        count: number of photos; all if the store has fewer.
        seed: seed of the choice.
    """
    import pyarrow as pa

    directory = files.join(root, fingerprint)
    # Keys are digests, that is random numbers. Their product with an odd number is a permutation of them.
    factor = np.random.default_rng(seed).integers(0, 1 << 63, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    chosen: Any = layout.file_schema(INDEX, 0).empty_table()
    for name in list_files(directory, INDEX):
        try:
            chosen = pa.concat_tables([chosen, read_table(directory, name)])
        except OutputError:
            continue
        keys = layout.to_digest_array(chosen["photo"]).view(np.uint64)[:: KEY_BYTES // 8]
        _, first = np.unique(keys * factor, return_index=True)
        chosen = chosen.take(first[:count])
    rows = zip(*(chosen[name].to_pylist() for name in (*_PHOTO, SHA)), strict=True)
    return {Photo(uri, size, modified): sha for uri, size, modified, sha in rows}

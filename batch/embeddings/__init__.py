"""Embedding store: the output of a backbone for each photo, kept for all later runs.

`<store>/<fingerprint>/` contains two kinds of Parquet files, written atomically and never changed:

* `embeddings-*.parquet`: sha256 of the photo's content, embedding, status, detail, height, width
* `index-*.parquet`: (uri, size, modification time) and sha256, so that unchanged photos are not read again

Digests are stored as 32 bytes instead of 64 hexadecimal digits, which halves the memory and sorts
without conversion. Rejected photos are stored too, so that they are not decoded again. Their embedding
is all zeros, and the status tells whether a row has an embedding: a null in a fixed-size list cannot be
read back from Parquet (seen with pyarrow 25).

Modules: `rows` (contents of the store in memory), `layout` (the files), `lookup` (digest to position, in
bounded memory), `store` (reading and appending), `rewrite` (merging and filtering files), `maintenance`
(list, check, repair, compact, prune), `nearest` (exact search for the nearest photos), `clusters`.
"""

from batch.embeddings.layout import SHA_BYTES, to_parquet
from batch.embeddings.rows import Embeddings, hash_photo
from batch.embeddings.store import EmbeddingStore, default_root

__all__ = ["SHA_BYTES", "EmbeddingStore", "Embeddings", "default_root", "hash_photo", "to_parquet"]

"""The embedding store: what a backbone made of a photo, kept for every later run.

`<store>/<fingerprint>/` holds two kinds of Parquet files, written whole and never changed:

* `embeddings-*.parquet`: sha256 of the photo's bytes, embedding, status, detail, height, width
* `index-*.parquet`: (uri, size, modified) to sha256, so that an unchanged photo is not even read

A digest is 32 bytes, not 64 hex digits: half the memory, and it sorts as it is. A refused
photo is kept too, its embedding all zeros, so that it is not decoded again: it is the
status that says whether there is an embedding, since a null in a fixed-size list cannot
be read back from Parquet (seen with pyarrow 25).

Modules: `rows` (what is kept of a photo), `layout` (the files), `lookup` (digest to place, in
bounded memory), `store` (reading and appending), `upkeep` (list, check, compact, prune).
"""

from batch.embeddings.layout import SHA_BYTES, to_parquet
from batch.embeddings.rows import Embeddings, hash_photo
from batch.embeddings.store import EmbeddingStore, default_root

__all__ = ["SHA_BYTES", "EmbeddingStore", "Embeddings", "default_root", "hash_photo", "to_parquet"]

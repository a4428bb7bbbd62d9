"""Batch processing of photos: inputs, shards, the embedding store, and the Beam jobs that score photos."""

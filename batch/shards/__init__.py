"""Shards, the partition of one worker, and the index of scored photos."""

"""Shards, the partition of one worker, and the index of photos that are already scored."""

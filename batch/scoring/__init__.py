"""Scoring of one shard: prefetch, embed, apply the head, write rows."""

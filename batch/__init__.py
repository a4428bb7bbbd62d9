"""Photos in bulk: sources, shards, the embedding store and the Beam job that scores them."""

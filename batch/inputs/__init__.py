"""Input of batch runs: photo listings, dataset manifests and pass-through columns."""

"""The gate before a release: parity of all paths, thresholds, the verdict."""

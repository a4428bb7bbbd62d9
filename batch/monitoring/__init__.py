"""Statistics of a run: counts, progress, drift and sample photos."""

"""Monitoring of runs: counts, progress, drift and sample photos."""

"""Benchmarks: `python -m tests.bench` and its modules. Speeds are ratios of variants that run in turns."""

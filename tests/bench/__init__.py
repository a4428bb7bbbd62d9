"""Speed, as ratios between variants that take turns in one run: `make bench` or `python -m tests.bench`."""
